"""All training rows of a Trainer, each exactly once."""

from collections.abc import Iterator, Sized
from typing import Any, cast

import torch
from jaxtyping import Shaped
from lightning.pytorch import Trainer
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SequentialSampler

from absorb_pl.data.labelled_batches import DEFAULT_BATCH_SIZE
from absorb_pl.errors import AbsorbError


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


def training_labels(trainer: Trainer) -> Shaped[Tensor, "rows classes"]:
    """Labels of a Trainer's training rows in the dataset's order, on the CPU.

    Args:
        trainer: A Trainer that is fitting.

    Returns:
        What the batches hold as `y`.
    """
    return torch.cat([batch["y"].cpu() for batch in training_batches(trainer)])
