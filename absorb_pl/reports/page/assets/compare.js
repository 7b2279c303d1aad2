// Two SAEs side by side: differences of rates, and the words on which verdicts differ.
import { differenceChart } from "#charts";
import { facts, h, prose, section, select } from "#dom";
import { count, isNumber, number, points, rateText } from "#format";
import { KINDS, outcome, wordsOf } from "#letter";
import { summaryOf } from "#saes";
import { address, go } from "#state";
import { numbers, table, words } from "#tables";

export async function compareView(study, read, state) {
  const rows = summaryOf(study, state.rule);
  const names = rows.map((row) => row.sae);
  const first = names.includes(state.sae) ? state.sae : names[0];
  const second = names.includes(state.other) && state.other !== first ? state.other : (names.find((name) => name !== first) ?? first);
  const short = (name) => rows.find((row) => row.sae === name).short;
  const pair = [first, second];
  const chosen = h(
    "div",
    { class: "choices" },
    select("first", names, first, (sae) => go({ ...state, sae, other: second }), short),
    select("second", names, second, (other) => go({ ...state, sae: first, other }), short),
  );
  if (first === second) return h("div", {}, section("Compare", "There is one SAE alone."));
  const found = pair.map((name) => rows.find((row) => row.sae === name));
  const letters = lettersOf(study, pair, state.rule);
  const differing = await differences(study, read, pair, state.rule);
  return h(
    "div",
    {},
    section(
      `Compare two SAEs by ${state.rule}`,
      null,
      chosen,
      facts([
        [found[0].short, rateText(found[0])],
        [found[1].short, rateText(found[1])],
        ["difference, points", difference(study, found, state.rule)],
        ["verdicts differ on", count(differing.length, "word")],
      ]),
    ),
    section("Classes", null, h("div", { class: "chart" }, differenceChart(letters, { rule: state.rule, names: found.map((row) => row.short) }))),
    section(
      "Words on which they differ",
      null,
      table(
        differing,
        [
          words("word", "word", { filter: true, link: (row) => address({ view: "letter", sae: first, rule: state.rule, letter: row.label, row: row.row, word: row.word }) }),
          words("class", "label", { filter: true }),
          words(found[0].short, "first"),
          numbers("first latent", "firstLatent", { isWideOnly: true }),
          words(found[1].short, "second"),
          numbers("first latent", "secondLatent", { isWideOnly: true }),
        ],
        { sort: "label", descending: false, height: "55vh", label: "words on which verdicts differ" },
      ),
    ),
  );
}

/** The difference of two rates; with its interval if the study's SAEs were compared. */
function difference(study, [a, b], rule) {
  if (!isNumber(a.absorption_rate) || !isNumber(b.absorption_rate)) return "unknown, as a rate is missing";
  const row = (study.comparison ?? []).find(
    (one) => one.rule === rule && one.label === "" && [one.a, one.b].includes(a.sae) && [one.a, one.b].includes(b.sae),
  );
  if (!row) return prose(`${points(a.absorption_rate - b.absorption_rate)} (no interval: \`absorb-pl compare\` of this run adds it)`);
  const sign = row.a === a.sae ? 1 : -1;
  const ends = [sign * row.ci_low, sign * row.ci_high].sort((one, other) => one - other);
  return `${points(sign * row.difference)} [${ends.map(points).join(", ")}], p ${number(row.p_value)}, for all pairs ${number(row.p_holm)}`;
}

function lettersOf(study, [a, b], rule) {
  const of = (sae) => new Map(study.letters.filter((row) => row.sae === sae && row.rule === rule).map((row) => [row.label, row.absorption_rate]));
  const [first, second] = [of(a), of(b)];
  return [...first.keys()].filter((label) => second.has(label)).map((label) => ({ label, first: first.get(label), second: second.get(label) }));
}

async function differences(study, read, pair, rule) {
  const [first, second] = await Promise.all(pair.map(read));
  const hooks = pair.map((name) => study.letters.find((row) => row.sae === name).hook_name);
  return [...new Set(study.letters.map((row) => row.label))].flatMap((letter) => {
    const words = [first, second].map((sae, at) => {
      const found = wordsOf(study, sae, letter, hooks[at]);
      return new Map(found.map((word) => [word.row, word]));
    });
    return [...words[0].values()]
      .filter((word) => words[1].has(word.row))
      .map((word) => ({ word, other: words[1].get(word.row) }))
      .filter(({ word, other }) => (outcome(word, rule) === "absorbed") !== (outcome(other, rule) === "absorbed"))
      .map(({ word, other }) => ({
        row: word.row,
        word: word.word,
        label: letter,
        first: KINDS[outcome(word, rule)],
        second: KINDS[outcome(other, rule)],
        firstLatent: word.verdicts[rule]?.top_latent,
        secondLatent: other.verdicts[rule]?.top_latent,
      }));
  });
}
