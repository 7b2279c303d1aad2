"""The stratified split beside scikit-learn's."""

import pytest
import torch
from sklearn.model_selection import train_test_split

from absorb_pl.data import stratified_split
from absorb_pl.errors import AbsorbError

SIZES = [50, 20, 13, 7, 2, 1]
LABELS = torch.tensor([label for label, size in enumerate(SIZES) for _ in range(size)])[
    torch.randperm(sum(SIZES), generator=torch.Generator().manual_seed(0))
]


@pytest.mark.parametrize("fractions", [(0.8, 0.2), (0.7, 0.1, 0.2), (0.8, 0.0, 0.2), (1.0,)])
def test_parts_are_disjoint_whole_and_stratified(fractions):
    parts = stratified_split(LABELS, fractions)
    assert torch.cat(parts).sort().values.tolist() == list(range(len(LABELS)))
    for part, fraction in zip(parts, fractions, strict=True):
        assert part.tolist() == sorted(part.tolist())
        counts = LABELS[part].bincount(minlength=len(SIZES)).tolist()
        assert all(abs(count - fraction * size) < 1 for count, size in zip(counts, SIZES, strict=True))


def test_class_counts_are_within_one_of_those_of_scikit_learn():
    kept = LABELS != 5  # scikit-learn refuses classes of one row
    labels = LABELS[kept]
    _, ours = stratified_split(labels, (0.8, 0.2))
    _, theirs = train_test_split(range(len(labels)), test_size=0.2, stratify=labels.numpy(), random_state=42)
    counts = [labels[torch.as_tensor(rows)].bincount(minlength=5) for rows in (ours, theirs)]
    assert (counts[0] - counts[1]).abs().max() <= 1
    assert counts[0].tolist() == [10, 4, 3, 1, 0]


def test_seeds_settle_the_split():
    first, again, other = (stratified_split(LABELS, (0.8, 0.2), seed)[1].tolist() for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_a_class_keeps_its_split_when_another_class_goes():
    rows = (LABELS != 0).nonzero().squeeze(-1)
    without = rows[stratified_split(LABELS[rows], (0.8, 0.2))[1]].tolist()
    assert without == [row for row in stratified_split(LABELS, (0.8, 0.2))[1].tolist() if LABELS[row] != 0]


@pytest.mark.parametrize("fractions", [(0.8, 0.3), (1.2, -0.2)])
def test_shares_that_are_none_are_refused(fractions):
    with pytest.raises(AbsorbError, match=r"`fractions`.*test_fraction"):
        stratified_split(LABELS, fractions)
