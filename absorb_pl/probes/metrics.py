"""Metrics of one-vs-rest probes as a torchmetrics metric: states that cross processes, rows counted once."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from absorb_pl.functional.metrics import BinaryMetrics, binary_metrics


def first_of_each(index: Int[Tensor, " rows"]) -> tuple[Int[Tensor, " distinct"], Int[Tensor, " distinct"]]:
    """The distinct row numbers and where each stands first; a distributed sampler repeats some.

    Args:
        index: Row numbers.

    Returns:
        Row numbers ascending and their first places, on the CPU.

    Example:
        >>> first_of_each(torch.tensor([7, 3, 7]))
        (tensor([3, 7]), tensor([1, 0]))
    """
    distinct, place = index.cpu().unique(return_inverse=True)
    places = torch.full_like(distinct, len(place))
    return distinct, places.scatter_reduce(0, place, torch.arange(len(place)), reduce="amin")


class ProbeMetrics(Metric):
    """Macro F1, precision, recall and AUROC over the classes that occur.

    Keeps scores, labels and row numbers; a row that a distributed sampler repeats is counted once. Several
    probes on the same rows (the ks of a k-sparse probe) are told apart by a suffix.

    Args:
        suffixes: Suffix of each probe's metric names.
        names: Which of `f1`, `precision`, `recall`, `auroc` to report.
        kwargs: Options of `torchmetrics.Metric`.

    Example:
        >>> metric = ProbeMetrics()
        >>> metric.update(torch.tensor([[[2.0]], [[-1.0]]]), torch.tensor([[True], [False]]), torch.arange(2))
        >>> metric.compute()["f1"]
        tensor(1., dtype=torch.float64)
    """

    full_state_update = False
    scores: list[Tensor]
    targets: list[Tensor]
    index: list[Tensor]

    def __init__(
        self,
        suffixes: Sequence[str] = ("",),
        names: Sequence[str] = ("f1", "precision", "recall", "auroc"),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.suffixes, self.names = list(suffixes), list(names)
        for state in ("scores", "targets", "index"):
            self.add_state(state, default=[], dist_reduce_fx="cat")

    def update(
        self,
        scores: Float[Tensor, "rows probes classes"],
        targets: Bool[Tensor, "rows classes"],
        index: Int[Tensor, " rows"],
    ) -> None:
        """Add rows.

        Args:
            scores: Logits of each probe.
            targets: Labels.
            index: Row numbers, by which repeated rows are known.
        """
        self.scores.append(scores.detach())
        self.targets.append(targets)
        self.index.append(index)

    def by_class(self) -> BinaryMetrics:
        """Metrics of every probe and class, flattened probe by probe.

        Returns:
            Metrics with `probes · classes` entries.
        """
        scores, targets = dim_zero_cat(self.scores), dim_zero_cat(self.targets)
        rows = first_of_each(dim_zero_cat(self.index))[1].to(scores.device)
        scores, targets = scores[rows], targets[rows]
        return binary_metrics(scores.flatten(1), targets.repeat(1, scores.shape[1]))

    def compute(self) -> dict[str, Tensor]:
        """Average over the classes with both positive and negative rows.

        Returns:
            Each name with each suffix; 0 if no class occurs.
        """
        found = self.by_class()
        groups = found.defined.unflatten(0, (len(self.suffixes), -1))
        result = {}
        for name in self.names:
            values = getattr(found, name).unflatten(0, groups.shape)
            for suffix, row, defined in zip(self.suffixes, values, groups, strict=True):
                kept = row[defined]
                result[f"{name}{suffix}"] = kept.mean() if len(kept) else row.new_zeros(())
        return result
