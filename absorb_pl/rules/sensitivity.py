"""How much rates depend on the thresholds of a rule, from stored evidence alone."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from absorb_pl.errors import RuleError
from absorb_pl.functional.rates import LettersMode
from absorb_pl.rules.evidence import stored_scores
from absorb_pl.rules.rule import AbsorptionRule
from absorb_pl.schema import SENSITIVITY, dtypes, empty_table

_COLUMNS = {name: column for name, column in SENSITIVITY.items() if name != "sae"}


def sensitivity_table(
    rule: AbsorptionRule, words: pd.DataFrame, letters: pd.DataFrame, mode: LettersMode
) -> pd.DataFrame:
    """Rates of one SAE with one threshold at a time at other values.

    Args:
        rule: The rule, with the values that the other thresholds keep.
        words: Evidence, one row per word.
        letters: From `letters_table` by the same rule.
        mode: What letters without candidates count for.

    Returns:
        One row per threshold and value, with the columns of `absorb_pl.schema.SENSITIVITY` except `sae`; `is_default`
        marks the rule's own value. Values that the evidence cannot answer are left out; the table is empty if no
        letter can be evaluated.
    """
    weights = _word_weights(words, letters, mode)
    if weights is None:
        return empty_table(_COLUMNS)
    stored = stored_scores(words, rule.reads)
    rows = []
    for name, grid in rule.thresholds.items():
        own = getattr(rule.settings, name)
        for value in sorted({*grid, own}) if grid else ():
            try:
                other = rule.with_thresholds({name: value})
            except RuleError:
                continue
            found = other.decide(stored)
            row: dict[str, Any] = {
                "rule": rule.name,
                "threshold": name,
                "value": float(value),
                "is_default": value == own,
                "absorption_rate": float((found.is_absorption * weights).sum()),
                "absorption_fraction": float("nan"),
            }
            if found.fraction is not None:
                row["absorption_fraction"] = float((found.fraction * weights).sum())
            rows.append(row)
    return pd.DataFrame(rows, columns=list(_COLUMNS)).astype(dtypes(_COLUMNS))


def _word_weights(words: pd.DataFrame, letters: pd.DataFrame, mode: LettersMode) -> Float[Tensor, " words"] | None:
    """What a word adds to the SAE's rate if it counts; None if no letter can be evaluated."""
    counted = letters[letters["evaluable"]]
    if mode == "published":
        counted = counted[counted["num_judged"] > 0]
    if counted.empty:
        return None
    shares = 1 / (counted["sample_portion"] * counted["num_probe_true_positives"] * len(counted))
    by_label: Mapping[str, float] = dict(zip(counted["label"], shares, strict=True))
    return torch.tensor(np.array([by_label.get(label, 0.0) for label in words["label"]], dtype=float))
