"""Rows for the probes: batches from tensors, and all training rows of a Trainer, each exactly once."""

from collections.abc import Iterator, Sized
from typing import Any, cast

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
)

from absorb_pl.errors import AbsorbError
from absorb_pl.ranges import Count, check_ranges

DEFAULT_BATCH_SIZE = 4096


class TensorBatches(Dataset[dict[str, Tensor]]):
    """Labelled rows in memory; an item is a whole batch, gathered with one indexing a tensor.

    Args:
        x: Features, `[rows, features]`.
        y: Labels 0 or 1, `[rows, classes]`.

    Example:
        >>> batches = TensorBatches(torch.eye(3), torch.ones(3, 1))
        >>> batches[[2, 0]]["index"]
        tensor([2, 0])
    """

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, positions: list[int]) -> dict[str, Tensor]:
        """Rows of the given positions: `x`, `y` and their `index`."""
        index = torch.tensor(positions, device=self.x.device)
        return {"x": self.x.index_select(0, index), "y": self.y.index_select(0, index), "index": index}

    def loader(self, batch_size: Count = DEFAULT_BATCH_SIZE, *, shuffle: bool = False) -> DataLoader[Any]:
        """Iterate over the rows in batches.

        Args:
            batch_size: Rows a batch.
            shuffle: Draw a new order each epoch.

        Returns:
            A loader of dicts.
        """
        check_ranges(TensorBatches.loader, locals())
        order = RandomSampler(self) if shuffle else SequentialSampler(self)
        return DataLoader(self, sampler=BatchSampler(order, batch_size, False), batch_size=None)


def training_batches(trainer: Trainer) -> Iterator[dict[str, Tensor]]:
    """Iterate over a Trainer's training rows in the dataset's order, each row exactly once.

    Every process sees all rows, whatever sampler the Trainer put in for several devices: those pad or repeat
    rows, and a solver must not count a row twice.

    Args:
        trainer: A Trainer that is fitting.

    Returns:
        Batches as the dataset gives them.

    Raises:
        AbsorbError: The training data cannot be indexed.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> callable(training_batches)
        True
    """
    loader = trainer.train_dataloader
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        raise AbsorbError(
            "train_dataloader",
            type(loader).__name__,
            expected="one DataLoader over a dataset with indices",
            remedy="Use `ActivationDataModule`, or a map-style dataset.",
        )
    data, size = loader.dataset, loader.batch_size
    order: Any = None
    if size is None:
        order = BatchSampler(SequentialSampler(cast(Sized, data)), DEFAULT_BATCH_SIZE, False)
    return iter(DataLoader(data, size, sampler=order, collate_fn=loader.collate_fn))
