"""What LightningDataModules of labelled rows share: splits, loaders, and that no row is scored that was trained on."""

from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader
from typing_extensions import override

from absorb_pl.data.labelled_batches import LabelledBatches
from absorb_pl.data.splits import stratified_split
from absorb_pl.errors import SplitError
from absorb_pl.saes.interface import SparseAutoencoder


class LabelledDataModule(LightningDataModule):
    """Train, validation and test splits of labelled rows of activations, class by class.

    Checkpoints hold the names of the rows that were trained on; those are not scored afterwards.

    Args:
        batch_size: Rows per batch.
        test_fraction: Share of each class held out for `test`.
        val_fraction: Share of each class held out for validation.
        split_seed: Seed of the split.
    """

    hook_name: str = ""
    """Hook that the rows come from; empty if they come from no language model."""

    def __init__(self, batch_size: int, test_fraction: float, val_fraction: float, split_seed: int) -> None:
        super().__init__()
        self.batch_size, self.split_seed = batch_size, split_seed
        self.fractions = (1 - test_fraction - val_fraction, val_fraction, test_fraction)
        self._trained_on: set[str] = set()

    @property
    @abstractmethod
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes."""

    @property
    @abstractmethod
    def label_numbers(self) -> Int[Tensor, " rows"]:
        """Class of each row, by number."""

    @property
    @abstractmethod
    def row_names(self) -> Sequence[str]:
        """What each row is of, such as its word."""

    @property
    @abstractmethod
    def width(self) -> int:
        """Length of a row."""

    @abstractmethod
    def rows(self, index: Int[Tensor, " chosen"]) -> Float[Tensor, "chosen width"]:
        """Rows by their numbers."""

    @abstractmethod
    def check_sae(self, sae: SparseAutoencoder) -> None:
        """Check that an SAE reads what these rows are."""

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @cached_property
    def labels(self) -> Float[Tensor, "rows classes"]:
        """One-hot labels of all rows."""
        return torch.nn.functional.one_hot(self.label_numbers, self.num_classes).float()

    @cached_property
    def splits(self) -> dict[str, Tensor]:
        """Row numbers of `train`, `val` and `test`."""
        parts = stratified_split(self.label_numbers, self.fractions, self.split_seed)
        return dict(zip(("train", "val", "test"), parts, strict=True))

    def class_counts(self) -> tuple[Tensor, int]:
        """Positives per class and rows of the training split."""
        train = self.labels[self.splits["train"]]
        return train.sum(dim=0), len(train)

    @override
    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        return self._loader("train", shuffle=True)

    @override
    def val_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        return self._loader("val")

    @override
    def test_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        return self._loader("test")

    @override
    def predict_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        return self._loader("test")

    @override
    def state_dict(self) -> dict[str, Any]:
        """The rows that were trained on, for the checkpoint."""
        return {"trained_on": sorted(self._trained_on | self._names("train"))}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Compare the rows that a checkpoint was trained on with those to be scored.

        Raises:
            SplitError: Some are among both.
        """
        self._trained_on = set(state_dict["trained_on"])
        fn = None if self.trainer is None else self.trainer.state.fn
        scored = self._names("val" if fn == "validate" else "test")
        if seen := scored & self._trained_on:
            raise SplitError(
                "split_seed",
                self.split_seed,
                expected=f"words that were held out in training; {len(seen)} of {len(scored)} were trained on",
                remedy="Use the task, split_seed, test_fraction and val_fraction that the probe was trained with.",
            )

    def _names(self, split: str) -> set[str]:
        return {self.row_names[int(row)] for row in self.splits[split]}

    def _loader(self, split: str, *, shuffle: bool = False) -> DataLoader[dict[str, Tensor]]:
        return LabelledBatches(self.rows, self.labels, self.splits[split]).loader(self.batch_size, shuffle=shuffle)
