"""How much rates depend on the thresholds of a rule, from stored scores alone."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from absorb_pl.errors import RuleError
from absorb_pl.functional import LettersMode
from absorb_pl.rules.base import AbsorptionRule, stored_scores

SENSITIVITY_COLUMNS = {
    "sae": "str",
    "rule": "str",
    "threshold": "str",
    "value": "float64",
    "is_default": "bool",
    "absorption_rate": "float64",
    "absorption_fraction": "float64",
}


def sensitivity_table(
    rule: AbsorptionRule, words: pd.DataFrame, letters: pd.DataFrame, mode: LettersMode
) -> pd.DataFrame:
    """Rates of one SAE with one threshold at a time at other values.

    Args:
        rule: The rule, with the thresholds that the others stay at.
        words: Stored scores, one row a candidate word.
        letters: From `letters_table` by the same rule.
        mode: What letters without candidates count for.

    Returns:
        One row a threshold and value, with the columns of `SENSITIVITY_COLUMNS` but `sae`; `is_default` marks the
        rule's own value. Values that the stored scores cannot answer are left out, and so is all where no letter can
        be evaluated.
    """
    weights = _word_weights(words, letters, mode)
    if weights is None:
        return pd.DataFrame(columns=list(SENSITIVITY_COLUMNS)[1:])
    stored = stored_scores(words, rule.reads)
    rows = []
    for name, threshold in rule.thresholds.items():
        own = getattr(rule.settings, name)
        for value in sorted({*threshold.grid, own}) if threshold.grid else ():
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
    return pd.DataFrame(rows)


def _word_weights(words: pd.DataFrame, letters: pd.DataFrame, mode: LettersMode) -> Float[Tensor, " words"] | None:
    """What a word adds to the SAE's rate when it counts; None where no letter can be evaluated."""
    counted = letters[letters["evaluable"]]
    if mode == "published":
        counted = counted[counted["num_judged"] > 0]
    if counted.empty:
        return None
    shares = 1 / (counted["sample_portion"] * counted["num_probe_true_positives"] * len(counted))
    by_label: Mapping[str, float] = dict(zip(counted["label"], shares, strict=True))
    return torch.tensor(np.array([by_label.get(label, 0.0) for label in words["label"]], dtype=float))
