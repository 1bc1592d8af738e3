import { defineConfig } from "vite";

export default defineConfig({
  // Relative, so that the page works below any path that a proxy gives it.
  base: "./",
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
