import { readFileSync } from "node:fs";
import { defineConfig } from "vite";

// What the API of this tree can do: a box whose routes it does not have is left out.
const openapi = JSON.parse(readFileSync(new URL(".openapi.json", import.meta.url), "utf8")) as {
  paths: Record<string, unknown>;
};

export default defineConfig({
  // Relative, so that the page works below any path that a proxy gives it.
  base: "./",
  define: {
    HAS_EXPORTS: JSON.stringify("/v1/models/{name}/versions/{version}/exports" in openapi.paths),
  },
  build: {
    outDir: "../api/page_files",
    emptyOutDir: true,
    target: "es2022",
    // The content security policy allows no data: scripts or fonts; every asset is a file.
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    reportCompressedSize: false,
    // On a busy machine every plugin is slow; that is no fault of the build.
    rolldownOptions: { checks: { pluginTimings: false } },
  },
});
