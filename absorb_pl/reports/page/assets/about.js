// What was measured, with what, and what could not be.
import { facts, h, prose, section } from "#dom";
import { count } from "#format";
import { numbers, table, words } from "#tables";

export function aboutView(study, state) {
  const { about } = study;
  const first = study.summary[0];
  const missing = study.letters.filter((row) => !row.evaluable && row.rule === state.rule);
  const short = new Map(about.saes.map((sae) => [sae.name, sae.short]));
  return h(
    "div",
    {},
    section(
      "What was measured",
      "Absorption: a class is there, a linear probe sees it, and yet the SAE's own latents for it stay silent, as another latent carries it along.",
      facts([
        ["model", about.model],
        ["SAEs", count(about.saes.length, "SAE")],
        ["classes", count(new Set(study.letters.map((row) => row.label)).size, "class", "classes")],
        ["held-out words", count(study.texts.length, "word")],
        ["one context for all words", first.shared_context ? "yes" : "no"],
        ["weights and prompts", first.processing || "as they come"],
        ["absorb_pl", about.version],
      ]),
    ),
    section("Rules", null, h("dl", { class: "rules" }, about.rules.flatMap((rule) => [
      h("dt", {}, rule.name),
      h("dd", {}, prose(rule.about), h("br"), h("small", {}, Object.entries(rule.settings).map(([name, value]) => `${name} ${value}`).join(", "))),
    ]))),
    section(
      "How sure",
      "Intervals hold what other words of the same classes would change, at 95 %. They do not hold what another split, other probes or other main latents would: cross-fitting does (`--crossfit.folds 5`). Controls and shuffled copies say what a rate is worth.",
      study.crossfit ? h("p", {}, "This study was cross-fitted; each SAE shows both rates.") : null,
      study.shuffles ? h("p", {}, "Rates were held against shuffled copies; each SAE shows theirs.") : null,
    ),
    section(
      `What could not be judged by ${state.rule}`,
      missing.length ? null : "Every class of every SAE has a rate.",
      missing.length
        ? table(
            missing.map((row) => ({ ...row, short: short.get(row.sae) })),
            [words("SAE", "short", { filter: true }), words("class", "label", { filter: true }), words("why", "reason"), numbers("words", "num_words")],
            { height: "40vh", label: "what could not be judged" },
          )
        : null,
    ),
    section("Settings", null, h("details", {}, h("summary", {}, "all settings of the study"), h("pre", {}, JSON.stringify(about.config, null, 2)))),
  );
}
