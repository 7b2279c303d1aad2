// One latent: on which words it fires, and what it absorbs.
import { firingChart } from "#charts";
import { facts, h, section } from "#dom";
import { count, number } from "#format";
import { address } from "#state";
import { numbers, table, words } from "#tables";

export function latentView(study, sae, state) {
  const latent = Number(state.latent);
  const texts = new Map(study.texts.map((row) => [row.row, row.word]));
  const hook = study.letters.find((row) => row.sae === state.sae)?.hook_name;
  const labels = labelsOf(study, hook);
  const fired = (sae.firings ?? []).filter((row) => row.latent === latent)
    .flatMap((row) => (labels.get(row.row) ?? [""]).map((label) => ({ ...row, word: texts.get(row.row), label })));
  const classes = [...new Set(study.letters.map((row) => row.label))];
  const byClass = classes.map((label) => ({ label, fired: fired.filter((row) => row.label === label).length }));
  const mainOf = [...new Set(study.letters.filter((row) => row.sae === state.sae && row.main_latents?.includes(latent)).map((row) => row.label))];
  const nearest = (sae.latents ?? []).filter((row) => row.latent === latent);
  const absorbed = study.about.rules.flatMap((rule) =>
    (sae[`words ${rule.name}`] ?? [])
      .filter((row) => row.is_absorption && row.top_latent === latent)
      .map((row) => ({ ...row, rule: rule.name, word: texts.get(row.row) })),
  );
  return h(
    "div",
    {},
    section(
      `Latent ${latent}`,
      null,
      facts([
        ["main latent of", mainOf.length ? letterLinks(mainOf, state) : "no class"],
        ["near the probe of", nearest.length ? nearest.map((row) => `${row.label} (rank ${row.rank + 1}, cosine of decoder ${number(row.cos_decoder)}, precision ${number(row.precision)}, recall ${number(row.recall)})`).join("; ") : "no class"],
        ["fires on", sae.firings ? count(fired.length, "held-out word") : "not kept by this study"],
        ["absorbs", absorbed.length ? countsByRule(absorbed) : "nothing, by these rules"],
        ...neuronpedia(study, state, latent),
      ]),
    ),
    fired.length ? section("Where it fires", "Held-out words; a word leads to its evidence.",
      h("div", { class: "chart" }, firingChart(byClass)),
      table(
        fired,
        [
          words("word", "word", { link: (row) => address({ ...state, view: "letter", letter: row.label, row: row.row, word: row.word }), filter: true }),
          words("class", "label", { filter: true }),
          numbers("activation", "activation"),
        ],
        { sort: "activation", height: "50vh", label: "words on which the latent fires" },
      )) : null,
    absorbed.length ? section("What it absorbs", "Words that count, and on which this latent comes first by the rule's score.",
      table(
        absorbed,
        [
          words("word", "word", { link: (row) => address({ ...state, view: "letter", rule: row.rule, letter: row.label, row: row.row, word: row.word }), filter: true }),
          words("class", "label", { filter: true }),
          words("rule", "rule", { filter: true }),
          numbers("score", "top_score"),
          numbers("cosine", "top_probe_cos"),
        ],
        { sort: "top_score", height: "50vh", label: "words that the latent absorbs" },
      )) : null,
  );
}

function labelsOf(study, hook) {
  const found = new Map();
  for (const row of study.held_out ?? []) {
    if (row.hook_name === hook) found.set(row.row, [...(found.get(row.row) ?? []), row.label]);
  }
  return found;
}

const letterLinks = (labels, state) =>
  labels.flatMap((label, at) => [at ? ", " : "", h("a", { href: address({ ...state, view: "letter", letter: label, row: "", word: "" }) }, label)]);

function countsByRule(absorbed) {
  const counts = new Map();
  absorbed.forEach((row) => counts.set(row.rule, (counts.get(row.rule) ?? 0) + 1));
  return [...counts].map(([rule, amount]) => `${count(amount, "word")} by ${rule}`).join(", ");
}

/** A link to Neuronpedia's page of the latent, where the SAE says under which name it is there. */
function neuronpedia(study, state, latent) {
  const id = study.summary.find((row) => row.sae === state.sae)?.neuronpedia;
  const place = `https://www.neuronpedia.org/${id}/${latent}`;
  return id ? [["Neuronpedia", h("a", { href: place, rel: "noopener", target: "_blank" }, place)]] : [];
}
