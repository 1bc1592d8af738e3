import { render } from "preact";
import { App } from "./app";
import "@fontsource-variable/inter/wght.css";
import "./styles.css";

const root = document.getElementById("page");
if (root !== null) render(<App />, root);
