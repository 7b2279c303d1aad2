"""Binary classification metrics of many columns at once."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from absorb_pl.functional.validation import require_finite
from absorb_pl.ranges import Finite, check_ranges


class BinaryMetrics(NamedTuple):
    """Metrics of every column.

    Attributes:
        f1: `2·TP / (2·TP + FP + FN)`; 0 if that is 0/0.
        precision: `TP / (TP + FP)`; 0 if nothing is predicted positive.
        recall: `TP / (TP + FN)`; 0 if nothing is positive.
        auroc: Area under the ROC curve, ties counting half; NaN exactly where `defined` is false.
        defined: True if the column has both positive and negative rows. Only there do the metrics say
            something about the scores; leave the other columns out of means.
    """

    f1: Float[Tensor, " columns"]
    precision: Float[Tensor, " columns"]
    recall: Float[Tensor, " columns"]
    auroc: Float[Tensor, " columns"]
    defined: Bool[Tensor, " columns"]


def binary_metrics(
    scores: Float[Tensor, "rows columns"], targets: Bool[Tensor, "rows columns"], threshold: Finite = 0.0
) -> BinaryMetrics:
    """F1, precision, recall and AUROC of each column of scores.

    A row is predicted positive when its score is *above* the threshold, as the published code decides
    (`score > 0`). Figures equal scikit-learn's with `zero_division=0`.

    Args:
        scores: Scores, higher for positive.
        targets: Labels.
        threshold: Decision threshold.

    Returns:
        Metrics in float64.

    Raises:
        NonFiniteError: `scores` holds NaN or infinite values.

    Example:
        >>> scores = torch.tensor([[2.0], [1.0], [-1.0], [-2.0]])
        >>> targets = torch.tensor([[True], [False], [True], [False]])
        >>> [round(value.item(), 2) for value in binary_metrics(scores, targets)[:4]]
        [0.5, 0.5, 0.5, 0.75]
    """
    check_ranges(binary_metrics, locals())
    require_finite(scores=scores)
    hits, claimed, positives = _counts(scores, targets, threshold)
    defined = (positives > 0) & (positives < len(targets))
    return BinaryMetrics(
        f1=_f1(hits, claimed, positives),
        precision=hits / claimed.clamp(min=1),
        recall=hits / positives.clamp(min=1),
        auroc=torch.where(defined, auroc(scores, targets), torch.nan),
        defined=defined,
    )


def f1_scores(
    scores: Float[Tensor, "rows columns"], targets: Bool[Tensor, "rows columns"], threshold: Finite = 0.0
) -> Float[Tensor, " columns"]:
    """F1 of each column of scores, as in `binary_metrics`, and nothing else.

    Args:
        scores: Scores, higher for positive.
        targets: Labels.
        threshold: Decision threshold.

    Returns:
        F1 in float64.

    Raises:
        NonFiniteError: `scores` holds NaN or infinite values.

    Example:
        >>> f1_scores(torch.tensor([[2.0], [1.0], [-1.0]]), torch.tensor([[True], [False], [False]]))
        tensor([0.6667], dtype=torch.float64)
    """
    check_ranges(f1_scores, locals())
    require_finite(scores=scores)
    return _f1(*_counts(scores, targets, threshold))


def _f1(hits: Tensor, claimed: Tensor, positives: Tensor) -> Tensor:
    return 2 * hits / (positives + claimed).clamp(min=1)


def _counts(scores: Tensor, targets: Tensor, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    """Rows predicted positive rightly, rows predicted positive, and positive rows, of each column."""
    predicted = scores > threshold
    return (predicted & targets).sum(dim=0).double(), predicted.sum(dim=0).double(), targets.sum(dim=0).double()


def auroc(scores: Float[Tensor, "rows columns"], targets: Bool[Tensor, "rows columns"]) -> Float[Tensor, " columns"]:
    """Area under the ROC curve of each column, from mid-ranks.

    The Mann–Whitney form: `(R − P(P+1)/2) / (P·N)`, with `R` the sum of the positives' ranks, tied scores
    sharing their mean rank. Equal to scikit-learn's `roc_auc_score`.

    Args:
        scores: Scores, higher for positive.
        targets: Labels.

    Returns:
        Areas in float64; NaN for a column without positives or without negatives.

    Example:
        >>> auroc(torch.tensor([[0.0], [0.0], [1.0]]), torch.tensor([[False], [True], [True]]))
        tensor([0.7500], dtype=torch.float64)
    """
    ordered, order = scores.T.contiguous().sort(dim=1)
    rows = ordered.shape[1]
    place = torch.arange(rows, device=scores.device).expand_as(ordered)
    changes = ordered[:, 1:] != ordered[:, :-1]
    edge = torch.ones_like(ordered[:, :1], dtype=torch.bool)
    first = torch.where(torch.cat([edge, changes], dim=1), place, 0).cummax(dim=1).values
    last = torch.where(torch.cat([changes, edge], dim=1), place, rows - 1)
    last = last.flip(1).cummin(dim=1).values.flip(1)
    rank = (first + last).double() / 2 + 1
    is_positive = targets.T.gather(1, order)
    positives = is_positive.sum(dim=1).double()
    rank_sum = (rank * is_positive).sum(dim=1)
    return (rank_sum - positives * (positives + 1) / 2) / (positives * (rows - positives))


def optimal_f1_threshold(
    scores: Float[Tensor, "rows columns"], targets: Bool[Tensor, "rows columns"]
) -> tuple[Float[Tensor, " columns"], Float[Tensor, " columns"]]:
    """Threshold at which each column's F1 is best.

    Candidates are the column's own scores, a row being predicted positive when its score is *at least* the
    threshold: the thresholds of scikit-learn's `precision_recall_curve`, over which the published
    `find_optimal_f1_threshold` maximises. Of equally good ones the lowest is taken.

    Args:
        scores: Scores, higher for positive.
        targets: Labels; a column without positives has F1 0 at its lowest score.

    Returns:
        Thresholds (dtype of `scores`) and the F1 there (float64).

    Raises:
        NonFiniteError: `scores` holds NaN or infinite values.

    Example:
        >>> scores = torch.tensor([[0.9], [0.8], [0.3], [0.1]])
        >>> optimal_f1_threshold(scores, torch.tensor([[True], [True], [False], [False]]))
        (tensor([0.8000]), tensor([1.], dtype=torch.float64))
    """
    require_finite(scores=scores)
    ordered, order = scores.T.contiguous().sort(dim=1, descending=True)
    hits = targets.T.gather(1, order).double().cumsum(dim=1)
    place = torch.arange(ordered.shape[1], device=scores.device)
    f1 = (2 * hits).div_(hits[:, -1:] + (place + 1))
    f1[:, :-1].masked_fill_(ordered[:, 1:] == ordered[:, :-1], -1.0)  # all rows of one score are claimed together
    best = f1.amax(dim=1)
    lowest = torch.where(f1 == best[:, None], place, 0).amax(dim=1)
    return ordered.gather(1, lowest[:, None]).squeeze(1), best
