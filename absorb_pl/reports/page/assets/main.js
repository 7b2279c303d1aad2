// The page: draws the view that the address names.
import { aboutView } from "#about";
import { compareView } from "#compare";
import { block } from "#data";
import { h, select } from "#dom";
import { latentView } from "#latent";
import { letterView } from "#letter";
import { saeView } from "#sae";
import { saesView } from "#saes";
import { address, current, go } from "#state";

const THEMES = ["auto", "light", "dark"];
const OF_SAE = { sae: saeView, letter: letterView, latent: latentView };
const study = await block("study");
const names = study.about.saes.map((sae) => sae.name);
const read = (sae) => block(`sae-${names.indexOf(sae)}`);
const rules = study.about.rules.map((rule) => rule.name);

/** The state of the address, with what is missing or unknown in it replaced. */
function state() {
  const found = current();
  if (!rules.includes(found.rule)) found.rule = rules[0];
  if (found.view in OF_SAE && !names.includes(found.sae)) found.view = "saes";
  const labels = study.letters.filter((row) => row.sae === found.sae).map((row) => row.label);
  if (found.view === "letter" && !labels.includes(found.letter)) found.view = "sae";
  return found;
}

function head(shown) {
  const at = (view) => ({ ...(view === "saes" ? {} : { sae: shown.sae }), view, rule: shown.rule });
  const link = (view, title) => h("a", { href: address(at(view)), "aria-current": shown.view === view ? "page" : null }, title);
  const theme = document.documentElement.dataset.theme ?? "auto";
  return [
    h("h1", {}, h("a", { href: address({ view: "saes", rule: shown.rule }) }, `Absorption in SAEs${study.about.model ? ` of ${study.about.model}` : ""}`)),
    h("nav", { "aria-label": "views" }, link("saes", "SAEs"), link("compare", "Compare"), link("about", "About")),
    h(
      "div",
      { class: "choices" },
      select("rule", rules, shown.rule, (rule) => go({ ...current(), rule })),
      select("colours", THEMES, theme, setTheme),
    ),
    h("nav", { class: "crumbs", "aria-label": "place" }, crumbs(shown)),
  ];
}

function crumbs(shown) {
  if (!(shown.view in OF_SAE)) return [];
  const short = study.about.saes.find((sae) => sae.name === shown.sae).short;
  const keep = { sae: shown.sae, rule: shown.rule };
  return [
    h("a", { href: address({ view: "saes", rule: shown.rule }) }, "SAEs"),
    h("a", { href: address({ ...keep, view: "sae" }) }, short),
    shown.letter && shown.view !== "sae" ? h("a", { href: address({ ...keep, view: "letter", letter: shown.letter }) }, `class ${shown.letter}`) : null,
    shown.view === "latent" ? h("span", {}, `latent ${shown.latent}`) : null,
  ];
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  draw();
}

let latest = 0;
async function draw() {
  const turn = ++latest;
  const shown = state();
  document.getElementById("head").replaceChildren(...head(shown));
  const view = document.getElementById("view");
  const content = await contentOf(shown);
  if (turn !== latest) return;
  view.replaceChildren(content);
  document.title = ["Absorption", study.about.model, shown.view === "saes" ? "" : (shown.sae ?? "")].filter(Boolean).join(" · ");
  document.documentElement.dataset.ready = shown.view;
  performance.mark("ready");
}

async function contentOf(shown) {
  if (shown.view in OF_SAE) return OF_SAE[shown.view](study, await read(shown.sae), shown);
  if (shown.view === "compare") return compareView(study, read, shown);
  return shown.view === "about" ? aboutView(study, shown) : saesView(study, shown);
}

let width = document.documentElement.clientWidth;
window.addEventListener("hashchange", () => {
  delete document.documentElement.dataset.ready;
  draw().then(() => window.scrollTo(0, 0));
});
window.addEventListener("resize", () => {
  if (document.documentElement.clientWidth === width) return;
  width = document.documentElement.clientWidth;
  draw();
});
await draw();
