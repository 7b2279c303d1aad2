"""From verdicts a word to rates a letter and a row an SAE, each with its interval."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch

from absorb_pl.errors import AbsorbError, require_at_least
from absorb_pl.functional import LetterOutcome, LettersMode, Rate, letter_rate, sae_rate


@dataclass(frozen=True)
class RateSettings:
    """How rates are summed up.

    Attributes:
        letters: `all` counts letters without candidate words as 0; `published` leaves them out.
        min_probe_f1: Least F1 of the linear probe at which a letter can be evaluated.
        confidence: Level of the intervals.
        resamples: Bootstrap replicates.
        seed: Seed of the bootstrap.
    """

    letters: LettersMode = "all"
    min_probe_f1: float = 0.6
    confidence: float = 0.95
    resamples: int = 2000
    seed: int = 42

    def __post_init__(self) -> None:
        require_at_least(1, resamples=self.resamples)
        if not 0 < self.confidence < 1:
            raise AbsorbError(
                "confidence", self.confidence, expected="a share between 0 and 1", remedy="Write 95 % as 0.95."
            )


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
        words: Verdicts on its candidate words: `label, is_absorption`.
        rule: Name of the rule that gave them.
        settings: How rates are summed up.
        class_names: All classes of the task; those missing from `letters` get a row that says why.

    Returns:
        `letters` with `rule, num_judged, num_absorbed, absorption_rate, ci_low, ci_high, evaluable, reason`; rates
        are missing where they are not evaluable.
    """
    rates = [letter_rate(outcome, **_bootstrap(settings)) for outcome in _outcomes(letters, words, settings)]
    judged = words.groupby("label")["is_absorption"].agg(["size", "sum"]).reindex(letters["label"], fill_value=0)
    table = letters.assign(
        rule=rule,
        num_judged=judged["size"].to_numpy(int),
        num_absorbed=judged["sum"].to_numpy(int),
        **_rate_columns(rates),
    )
    counts = [name for name in map(str, table) if name.startswith("num_") and name != "num_splits"]
    absent = [
        {"label": name, "main_latents": [], "rule": rule, "evaluable": False, "reason": "no held-out words"}
        | dict.fromkeys(counts, 0)
        for name in class_names
        if name not in set(letters["label"])
    ]
    return pd.concat([table, pd.DataFrame(absent)], ignore_index=True) if absent else table


def summary_row(
    letters: pd.DataFrame, words: pd.DataFrame, latents: pd.DataFrame, settings: RateSettings
) -> dict[str, Any]:
    """The figures of one SAE and rule: means over letters, and the SAE's rate with its interval.

    Args:
        letters: From `evaluate_sae` or `letters_table`.
        words: Verdicts on its candidate words: `label, is_absorption`.
        latents: From `latent_table`.
        settings: How rates are summed up.
    """
    rate = sae_rate(_outcomes(letters, words, settings), mode=settings.letters, **_bootstrap(settings))
    top = latents[latents["rank"] == 0]
    return {
        **{f"probe_{name}": letters[f"probe_{name}"].mean() for name in ("f1", "precision", "recall")},
        **{f"top_latent_{name}": top[name].mean() for name in ("f1", "precision", "recall")},
        "main_latent_recall": letters["main_latent_recall"].mean(),
        "num_splits": letters["num_splits"].mean(),
        **{name: values[0] for name, values in _rate_columns([rate]).items()},
        "num_words": rate.num_words,
    }


def _outcomes(letters: pd.DataFrame, words: pd.DataFrame, settings: RateSettings) -> list[LetterOutcome]:
    verdicts = {label: rows["is_absorption"] for label, rows in words.groupby("label")}
    return [
        LetterOutcome(
            torch.tensor(verdicts[row["label"]].to_numpy(float) if row["label"] in verdicts else []),
            num_true_positives=int(row["num_probe_true_positives"]),
            sample_portion=float(row["sample_portion"]),
            probe_f1=float(row["probe_f1"]),
            min_probe_f1=settings.min_probe_f1,
        )
        for row in letters.to_dict("records")
    ]


def _rate_columns(rates: list[Rate]) -> dict[str, list[Any]]:
    return {
        "absorption_rate": [rate.value for rate in rates],
        "ci_low": [rate.ci_low for rate in rates],
        "ci_high": [rate.ci_high for rate in rates],
        "evaluable": [rate.evaluable for rate in rates],
        "reason": [rate.reason for rate in rates],
    }


def _bootstrap(settings: RateSettings) -> dict[str, Any]:
    return {"confidence": settings.confidence, "resamples": settings.resamples, "seed": settings.seed}
