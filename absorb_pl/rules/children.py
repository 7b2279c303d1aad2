"""Hierarchies: on which of a class's finer labels a feature was absorbed."""

import pandas as pd

from absorb_pl.words.tasks import Task

_KEYS = ["label", "child"]


def with_children(words: pd.DataFrame, task: Task) -> pd.DataFrame:
    """Words with the finer label of each in a column `child`, where the task has such labels.

    Args:
        words: One row per word; `row` is its number in the task.
        task: The task.
    """
    return words.assign(child=[task.children[row] for row in words["row"]]) if task.children else words


def children_table(words: pd.DataFrame, letters: pd.DataFrame, held_out: pd.DataFrame) -> pd.DataFrame:
    """Absorption of one SAE by one rule, child by child.

    A child's rate is that of a class on the child's own words: absorbed ÷ `sample_portion` of the class ÷ the child's
    probe true positives.

    Args:
        words: Verdicts on candidate words: `label, child, is_absorption`.
        letters: Figures of the classes: `label, sample_portion`.
        held_out: From `held_out_children`.

    Returns:
        `held_out` with `num_candidates`, the candidate words that were judged, `num_absorbed` and `absorption_rate`,
        which is missing if the probe sees none of the child's words.

    Example:
        >>> held_out = pd.DataFrame(
        ...     {"label": "noun", "child": ["animal", "tool"], "num_words": 5, "num_probe_true_positives": [4, 2]}
        ... )
        >>> words = pd.DataFrame({"label": "noun", "child": ["animal", "animal"], "is_absorption": [True, False]})
        >>> letters = pd.DataFrame({"label": ["noun"], "sample_portion": [0.5]})
        >>> children_table(words, letters, held_out)["absorption_rate"].tolist()
        [0.5, 0.0]
    """
    found = words.groupby(_KEYS)["is_absorption"].agg(["size", "sum"])
    found = found.reindex(pd.MultiIndex.from_frame(held_out[_KEYS]), fill_value=0)
    portions = held_out["label"].map(letters.set_index("label")["sample_portion"])
    positives = held_out["num_probe_true_positives"]
    absorbed = found["sum"].to_numpy(int)
    return held_out.assign(
        num_candidates=found["size"].to_numpy(int),
        num_absorbed=absorbed,
        absorption_rate=absorbed / portions / positives.where(positives > 0),
    )
