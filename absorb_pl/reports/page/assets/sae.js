// One SAE: its classes, main latents, probes and thresholds.
import { lettersChart, sensitivityCharts, sparseChart, trainingChart } from "#charts";
import { facts, h, section } from "#dom";
import { count, number, percent, rateText } from "#format";
import { latentLinks } from "#letter";
import { summaryOf } from "#saes";
import { address, go } from "#state";
import { numbers, rates, table, words } from "#tables";

export function saeView(study, sae, state) {
  const row = summaryOf(study, state.rule).find((one) => one.sae === state.sae);
  const letters = study.letters.filter((one) => one.sae === state.sae && one.rule === state.rule);
  const sensitivity = (sae.sensitivity ?? []).filter((one) => one.rule === state.rule);
  return h(
    "div",
    {},
    section(row.short, null, facts([...aboutSae(row), ...howSure(study, row)])),
    section(
      `Classes, by ${state.rule}`,
      "A click on a class shows its words.",
      h(
        "div",
        { class: "chart" },
        lettersChart(letters, { rule: state.rule, pick: (letter) => go({ ...state, view: "letter", letter: letter.label }) }),
      ),
      lettersTable(letters, sae, state),
    ),
    sae.k_sparse
      ? section(
          "F1 against k",
          "How well the best k latents tell each class; a rise behind the first latent is a split.",
          h("div", { class: "chart" }, sparseChart(sae.k_sparse)),
        )
      : null,
    sensitivity.length
      ? section(
          `Thresholds of ${state.rule}`,
          "The rate if one threshold were another; the dashed line is the rule's own value.",
          h("div", { class: "charts" }, sensitivityCharts(sensitivity, { rule: state.rule })),
        )
      : null,
    sae.training?.length > 1
      ? section("Training of the k-sparse probes", null, h("div", { class: "chart" }, trainingChart(sae.training)))
      : null,
  );
}

function aboutSae(row) {
  return [
    [`rate by ${row.rule}`, row.evaluable ? `${rateText(row)} over ${count(row.num_words, "word")}` : `not evaluable: ${row.reason}`],
    ["all words alike", rateText(row, "pooled_rate", ["pooled_ci_low", "pooled_ci_high"])],
    ["fraction", rateText(row, "absorption_fraction", ["fraction_ci_low", "fraction_ci_high"])],
    ["architecture", `${row.architecture}, ${count(row.d_sae, "latent")}${row.control ? `, control: ${row.control}` : ""}`],
    ["reads", row.hook_name],
    ["L0", number(row.l0)],
    ["explained variance", number(row.explained_variance)],
    ["fire on no word", percent(row.dead_fraction)],
    ["hedging", number(row.hedging)],
    ["splits per class", number(row.num_splits)],
    ["probe F1", number(row.probe_f1)],
  ].filter(([, value]) => value !== "–");
}

/** What out-of-sample verdicts and shuffled copies say of the rate, if the study has them. */
function howSure(study, row) {
  const isOf = (one) => one.sae === row.sae && one.rule === row.rule;
  const fitted = (study.crossfit ?? []).find((one) => isOf(one) && one.label === "");
  const shuffled = (study.shuffles ?? []).find((one) => isOf(one) && one.amount === "absorption_rate");
  const beyond = shuffled?.exceeds ? "more than chance" : "no more than chance";
  return [
    ...(fitted ? [["cross-fitted", `${rateText(fitted)}, every word judged out of sample ${count(fitted.repeats, "time")}`]] : []),
    ...(shuffled
      ? [["shuffled copies", `${percent(shuffled.shuffled_mean)}, mean of ${shuffled.copies}: ${beyond}, p ${number(shuffled.p_value)}`]]
      : []),
  ];
}

/** Rows of classes with what the k-sparse probe on the main latents reaches. */
function lettersTable(letters, sae, state) {
  const probes = new Map((sae.k_sparse ?? []).map((row) => [`${row.label}\n${row.k}`, row]));
  const most = Math.max(0.01, ...letters.map((row) => row.ci_high || 0));
  const data = letters.map((row) => {
    const probe = probes.get(`${row.label}\n${row.main_latents?.length}`) ?? {};
    return { ...row, main_precision: probe.precision, main_recall: probe.recall };
  });
  const latents = (row) => h("span", {}, latentLinks(row.main_latents ?? [], { ...state, letter: row.label }));
  return table(
    data,
    [
      words("class", "label", { link: (row) => address({ ...state, view: "letter", letter: row.label }), filter: true }),
      rates("rate", "absorption_rate", { low: "ci_low", high: "ci_high", most }),
      numbers("absorbed", "num_absorbed", { hint: "judged words that count" }),
      numbers("judged", "num_judged", { hint: "words that were judged" }),
      numbers("probe sees", "num_probe_true_positives", { hint: "words on which the linear probe sees the class" }),
      numbers("words", "num_words", { hint: "held-out words of the class" }),
      { title: "main latents", field: "main_latents", show: latents, headerSort: false, hint: "best first" },
      numbers("precision", "main_precision", { hint: "of the k-sparse probe on the main latents" }),
      numbers("recall", "main_recall", { hint: "of the k-sparse probe on the main latents" }),
      numbers("probe F1", "probe_f1", { isWideOnly: true, hint: "of the linear probe" }),
      words("why no rate", "reason", { isWideOnly: true, visible: letters.some((row) => !row.evaluable) }),
    ],
    { sort: "absorption_rate", height: "60vh", label: "classes" },
  );
}
