// One class of one SAE: its words as evidence.
import { facts, h, section, select } from "#dom";
import { count, isNumber, number, rateText, why } from "#format";
import { address, note } from "#state";
import { numbers, table, words } from "#tables";

/** What can have become of a word by a rule. */
export const KINDS = {
  all: "all words",
  absorbed: "absorbed",
  "not-absorbed": "judged, not absorbed",
  "not-judged": "not judged",
  unseen: "not seen by the probe",
};

/** What is known of each held-out word of a class, with the verdict of every rule. */
export function wordsOf(study, sae, letter, hook) {
  const texts = new Map(study.texts.map((row) => [row.row, row]));
  const found = new Map();
  const entry = (row) => {
    if (!found.has(row)) found.set(row, { row, ...texts.get(row), verdicts: {} });
    return found.get(row);
  };
  for (const row of study.held_out ?? []) {
    if (row.hook_name === hook && row.label === letter) entry(row.row).probe_logit = row.probe_logit;
  }
  for (const rule of study.about.rules) {
    for (const row of sae[`words ${rule.name}`] ?? []) {
      if (row.label === letter) entry(row.row).verdicts[rule.name] = row;
    }
  }
  return [...found.values()];
}

/** What became of a word by a rule. */
export function outcome(word, rule) {
  const verdict = word.verdicts[rule];
  if (verdict) return verdict.is_absorption ? "absorbed" : "not-absorbed";
  return isNumber(word.probe_logit) && word.probe_logit <= 0 ? "unseen" : "not-judged";
}

export function letterView(study, sae, state) {
  const row = study.letters.find((one) => one.sae === state.sae && one.rule === state.rule && one.label === state.letter);
  const all = wordsOf(study, sae, state.letter, row.hook_name);
  const mains = row.main_latents ?? [];
  const active = activations(sae, mains);
  const rows = all.map((word) => {
    const verdict = word.verdicts[state.rule] ?? {};
    return { ...verdict, ...word, outcome: KINDS[outcome(word, state.rule)], kind: outcome(word, state.rule), main: active(word.row) };
  });
  const detail = h("aside", { class: "detail", "aria-live": "polite" });
  const show = (word) => {
    note({ word: word.word, row: word.row });
    detail.replaceChildren(wordDetail(study, sae, word, mains, state));
    detail.scrollIntoView({ block: "nearest" });
  };
  const chosen = rows.find((word) => String(word.row) === state.row) ?? rows.find((word) => word.kind === "absorbed") ?? rows[0];
  const list = h("div", {});
  const fill = (kind, search) => {
    const shown = rows.filter((word) => (kind === "all" || word.kind === kind) && (word.word ?? "").toLowerCase().includes(search.toLowerCase()));
    list.replaceChildren(
      h("p", { class: "note", "data-count": shown.length }, `${count(shown.length, "word")} of ${rows.length}`),
      wordsTable(shown, state, show),
    );
  };
  let [kind, search] = [KINDS[state.kind] ? state.kind : "all", state.q ?? ""];
  const refill = () => (note({ kind, q: search }), fill(kind, search));
  fill(kind, search);
  if (chosen) detail.replaceChildren(wordDetail(study, sae, chosen, mains, state));
  return h(
    "div",
    {},
    section(
      `Class “${state.letter}”, by ${state.rule}`,
      null,
      facts([
        ["rate", row.evaluable ? `${rateText(row)}: ${row.num_absorbed} of ${count(row.num_judged, "judged word")}` : `not evaluable: ${row.reason}`],
        ["held-out words", `${row.num_words}, of which the linear probe sees ${row.num_probe_true_positives}`],
        ["main latents", latentLinks(mains, state)],
        ["tracking latent", latentLinks([row.tracking_latent].filter((latent) => latent >= 0), state)],
      ]),
    ),
    section(
      "Words",
      "A word leads to its evidence.",
      h(
        "div",
        { class: "choices" },
        select("show", Object.keys(KINDS), kind, (value) => ((kind = value), refill()), (value) => KINDS[value]),
        h("label", { class: "choice" }, h("span", {}, "search"), h("input", {
          type: "search", value: search, oninput: (event) => ((search = event.target.value), refill()),
        })),
      ),
      h("div", { class: "split" }, list, detail),
    ),
  );
}

