"""Labelled rows in batches, gathered with one indexing per batch."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, SequentialSampler

from absorb_pl.ranges import Count, check_ranges

DEFAULT_BATCH_SIZE = 4096


class LabelledBatches(Dataset[dict[str, Tensor]]):
    """Rows with labels; an item is a whole batch.

    Args:
        rows: Gives the rows of an index, `[batch, features]`: of a tensor in memory, or of a cache.
        labels: Labels 0 or 1 of all rows, `[rows, classes]`.
        index: The rows to iterate over; all of them if not given.

    Example:
        >>> batches = LabelledBatches(torch.eye(3).__getitem__, torch.ones(3, 1))
        >>> batches[[2, 0]]["index"]
        tensor([2, 0])
    """

    def __init__(
        self,
        rows: Callable[[Tensor], Float[Tensor, "batch features"]],
        labels: Num[Tensor, "rows classes"],
        index: Int[Tensor, " chosen"] | None = None,
    ) -> None:
        self.rows, self.labels = rows, labels
        self.index = torch.arange(len(labels), device=labels.device) if index is None else index

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, positions: list[int]) -> dict[str, Tensor]:
        """Rows of the given positions: `x`, `y` and their `index`."""
        index = self.index[torch.tensor(positions, device=self.index.device)]
        return {"x": self.rows(index), "y": self.labels[index], "index": index}

    def loader(self, batch_size: Count = DEFAULT_BATCH_SIZE, *, shuffle: bool = False) -> DataLoader[Any]:
        """Iterate over the rows in batches.

        Args:
            batch_size: Rows per batch.
            shuffle: Draw a new order each epoch.

        Returns:
            A loader of dicts.
        """
        check_ranges(LabelledBatches.loader, locals())
        order = RandomSampler(self) if shuffle else SequentialSampler(self)
        return DataLoader(self, sampler=BatchSampler(order, batch_size, False), batch_size=None)
