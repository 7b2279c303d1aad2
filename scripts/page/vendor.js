// Copy the libraries that the page carries, with their licences, from node_modules; with --check only compare.
import { copyFileSync, readFileSync } from "node:fs";

const TO = new URL("../../absorb_pl/reports/page/assets/vendor/", import.meta.url);
const FILES = {
  "d3/dist/d3.min.js": "d3.min.js",
  "d3/LICENSE": "LICENSE-d3",
  "@observablehq/plot/dist/plot.umd.min.js": "plot.umd.min.js",
  "@observablehq/plot/LICENSE": "LICENSE-plot",
  "tabulator-tables/dist/js/tabulator.min.js": "tabulator.min.js",
  "tabulator-tables/dist/css/tabulator.min.css": "tabulator.min.css",
  "tabulator-tables/LICENSE": "LICENSE-tabulator",
};

for (const [file, name] of Object.entries(FILES)) {
  const [from, to] = [new URL(`node_modules/${file}`, import.meta.url), new URL(name, TO)];
  if (!process.argv.includes("--check")) copyFileSync(from, to);
  else if (!readFileSync(from).equals(readFileSync(to))) throw new Error(`${name} is not that of the package; run npm run vendor`);
}
