// Light or dark: as the system says, unless the reader has chosen.
import { useEffect, useState } from "preact/hooks";

const CHOSEN = "retort.theme";
type Theme = "auto" | "light" | "dark";

function chosen(): Theme {
  const stored = localStorage.getItem(CHOSEN);
  return stored === "light" || stored === "dark" ? stored : "auto";
}

function apply(theme: Theme): void {
  document.documentElement.dataset["theme"] = theme;
  window.dispatchEvent(new Event("retort-theme"));
}

apply(chosen());

export function Appearance() {
  const [theme, set] = useState(chosen);
  useEffect(() => {
    if (theme === "auto") localStorage.removeItem(CHOSEN);
    else localStorage.setItem(CHOSEN, theme);
    apply(theme);
  }, [theme]);
  return (
    <label class="appearance">
      <span>Colours</span>
      <select value={theme} onChange={(event) => set(event.currentTarget.value as Theme)}>
        <option value="auto">as the system</option>
        <option value="light">light</option>
        <option value="dark">dark</option>
      </select>
    </label>
  );
}

/** Call `redraw` when the colours change; return what ends that. */
export function onColours(redraw: () => void): () => void {
  const system = matchMedia("(prefers-color-scheme: dark)");
  window.addEventListener("retort-theme", redraw);
  system.addEventListener("change", redraw);
  return () => {
    window.removeEventListener("retort-theme", redraw);
    system.removeEventListener("change", redraw);
  };
}

/** Return the value of a colour of styles.css, for a canvas. */
export function colour(name: string): string {
  const probe = document.createElement("span");
  probe.style.color = `var(--${name})`;
  document.body.append(probe);
  const value = getComputedStyle(probe).color;
  probe.remove();
  return value;
}