function wordsTable(rows, state, show) {
  return table(
    rows,
    [
      {
        title: "word",
        field: "word",
        show: (row) => h("a", {
          href: address({ ...state, row: row.row, word: row.word }),
          onclick: (event) => (event.preventDefault(), show(row)),
        }, row.word ?? `word ${row.row}`),
      },
      words("verdict", "outcome"),
      numbers("main latents", "main", { hint: "summed activation of the main latents" }),
      {
        title: "first latent",
        field: "top_latent",
        isNumber: true,
        hint: "latent that comes first by the rule's score",
        show: (row) => (isNumber(row.top_latent) ? h("span", {}, latentLinks([row.top_latent], state)) : document.createTextNode("–")),
      },
      numbers("score", "top_score", { hint: "its score" }),
      numbers("next score", "second_score", { hint: "score of the runner-up", isWideOnly: true }),
      numbers("cosine", "top_probe_cos", { hint: "cosine of the first latent with the probe" }),
      numbers("probe", "probe_logit", { hint: "logit of the linear probe", isWideOnly: true }),
    ],
    { height: "55vh", label: "words", sort: "outcome", descending: false },
  );
}

function wordDetail(study, sae, word, mains, state) {
  const fired = (sae.firings ?? []).filter((row) => row.row === word.row).sort((a, b) => Math.abs(b.activation) - Math.abs(a.activation));
  return h(
    "div",
    {},
    h("h3", {}, word.word ?? `word ${word.row}`),
    word.prompt ? h("pre", {}, word.prompt) : null,
    study.about.rules.map((rule) => {
      const verdict = word.verdicts[rule.name];
      return h(
        "div",
        { class: `verdict ${verdict?.is_absorption ? "counts" : ""}` },
        h("h4", {}, `${rule.name}: ${KINDS[outcome(word, rule.name)]}`),
        h("p", {}, verdict ? why(rule, verdict) : unjudged(word, rule)),
        verdict && isNumber(verdict.absorption_fraction) ? h("p", {}, `Fraction: ${number(verdict.absorption_fraction)}.`) : null,
        verdict && evidence(verdict, state),
      );
    }),
    fired.length
      ? [
          h("h4", {}, "Latents that fire here, of those named for this SAE"),
          h("ul", { class: "firings" }, fired.map((row) =>
            h("li", {}, h("a", { href: address({ ...state, view: "latent", latent: row.latent }) }, `latent ${row.latent}`),
              ` ${number(row.activation)}${mains.includes(row.latent) ? " (main)" : ""}`))),
        ]
      : null,
  );
}

function unjudged(word, rule) {
  if (outcome(word, rule.name) === "unseen") return `The linear probe does not see the class: logit ${number(word.probe_logit)}.`;
  return rule.evidence === "gradients"
    ? "Not a candidate: a main latent fires, or the k-sparse probe sees the class, or it was not in the sample."
    : "It was not judged.";
}

const EVIDENCE = {
  main_activation: "main latents, summed",
  top_score: "score of the first",
  second_score: "score of the next",
  top_probe_cos: "cosine of the first",
  probe_projection: "projection on the probe",
  main_projection: "of it, main latents",
  all_projection: "of it, all latents",
  feature_size: "size of the feature",
  own_part: "of it, its own latents",
  others_part: "of it, other latents",
};

function evidence(verdict, state) {
  const latents = [["first latent", verdict.top_latent], ["next latent", verdict.second_latent]]
    .filter(([, latent]) => isNumber(latent) && latent >= 0)
    .map(([title, latent]) => [title, latentLinks([latent], state)]);
  const rest = Object.entries(EVIDENCE).filter(([name]) => isNumber(verdict[name])).map(([name, title]) => [title, number(verdict[name])]);
  return h("details", {}, h("summary", {}, "numbers"), facts([...latents, ...rest]));
}

export function latentLinks(latents, state) {
  return latents.flatMap((latent, at) => [at ? ", " : "", h("a", { href: address({ ...state, view: "latent", latent }) }, latent)]);
}

/** Summed activation of latents by word; missing if the study did not keep it. */
function activations(sae, latents) {
  if (!sae.firings) return () => NaN;
  const sums = new Map();
  for (const row of sae.firings) {
    if (latents.includes(row.latent)) sums.set(row.row, (sums.get(row.row) ?? 0) + row.activation);
  }
  return (row) => sums.get(row) ?? 0;
}
