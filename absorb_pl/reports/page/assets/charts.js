// Charts, drawn by Observable Plot. Every one says what it shows of which rule, and a table beside it has its numbers.
/* global Plot, d3 */
import { isNumber, percent, rateText } from "#format";

// Okabe and Ito's colours, which people with colour-blindness tell apart; symbols say the same once more.
const COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31", "#777777"];
const LOG = new Set(["l0", "d_sae"]);
const SOME_KS = [1, 2, 3, 5, 10, 20, 50];

function plot(label, options) {
  const width = Math.max(280, Math.min(960, document.documentElement.clientWidth - 48));
  const style = { background: "none", fontSize: "13px" };
  const drawn = Plot.plot({ width, marginLeft: 52, marginBottom: 44, style, ...options });
  drawn.setAttribute("role", "img");
  drawn.setAttribute("aria-label", label);
  return drawn;
}

const shares = (label) => ({ label, tickFormat: (share) => `${Math.round(1000 * share) / 10}%`, grid: true, zero: true });

const hasLongLabels = (rows) => d3.max(rows, (row) => row.label.length) > 3;
const classAxis = (rows) => ({ label: null, domain: rows.map((row) => row.label), tickRotate: hasLongLabels(rows) ? -40 : 0 });

/** A chart of which a click picks what the pointer is at. */
function picking(drawn, pick) {
  drawn.classList.add("picks");
  drawn.addEventListener("click", () => drawn.value && pick(drawn.value));
  return drawn;
}

/** Rates with intervals against a property of the SAEs; a click picks one. */
export function ratesChart(rows, { x, label, rule, pick }) {
  const shown = rows.filter((row) => isNumber(row.absorption_rate) && isNumber(row[x]));
  if (!shown.length) return document.createTextNode("No SAE has a rate here.");
  const isLog = LOG.has(x) && shown.every((row) => row[x] > 0);
  const kind = { stroke: "architecture", symbol: "architecture" };
  const drawn = plot(`Absorption rate by ${rule} against ${label}`, {
    height: 340,
    x: { label, type: isLog ? "log" : "linear", base: isLog ? 2 : undefined, nice: !isLog, inset: 12, tickFormat: isLog ? (value) => String(value) : undefined },
    y: shares(`absorption rate by ${rule}, 95 % interval`),
    color: { range: COLOURS },
    symbol: { legend: true },
    marks: [
      Plot.ruleX(shown, { x, y1: "ci_low", y2: "ci_high", stroke: "architecture", strokeOpacity: 0.6 }),
      Plot.dot(shown, { x, y: "absorption_rate", r: 5, strokeWidth: 2, ...kind }),
      Plot.tip(
        shown,
        Plot.pointer({ x, y: "absorption_rate", title: (row) => `${row.short}\n${rateText(row)}\n${label}: ${row[x]}` }),
      ),
    ],
  });
  return picking(drawn, pick);
}

/** Rate of each class with its interval. */
export function lettersChart(rows, { rule, pick }) {
  const shown = rows.filter((row) => isNumber(row.absorption_rate));
  if (!shown.length) return document.createTextNode("No class has a rate by this rule.");
  const drawn = plot(`Absorption rate of each class by ${rule}`, {
    height: 260,
    x: classAxis(rows),
    y: shares(`absorption rate by ${rule}, 95 % interval`),
    marginBottom: hasLongLabels(rows) ? 90 : 30,
    marks: [
      Plot.ruleX(shown, { x: "label", y1: "ci_low", y2: "ci_high", strokeWidth: 2, strokeOpacity: 0.45 }),
      Plot.dot(shown, { x: "label", y: "absorption_rate", r: 4, fill: COLOURS[0] }),
      Plot.tip(
        shown,
        Plot.pointerX({
          x: "label",
          y: "absorption_rate",
          title: (row) => `${row.label}: ${rateText(row)}\nof ${row.num_probe_true_positives} words`,
        }),
      ),
    ],
  });
  return picking(drawn, pick);
}

/** F1 of k-sparse probes against k: a line per class, and their mean. */
export function sparseChart(rows) {
  const mean = d3.rollups(rows, (group) => d3.mean(group, (row) => row.f1), (row) => row.k).map(([k, f1]) => ({ k, f1 }));
  return plot("F1 of k-sparse probes against k", {
    height: 260,
    x: { label: "k, latents of the probe", type: "log", ticks: SOME_KS, tickFormat: "d" },
    y: { label: "F1 on held-out words", domain: [0, 1], grid: true },
    marks: [
      Plot.line(rows, { x: "k", y: "f1", z: "label", strokeOpacity: 0.22 }),
      Plot.line(mean, { x: "k", y: "f1", strokeWidth: 3, stroke: COLOURS[0] }),
      Plot.text(mean.slice(-1), { x: "k", y: "f1", text: () => "mean", dx: 6, textAnchor: "start", fill: COLOURS[0] }),
      Plot.tip(rows, Plot.pointer({ x: "k", y: "f1", title: (row) => `${row.label}, k = ${row.k}: F1 ${row.f1.toFixed(3)}` })),
    ],
    marginRight: 48,
  });
}

/** Rates against each threshold of a rule; the rule's own value is marked. */
export function sensitivityCharts(rows, { rule }) {
  return d3.groups(rows, (row) => row.threshold).map(([threshold, group]) =>
    plot(`Rate by ${rule} against ${threshold}`, {
      width: 300,
      height: 190,
      x: { label: threshold },
      y: shares("absorption rate"),
      marks: [
        Plot.line(group, { x: "value", y: "absorption_rate", stroke: COLOURS[0], marker: "circle" }),
        Plot.ruleX(group.filter((row) => row.is_default), { x: "value", strokeDasharray: "4 3" }),
        Plot.tip(group, Plot.pointerX({ x: "value", y: "absorption_rate", title: (row) => `${row.value}: ${percent(row.absorption_rate)}` })),
      ],
    }),
  );
}

/** Training loss against epochs. */
export function trainingChart(rows) {
  return plot("Training loss of the ranking probe", {
    height: 190,
    x: { label: "epoch", tickFormat: "d" },
    y: { label: "training loss", grid: true },
    marks: [Plot.line(rows, { x: "epoch", y: "train/loss", stroke: COLOURS[0] })],
  });
}

/** Differences between two SAEs, class by class. */
export function differenceChart(rows, { rule, names }) {
  const short = ["first", "second"];
  return plot(`Rates of both SAEs by ${rule}`, {
    height: 280,
    x: classAxis(rows),
    y: shares(`absorption rate by ${rule}`),
    color: { domain: short, range: COLOURS, legend: true, tickFormat: (one) => names[short.indexOf(one)] },
    marks: [
      Plot.ruleX(rows, { x: "label", y1: "first", y2: "second", strokeOpacity: 0.4 }),
      ...short.map((one) => Plot.dot(rows, { x: "label", y: one, fill: () => one, r: 4 })),
    ],
  });
}

/** How many words of each class a latent fires on. */
export function firingChart(rows) {
  return plot("Words on which the latent fires, by class", {
    height: 200,
    x: { label: null },
    y: { label: "held-out words on which it fires", grid: true, interval: 1 },
    marks: [Plot.barY(rows, { x: "label", y: "fired", fill: COLOURS[0], tip: true }), Plot.ruleY([0])],
  });
}
