// Numbers and sentences as the page shows them.

const MISSING = "–";

export const isNumber = (value) => typeof value === "number" && !Number.isNaN(value);

/** A share as a percentage with one decimal. */
export const percent = (share) => (isNumber(share) ? `${(100 * share).toFixed(1)}%` : MISSING);

/** A rate with its interval. */
export const rateText = (row, of = "absorption_rate", ends = ["ci_low", "ci_high"]) =>
  isNumber(row[of]) ? `${percent(row[of])} [${ends.map((end) => (100 * row[end]).toFixed(1)).join(", ")}]` : MISSING;

/** A number with three significant digits; whole numbers stay whole. */
export function number(value) {
  if (!isNumber(value)) return MISSING;
  if (Number.isInteger(value)) return String(value);
  const size = Math.abs(value);
  return size >= 1e-3 && size < 1e5 ? String(Number(value.toPrecision(3))) : value.toExponential(1);
}

/** Percentage points with a sign. */
export const points = (share) => (isNumber(share) ? `${share < 0 ? "−" : "+"}${Math.abs(100 * share).toFixed(1)}` : MISSING);

/** A count with its noun. */
export const count = (amount, noun, plural = `${noun}s`) => `${amount} ${amount === 1 ? noun : plural}`;

/**
 * Why a word counts by a rule or does not: the rule's own sentence, filled with the word's numbers and the rule's settings.
 */
export function why(rule, word) {
  const sentence = rule.sentences[word.is_absorption ? "counted" : word.unmet];
  if (!sentence) return word.is_absorption ? "It counts." : "It does not count.";
  return sentence.replace(/\{([\w.]+)\}/g, (_, name) =>
    number(name.startsWith("settings.") ? rule.settings[name.slice(9)] : word[name]),
  );
}
