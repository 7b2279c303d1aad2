"""Stratified, seeded splits of labelled rows."""

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from absorb_pl.errors import AbsorbError, LabelError
from absorb_pl.ranges import Seed, check_ranges


def stratified_split(
    labels: Int[Tensor, " rows"], fractions: tuple[float, ...], seed: Seed = 42
) -> list[Int[Tensor, " part"]]:
    """Split row numbers so that every class has about the same share in each part.

    Within a class the rows are shuffled and cut at the rounded cumulative fractions, so a class of n rows has
    within one row of n · fraction in each part.

    Args:
        labels: Class of each row.
        fractions: Share of each part; they sum to 1.
        seed: Seed of the shuffles; a class's shuffle depends on the seed and its own rows alone.

    Returns:
        Row numbers of each part, ascending.

    Raises:
        AbsorbError: The fractions are negative or do not sum to 1.

    Example:
        >>> train, test = stratified_split(torch.tensor([0] * 10 + [1] * 5), (0.8, 0.2))
        >>> len(train), len(test), int((test < 10).sum())
        (12, 3, 2)
    """
    check_ranges(stratified_split, locals())
    if not (min(fractions) >= 0 and abs(sum(fractions) - 1) <= 1e-9):
        raise AbsorbError(
            "fractions",
            fractions,
            expected="shares of at least 0 that sum to 1",
            remedy="Choose `test_fraction` and `val_fraction` with a sum below 1.",
        )
    cuts = np.cumsum(fractions)[:-1]
    parts: list[list[np.ndarray]] = [[] for _ in fractions]
    classes = labels.numpy()
    for label in np.unique(classes):
        rows = np.flatnonzero(classes == label)
        np.random.default_rng([seed, int(label)]).shuffle(rows)
        for part, piece in zip(parts, np.split(rows, np.rint(cuts * len(rows)).astype(int)), strict=True):
            part.append(piece)
    return [torch.from_numpy(np.sort(np.concatenate(part))) for part in parts]


def check_split(labels: Tensor, test_fraction: float, seed: int) -> None:
    """Check that a split leaves words on both sides.

    Args:
        labels: Class of each word.
        test_fraction: Share of each class's words held out.
        seed: Seed of the split.

    Raises:
        LabelError: It leaves no words for training or none for evaluation.

    Example:
        >>> check_split(torch.zeros(10, dtype=torch.long), 0.2, seed=0)
    """
    if not all(len(part) for part in stratified_split(labels, (1 - test_fraction, test_fraction), seed)):
        raise LabelError(
            "test_fraction",
            test_fraction,
            expected=f"a share that leaves some of the {len(labels)} words for training and some for evaluation",
            remedy="Take more words (`task.max_words`), or another share.",
        )
