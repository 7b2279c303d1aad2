"""The classes of wide tables of scores, which have one column per class."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

_PROBE = "score_probe_"


def occurring_classes(results_df: pd.DataFrame) -> list[str]:
    """Classes that some row of a table of raw scores is of, in the order of its columns.

    Args:
        results_df: A table with `answer_letter` and `score_probe_X` for each class.

    Example:
        >>> occurring_classes(pd.DataFrame({"answer_letter": ["b"], "score_probe_a": 0.0, "score_probe_b": 1.0}))
        ['b']
    """
    present = set(results_df["answer_letter"])
    named = [str(column).removeprefix(_PROBE) for column in results_df if str(column).startswith(_PROBE)]
    return [name for name in named if name in present]


def targets_of(results_df: pd.DataFrame, class_names: Sequence[str]) -> Bool[Tensor, "rows classes"]:
    """Which class each row is of.

    Args:
        results_df: A table with `answer_letter`.
        class_names: The classes.

    Example:
        >>> targets_of(pd.DataFrame({"answer_letter": ["b", "a"]}), ["a", "b"]).int()
        tensor([[0, 1],
                [1, 0]], dtype=torch.int32)
    """
    letters = results_df["answer_letter"].to_numpy()
    return torch.from_numpy(np.stack([letters == name for name in class_names], axis=1).astype(bool))


def column_matrix(table: pd.DataFrame, columns: Sequence[str]) -> Float[Tensor, "rows columns"]:
    """Columns of numbers side by side, in float64.

    Args:
        table: A table.
        columns: Names of columns.

    Example:
        >>> column_matrix(pd.DataFrame({"x": [1, 2]}), ["x"])
        tensor([[1.],
                [2.]], dtype=torch.float64)
    """
    return torch.from_numpy(table[list(columns)].to_numpy(np.float64, copy=True))
