// All SAEs: a chart and a table, for every rule side by side.
import { ratesChart } from "#charts";
import { h, section, select } from "#dom";
import { count, isNumber, percent } from "#format";
import { address, go, note } from "#state";
import { numbers, rates, table, words } from "#tables";

const PROPERTIES = {
  l0: "L0, latents that fire per word",
  explained_variance: "explained variance",
  layer: "layer",
  d_sae: "width, latents",
  dead_fraction: "share of latents that fire on no word",
  hedging: "degree of hedging",
  num_splits: "splits, further main latents per class",
};

/** The rows of a rule's summary, each with the SAE's short name. */
export function summaryOf(study, rule) {
  const short = new Map(study.about.saes.map((sae) => [sae.name, sae.short]));
  return study.summary.filter((row) => row.rule === rule).map((row) => ({ ...row, short: short.get(row.sae) }));
}

export function saesView(study, state) {
  const rows = summaryOf(study, state.rule);
  const usable = Object.keys(PROPERTIES).filter((name) => new Set(rows.map((row) => row[name])).size > 1);
  const x = usable.includes(state.x) ? state.x : (usable[0] ?? "l0");
  const chart = h("div", { class: "chart" });
  const draw = (property) =>
    chart.replaceChildren(
      ratesChart(rows, {
        x: property,
        label: PROPERTIES[property],
        rule: state.rule,
        pick: (row) => go({ view: "sae", sae: row.sae, rule: state.rule }),
      }),
    );
  draw(x);
  return h(
    "div",
    {},
    section(
      `Absorption rate by ${state.rule}`,
      headline(study, rows),
      usable.length > 1 &&
        select("against", usable, x, (chosen) => (note({ x: chosen }), draw(chosen)), (name) => PROPERTIES[name]),
      chart,
    ),
    section(
      "SAEs",
      "A bar is the rate, its line the 95 % interval. A name leads to the SAE; a click on a title sorts.",
      summaryTable(study, rows, state),
    ),
  );
}

/** What a reader should know before any number. */
function headline(study, rows) {
  const unknown = study.letters.filter((row) => row.rule === rows[0]?.rule && !row.evaluable);
  const without = rows.filter((row) => !row.evaluable).length;
  const controls = rows.filter((row) => row.control).length;
  const seen = rows.find((row) => isNumber(row.num_words));
  return [
    seen ? `Mean over classes of the share of words that were absorbed, of about ${count(seen.num_words, "word")} on which a linear probe sees the class.` : "",
    controls ? `${count(controls, "control")} among them.` : "There are no controls: `controls` of a study adds them.",
    without ? `${count(without, "SAE")} without a rate.` : "",
    unknown.length ? `${count(unknown.length, "class of an SAE", "classes of SAEs")} could not be judged; the SAE's own page says why.` : "",
  ].join(" ");
}

function summaryTable(study, rows, state) {
  const names = study.about.rules.map((rule) => rule.name);
  const by = new Map(study.summary.map((row) => [`${row.sae}\n${row.rule}`, row]));
  const most = Math.max(0.01, ...study.summary.map((row) => (isNumber(row.ci_high) ? row.ci_high : 0)));
  const data = rows.map((row) => {
    const wide = { ...row };
    names.forEach((rule, at) => {
      const found = by.get(`${row.sae}\n${rule}`) ?? {};
      Object.assign(wide, { [`rate${at}`]: found.absorption_rate, [`low${at}`]: found.ci_low, [`high${at}`]: found.ci_high });
    });
    return wide;
  });
  return table(
    data,
    [
      words("SAE", "short", { link: (row) => address({ view: "sae", sae: row.sae, rule: state.rule }), filter: true, frozen: true }),
      ...names.map((rule, at) => rates(rule, `rate${at}`, { low: `low${at}`, high: `high${at}`, most })),
      numbers("L0", "l0", { hint: "latents that fire per held-out word" }),
      numbers("expl. var.", "explained_variance", { hint: "share of the variance that is reconstructed" }),
      numbers("splits", "num_splits", { hint: "further main latents per class" }),
      numbers("dead", "dead_fraction", { show: percent, hint: "latents that fire on no held-out word", isWideOnly: true }),
      numbers("hedging", "hedging", { hint: "degree, as its training measured it", isWideOnly: true, visible: rows.some((row) => isNumber(row.hedging)) }),
      numbers("main recall", "main_latent_recall", { hint: "share of words on which a main latent fires", isWideOnly: true }),
      numbers("probe F1", "probe_f1", { hint: "of the linear probe: the ceiling", isWideOnly: true }),
      numbers("n", "num_words", { hint: "words of the rate" }),
      numbers("width", "d_sae", { isWideOnly: true }),
      words("architecture", "architecture", { filter: true, isWideOnly: true }),
      words("hook", "hook_name", { filter: true, isWideOnly: true }),
      words("control", "control", { isWideOnly: true, visible: rows.some((row) => row.control) }),
    ],
    { sort: `rate${names.indexOf(state.rule)}`, height: "60vh", label: "SAEs" },
  );
}
