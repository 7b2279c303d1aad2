"""Comparing the SAEs of finished studies, paired on the words and splits that they share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from absorb_pl.data.drafts import user_path
from absorb_pl.errors import AbsorbError, RuleError, SaeNotFoundError
from absorb_pl.evaluators.writers import write_table
from absorb_pl.functional.intervals import combine_repeats, design_effect, letter_variance
from absorb_pl.functional.paired import holm, sign_flip_test, smallest_difference
from absorb_pl.models.closest import closest_names
from absorb_pl.models.language_model import full_name
from absorb_pl.ranges import InnerFraction, check_ranges
from absorb_pl.reports.comparison_table import comparison_figure, print_comparison, print_power
from absorb_pl.reports.figures import save_figures
from absorb_pl.study.finished import settings_of_run
from absorb_pl.study.page import make_page

_SHARED = ("task", "test_fraction", "seed", "crossfit", "splits", "rates", "activation_dtype", "model_dtype")
"""Settings that two studies must share for their SAEs to be compared."""


_NEEDED = ("words", "letters", "crossfit_words", "crossfit_letters", "crossfit")
_OF_LETTERS = ["sae", "rule", "label"]
_COUNTS = ["repeat", "num_probe_true_positives", "sample_portion"]


@dataclass(frozen=True)
class FinishedStudy:
    """The verdicts of a finished study.

    Attributes:
        config: Its settings.
        words: Verdicts: `sae, rule, repeat, row, label, is_absorption, top_latent`; of the cross-fit if there is one.
        letters: Which classes count for each SAE and rule, and what their rates are over:
            `sae, rule, label, evaluable, repeat, num_probe_true_positives, sample_portion`.
    """

    config: Mapping[str, Any]
    words: pd.DataFrame
    letters: pd.DataFrame
    _found: dict[tuple[str, str], "_Judged"] = field(default_factory=dict, repr=False)

    @classmethod
    def read(cls, run_dir: str | Path) -> "FinishedStudy":
        """Read what a study wrote.

        Args:
            run_dir: Its run folder.

        Raises:
            CacheCorruptedError: The folder holds no finished study, or its report was cut short.
        """
        folder = user_path(run_dir)
        crossfitted = (folder / "tables/crossfit_words.parquet").is_file()
        config = settings_of_run(folder, ("words", "letters", *(("crossfit_letters",) if crossfitted else ())))
        files = {name: folder / "tables" / f"{name}.parquet" for name in _NEEDED}
        return cls.of(config, {name: pd.read_parquet(file) for name, file in files.items() if file.is_file()})

    @classmethod
    def of(cls, config: Mapping[str, Any], tables: Mapping[str, pd.DataFrame]) -> "FinishedStudy":
        """Take what a study found.

        Args:
            config: Its settings.
            tables: `words` and `letters`, or `crossfit_words`, `crossfit_letters` and `crossfit`, which count if they
                are there.
        """
        if "crossfit_words" in tables:
            counted = tables["crossfit_letters"][[*_OF_LETTERS, *_COUNTS]]
            evaluable = tables["crossfit"][[*_OF_LETTERS, "evaluable"]]
            return cls(config, tables["crossfit_words"], counted.merge(evaluable, on=_OF_LETTERS))
        letters = tables["letters"].assign(repeat=0)[[*_OF_LETTERS, *_COUNTS, "evaluable"]]
        return cls(config, tables["words"].assign(repeat=0), letters)

    def judged(self, rule: str, sae: str) -> "_Judged":
        """What a rule said of an SAE."""
        if (rule, sae) not in self._found:
            self._found[rule, sae] = _judged(self, rule, sae)
        return self._found[rule, sae]


def compare_saes(
    run_dir: str | Path,
    other_run_dir: str | Path | None = None,
    *,
    rule: str | None = None,
    saes: Sequence[str] = (),
    confidence: InnerFraction = 0.95,
) -> pd.DataFrame:
    """Compare the rates of SAEs on the words that they share.

    A difference is the mean over letters of rate A − rate B, by repeat if the study was cross-fitted. Its p-value is
    that of signs flipped letter by letter, and Holm's over all pairs and rules; its interval rests on the differences
    word by word, and on how many words the absorbers of either SAE share.

    Args:
        run_dir: The run folder of a finished study.
        other_run_dir: That of another study of the same words and splits; its SAEs are compared with the first's.
        rule: The rule; all that were judged when None.
        saes: SAEs to compare, all with one another; all of the study when empty.
        confidence: Level of the intervals.

    Returns:
        The columns of `absorb_pl.schema.COMPARISON`: one row per rule and pair, and one per class of each.

    Raises:
        AbsorbError: The studies differ in what decides words, splits or verdicts; says in what.
        SaeNotFoundError: An SAE is not in the study.
        RuleError: The rule is not.
        CacheCorruptedError: A folder holds no finished study.
    """
    check_ranges(compare_saes, locals())
    first = FinishedStudy.read(run_dir)
    second = first if other_run_dir is None else FinishedStudy.read(other_run_dir)
    return compare_studies(first, second, rule=rule, saes=saes, confidence=confidence)


def compare_studies(
    first: FinishedStudy, second: FinishedStudy, *, rule: str | None, saes: Sequence[str], confidence: float
) -> pd.DataFrame:
    """Compare the SAEs of two studies, or of one with one another if both are the same object.

    Args:
        first: A study.
        second: Another, or the same.
        rule: The rule; all that were judged when None.
        saes: SAEs to compare; all when empty.
        confidence: Level of the intervals.

    Returns:
        The table of `compare_saes`, whose errors it raises.
    """
    _require_alike(first, second)
    rules = _rules(first, second, rule)
    pairs = _pairs(first, second, saes, same=first is second)
    rows: list[dict[str, Any]] = []
    for name in rules:
        for a, b in pairs:
            rows += _compared(first, second, name, a, b, confidence)
    table = pd.DataFrame(rows)
    whole = table["label"] == ""
    table.loc[whole, "p_holm"] = holm(table.loc[whole, "p_value"].tolist())
    return table


def print_comparisons(
    run_dir: str | Path,
    other_run_dir: str | Path | None = None,
    rule: str | None = None,
    saes: Sequence[str] = (),
    confidence: InnerFraction = 0.95,
) -> pd.DataFrame:
    """Compare SAEs, print a line per pair, and write `comparison.parquet` and `.png` into the run folder.

    The page of the run then shows the intervals; for two runs, `comparison.html` shows both. See `compare_saes`.
    """
    table = compare_saes(run_dir, other_run_dir, rule=rule, saes=saes, confidence=confidence)
    file = user_path(run_dir) / "comparison.parquet"
    write_table(table, file)
    save_figures({"comparison": comparison_figure(table)}, user_path(run_dir))
    page = make_page(run_dir, other_run_dir)
    print_comparison(table, file, page)
    return table


def print_resolution(run_dir: str | Path, power: InnerFraction = 0.8, confidence: InnerFraction = 0.95) -> pd.DataFrame:
    """Print what difference the words of a finished study can tell, for each rule and SAE.

    Args:
        run_dir: The run folder of a finished study.
        power: How often the difference should be found.
        confidence: Two-sided level of the test.

    Returns:
        The columns of `absorb_pl.schema.POWER`.

    Raises:
        CacheCorruptedError: The folder holds no finished study.
    """
    check_ranges(print_resolution, locals())
    folder = user_path(run_dir)
    settings_of_run(folder, ("summary",))
    summary = pd.read_parquet(folder / "tables/summary.parquet")
    rows = []
    for row in summary[summary["evaluable"]].to_dict("records"):
        words, absorbers = float(row["se_words"]) ** 2, float(row["se_absorbers"]) ** 2
        effect = 1 + absorbers / words if words else 1.0
        rate = float(row["pooled_rate"])
        rows.append(
            {
                "sae": row["sae"],
                "rule": row["rule"],
                "rate": rate,
                "num_words": row["num_words"],
                "design_effect": effect,
                "smallest_difference": smallest_difference(
                    row["num_words"], rate, effect=effect, confidence=confidence, power=power
                ),
            }
        )
    table = pd.DataFrame(rows)
    print_power(table, power, confidence)
    return table


def _require_alike(first: FinishedStudy, second: FinishedStudy) -> None:
    for name in _SHARED:
        ours, theirs = first.config.get(name), second.config.get(name)
        if ours != theirs:
            raise AbsorbError(
                name,
                theirs,
                expected=f"{ours}, as in the first study: otherwise words, splits or verdicts are others",
                remedy="Run one of the studies again with the settings of the other.",
            )
    if len({full_name(str(study.config.get("model"))) for study in (first, second)}) > 1:
        raise AbsorbError(
            "model",
            second.config.get("model"),
            expected=f"{first.config.get('model')}, the model of the first study",
            remedy="Compare SAEs of one model.",
        )


def _rules(first: FinishedStudy, second: FinishedStudy, rule: str | None) -> list[str]:
    settings = [study.config["rules"] for study in (first, second)]
    judged = [set(study.words["rule"].unique()) for study in (first, second)]
    shared = [
        name for name in settings[0] if name in judged[0] & judged[1] and settings[1].get(name) == settings[0][name]
    ]
    if rule is not None and rule not in shared:
        raise RuleError(
            "rule",
            rule,
            expected=f"a rule that judged both with the same settings: {', '.join(shared) or 'there is none'}",
            remedy="Run the study again with it among its rules.",
        )
    if not shared:
        raise RuleError(
            "rule", sorted(judged[0] | judged[1]), expected="a rule that judged both", remedy="Judge both by one rule."
        )
    return [rule] if rule is not None else shared


def _pairs(first: FinishedStudy, second: FinishedStudy, asked: Sequence[str], *, same: bool) -> list[tuple[str, str]]:
    names = [list(dict.fromkeys(study.letters["sae"])) for study in (first, second)]
    known = [*names[0], *(() if same else names[1])]
    for name in asked:
        if name not in known:
            raise SaeNotFoundError(
                "saes", name, expected="an SAE of the study", remedy=f"Nearest: {closest_names(name, known)}."
            )
    kept = [[name for name in group if not asked or name in asked] for group in names]
    pairs = list(combinations(kept[0], 2)) if same else [(a, b) for a in kept[0] for b in kept[1]]
    if not pairs:
        raise SaeNotFoundError(
            "saes", list(asked), expected="two SAEs to compare", remedy="Name two, or none for all of the study."
        )
    return pairs


def _compared(
    first: FinishedStudy, second: FinishedStudy, rule: str, a: str, b: str, confidence: float
) -> list[dict[str, Any]]:
    """The difference of two SAEs over all classes and in each."""
    judged = [study.judged(rule, sae) for study, sae in ((first, a), (second, b))]
    by_letter = [one.letters for one in judged]
    letters = [label for label in by_letter[0] if label in by_letter[1]]
    about = {"rule": rule, "a": a, "b": b}
    if not letters:
        empty = dict.fromkeys(("rate_a", "rate_b", "difference", "ci_low", "ci_high"), float("nan"))
        return [{**about, "label": "", "letters": 0, **empty, "p_value": 1.0, "p_holm": 1.0}]
    repeats = sorted(by_letter[0][letters[0]])
    effect = max(one.effect for one in judged)
    found, differences, variances = [], np.zeros((len(letters), len(repeats))), np.zeros((len(letters), len(repeats)))
    for place, label in enumerate(letters):
        sides = [[rates[label][repeat] for repeat in repeats] for rates in by_letter]
        for number, (left, right) in enumerate(zip(*sides, strict=True)):
            differences[place, number], variance = _paired(left, right)
            variances[place, number] = effect * variance
        means = [float(np.mean([each.rate for each in side])) for side in sides]
        found.append(_row(about, label, 1, means, differences[place], variances[place], confidence))
    of_letters = differences.mean(axis=1)
    means = [float(np.mean([row[side] for row in found])) for side in ("rate_a", "rate_b")]
    whole = _row(
        about,
        "",
        len(letters),
        means,
        differences.mean(axis=0),
        variances.sum(axis=0) / len(letters) ** 2,
        confidence,
    )
    return [{**whole, "p_value": sign_flip_test(of_letters.tolist())}, *found]


def _row(
    about: Mapping[str, Any],
    label: str,
    letters: int,
    means: Sequence[float],
    differences: np.ndarray,
    variances: np.ndarray,
    confidence: float,
) -> dict[str, Any]:
    mean, variance, quantile = combine_repeats(differences.tolist(), variances.tolist(), confidence)
    reach = quantile * variance**0.5
    return {
        **about,
        "label": label,
        "letters": letters,
        "rate_a": means[0],
        "rate_b": means[1],
        "difference": mean,
        "ci_low": mean - reach,
        "ci_high": mean + reach,
        "p_value": float("nan"),
        "p_holm": float("nan"),
    }


@dataclass(frozen=True)
class _Letter:
    """What was judged of one class in one repeat; words that the probe sees and that were not judged count 0."""

    rows: np.ndarray
    absorbed: np.ndarray
    total: int
    portion: float

    @property
    def rate(self) -> float:
        return float(self.absorbed.sum()) / self.portion / self.total


@dataclass(frozen=True)
class _Judged:
    """Verdicts of a rule on an SAE by class and repeat, and the design effect of its shared absorbers."""

    letters: dict[str, dict[int, _Letter]]
    effect: float


def _judged(study: FinishedStudy, rule: str, sae: str) -> _Judged:
    letters = study.letters[
        (study.letters["sae"] == sae) & (study.letters["rule"] == rule) & study.letters["evaluable"]
    ]
    words = study.words[(study.words["sae"] == sae) & (study.words["rule"] == rule)]
    judged = {key: (own["row"].to_numpy(), own["is_absorption"].to_numpy(float)) for key, own in _by_letter(words)}
    nothing = np.zeros(0, dtype=int), np.zeros(0)
    found: dict[str, dict[int, _Letter]] = {}
    for label, repeat, total, portion in letters[["label", *_COUNTS]].itertuples(index=False, name=None):
        if total:
            found.setdefault(label, {})[repeat] = _Letter(*judged.get((label, repeat), nothing), total, portion)
    absorbers = [torch.tensor(own["top_latent"].to_numpy(int)) for _, own in _by_letter(words[words["is_absorption"]])]
    return _Judged(found, design_effect(absorbers))


def _by_letter(words: pd.DataFrame) -> Any:
    return words.groupby(["label", "repeat"])


def _paired(left: _Letter, right: _Letter) -> tuple[float, float]:
    """Difference of two rates, and its variance: word by word if both judged all of the same words."""
    difference = left.rate - right.rate
    if left.total != right.total or left.portion < 1 or right.portion < 1:
        alone = [letter_variance(torch.tensor(side.absorbed), side.total, side.portion) for side in (left, right)]
        return difference, sum(each.words + each.sampling for each in alone)
    rows, total = np.union1d(left.rows, right.rows), left.total
    of_words = np.zeros(len(rows))
    for side, sign in ((left, 1.0), (right, -1.0)):
        of_words[np.searchsorted(rows, side.rows)] += sign * side.absorbed
    squares = float((of_words**2).sum()) / total - difference**2
    return difference, max(0.0, squares) / max(total - 1, 1)
