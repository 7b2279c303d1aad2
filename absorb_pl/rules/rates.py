"""From verdicts on words to rates per letter and per SAE, each with its interval."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch

from absorb_pl.functional.rates import LetterOutcome, LettersMode, Rate, letter_rate, sae_rate
from absorb_pl.ranges import Fraction, InnerFraction, check_ranges

NO_WORDS = "no held-out words"
WEAK_MAIN_F1 = 0.5
"""F1 below which a class's main latents do not tell it, and say little about what it lost."""
FRACTION_COLUMNS = {"absorption_fraction": "value", "fraction_ci_low": "ci_low", "fraction_ci_high": "ci_high"}


@dataclass(frozen=True)
class RateSettings:
    """How rates are summed up.

    Attributes:
        letters: `counted` counts letters without candidate words as 0; `published` leaves them out.
        min_probe_f1: Least F1 of the linear probe at which a letter can be evaluated.
        confidence: Level of the intervals; 95 % is 0.95.
    """

    letters: LettersMode = "counted"
    min_probe_f1: Fraction = 0.6
    confidence: InnerFraction = 0.95

    def __post_init__(self) -> None:
        check_ranges(RateSettings, vars(self))


def letters_table(
    letters: pd.DataFrame,
    words: pd.DataFrame,
    rule: str,
    settings: RateSettings,
    class_names: Sequence[str] = (),
) -> pd.DataFrame:
    """Add the absorption rates of one SAE to its table of letters.

    Args:
        letters: From `evaluate_sae`.
        words: Verdicts on its candidate words: `label, is_absorption`, and `absorption_fraction` if there is one.
        rule: Name of the rule that gave them.
        settings: How rates are summed up.
        class_names: All classes of the task; those missing from `letters` get a row that says why.

    Returns:
        `letters` with the columns of `absorb_pl.schema.FOUND_BY_RULE`; rates are missing if they are not evaluable,
        fractions also where the rule gives none.
    """
    judged = words.groupby("label")["is_absorption"].agg(["size", "sum"]).reindex(letters["label"], fill_value=0)
    table = letters.assign(
        rule=rule,
        num_judged=judged["size"].to_numpy(int),
        num_absorbed=judged["sum"].to_numpy(int),
        sum_fraction=_sum_fraction(letters, words),
        **_rates_by(
            _outcomes_by_amount(letters, words, settings),
            settings,
            lambda outcomes, **how: [letter_rate(one, **how) for one in outcomes],
        ),
    )
    counts = [name for name in map(str, table) if name.startswith("num_") and name != "num_splits"]
    absent = [
        {"label": name, "main_latents": [], "rule": rule, "evaluable": False, "reason": NO_WORDS}
        | {**dict.fromkeys(counts, 0), "sae_fires": _sae_fires(letters)}
        for name in class_names
        if name not in set(letters["label"])
    ]
    return pd.concat([table, pd.DataFrame(absent)], ignore_index=True) if absent else table


def summary_row(
    letters: pd.DataFrame, words: pd.DataFrame, latents: pd.DataFrame, settings: RateSettings
) -> dict[str, Any]:
    """The figures of one SAE and rule: means over letters, and the SAE's rates with their intervals.

    Args:
        letters: From `evaluate_sae` or `letters_table`.
        words: Verdicts on its candidate words: `label, is_absorption`, and `absorption_fraction` if there is one.
        latents: From `latent_table`.
        settings: How rates are summed up.
    """
    top = latents[latents["rank"] == 0]
    return {
        **{f"probe_{name}": letters[f"probe_{name}"].mean() for name in ("f1", "precision", "recall")},
        **{f"top_latent_{name}": top[name].mean() for name in ("f1", "precision", "recall")},
        "main_latent_recall": letters["main_latent_recall"].mean(),
        "num_splits": letters["num_splits"].mean(),
        "weak_mains": int((letters["main_f1"] < WEAK_MAIN_F1).sum()) if "main_f1" in letters else 0,
        **sae_rates(letters, words, settings),
    }


def sae_rates(letters: pd.DataFrame, words: pd.DataFrame, settings: RateSettings) -> dict[str, Any]:
    """The rates of one SAE by one rule, with their intervals.

    Args:
        letters: From `evaluate_sae` or `letters_table`.
        words: Verdicts on its candidate words, as for `summary_row`.
        settings: How rates are summed up.
    """
    sizes: list[int] = []

    def of_sae(outcomes: list[LetterOutcome], **how: Any) -> list[Rate]:
        rate = sae_rate(outcomes, mode=settings.letters, **how)
        sizes.append(rate.num_words)
        return [rate]

    outcomes = _outcomes_by_amount(letters, words, settings)
    found = {name: values[0] for name, values in _rates_by(outcomes, settings, of_sae).items()}
    full = outcomes["is_absorption"]
    pooled = sae_rate(full, mode=settings.letters, confidence=settings.confidence, pooled=True)
    return {
        **found,
        "pooled_rate": pooled.value,
        "pooled_ci_low": pooled.ci_low,
        "pooled_ci_high": pooled.ci_high,
        "num_words": sizes[0],
    }


def full_rate(letters: pd.DataFrame, words: pd.DataFrame, settings: RateSettings) -> Rate:
    """The absorption rate of one SAE by one rule.

    Args:
        letters: From `evaluate_sae` or `letters_table`.
        words: Verdicts on its candidate words: `label, is_absorption`.
        settings: How rates are summed up.
    """
    outcomes = outcomes_of(letters, words, "is_absorption", settings)
    return sae_rate(outcomes, mode=settings.letters, confidence=settings.confidence)


def _outcomes_by_amount(
    letters: pd.DataFrame, words: pd.DataFrame, settings: RateSettings
) -> dict[str, list[LetterOutcome]]:
    amounts = [name for name in ("is_absorption", "absorption_fraction") if name in words]
    return {name: outcomes_of(letters, words, name, settings) for name in amounts}


def _rates_by(
    outcomes: Mapping[str, list[LetterOutcome]], settings: RateSettings, sum_up: Callable[..., list[Rate]]
) -> dict[str, list[Any]]:
    how = {"confidence": settings.confidence}
    full = sum_up(outcomes["is_absorption"], **how)
    columns: dict[str, list[Any]] = {
        "absorption_rate": [rate.value for rate in full],
        "ci_low": [rate.ci_low for rate in full],
        "ci_high": [rate.ci_high for rate in full],
        **{name: [getattr(rate, name) for rate in full] for name in ("se_words", "se_absorbers", "se_sampling")},
        "evaluable": [rate.evaluable for rate in full],
        "reason": [rate.reason for rate in full],
    }
    parts: list[Rate | None] = [None] * len(full)
    if "absorption_fraction" in outcomes:
        parts = list(sum_up(outcomes["absorption_fraction"], **how))
    for name, field in FRACTION_COLUMNS.items():
        values = [None if rate is None else getattr(rate, field) for rate in parts]
        columns[name] = [float("nan") if value is None else value for value in values]
    return columns


def _sum_fraction(letters: pd.DataFrame, words: pd.DataFrame) -> Any:
    if "absorption_fraction" not in words:
        return float("nan")
    sums = words.groupby("label")["absorption_fraction"].sum()
    return sums.reindex(letters["label"], fill_value=0.0).to_numpy(float)


def _sae_fires(letters: pd.DataFrame) -> bool:
    return bool(letters["sae_fires"].all()) if "sae_fires" in letters else True


def outcomes_of(letters: pd.DataFrame, words: pd.DataFrame, amount: str, settings: RateSettings) -> list[LetterOutcome]:
    """What was found on the words of each letter.

    Args:
        letters: `label, num_probe_true_positives, sample_portion, probe_f1`, and `sae_fires` if it is known.
        words: Verdicts: `label, is_absorption`, the amount, and `top_latent` if there is one.
        amount: Column of the absorbed amount: `is_absorption` or `absorption_fraction`.
        settings: How rates are summed up.
    """
    amounts = {label: found.to_numpy(float) for label, found in words.groupby("label")[amount]}
    absorbed = words[words["is_absorption"]]
    absorbers = {}
    if "top_latent" in words:
        absorbers = {label: found.to_numpy(int) for label, found in absorbed.groupby("label")["top_latent"]}
    sae_fires = _sae_fires(letters)
    counted = letters[["label", "num_probe_true_positives", "sample_portion", "probe_f1"]]
    return [
        LetterOutcome(
            torch.tensor(amounts.get(label, [])),
            num_true_positives=int(true_positives),
            sample_portion=float(portion),
            probe_f1=float(f1),
            min_probe_f1=settings.min_probe_f1,
            sae_fires=sae_fires,
            absorbers=torch.tensor(absorbers[label]) if label in absorbers else None,
        )
        for label, true_positives, portion, f1 in counted.itertuples(index=False, name=None)
    ]
