"""A LightningDataModule over a world of which it is known what features each sample has."""

from collections.abc import Sequence
from functools import cached_property
from typing import Annotated

import torch
from jaxtyping import Float, Int
from torch import Tensor
from typing_extensions import override

from absorb_pl.data.labelled_datamodule import LabelledDataModule
from absorb_pl.ranges import Count, InnerFraction, Range, Seed, check_ranges
from absorb_pl.saes.interface import SparseAutoencoder
from absorb_pl.saes.properties import require_rows, require_width
from absorb_pl.truth.hierarchy import HIERARCHIES, HierarchyName, HierarchyWorld


class HierarchyDataModule(LabelledDataModule):
    """Labelled samples of a world with parent features and finer ones; a sample's class is its parent.

    Args:
        world: Name of the world.
        rows_per_parent: Samples of each parent.
        seed: Seed of the samples.
        batch_size: Rows per batch.
        test_fraction: Share of each class held out for `test`.
        val_fraction: Share of each class held out for validation.
        split_seed: Seed of the split.

    Attributes:
        hierarchy: The world itself.

    Example:
        >>> data = HierarchyDataModule("superposition", rows_per_parent=50)
        >>> data.class_names[:3], data.width, len(data.splits["test"])
        (('a', 'b', 'c'), 64, 120)
    """

    def __init__(
        self,
        world: HierarchyName = "frequent-children",
        rows_per_parent: Count = 300,
        seed: Seed = 0,
        batch_size: Count = 4096,
        test_fraction: InnerFraction = 0.2,
        val_fraction: Annotated[float | int, Range(0, 1, below=True)] = 0.1,
        split_seed: Seed = 42,
    ) -> None:
        check_ranges(HierarchyDataModule.__init__, locals())
        super().__init__(batch_size, test_fraction, val_fraction, split_seed)
        self.world, self.rows_per_parent, self.seed = world, rows_per_parent, seed
        self.hierarchy = HierarchyWorld(HIERARCHIES[world])
        self.save_hyperparameters(logger=False)

    @cached_property
    def _drawn(self) -> tuple[Tensor, Tensor, list[str]]:
        return self.hierarchy.labelled(self.rows_per_parent, self.seed)

    def sizes(self, index: Int[Tensor, " chosen"]) -> Float[Tensor, "chosen features"]:
        """Sizes of all features at rows by their numbers."""
        return self._drawn[0][index]

    @property
    @override
    def class_names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self._drawn[2]))

    @property
    @override
    def label_numbers(self) -> Int[Tensor, " rows"]:
        return torch.arange(self.hierarchy.settings.parents).repeat_interleave(self.rows_per_parent)

    @property
    @override
    def row_names(self) -> Sequence[str]:
        return [f"{self.world} seed {self.seed} sample {row}" for row in range(len(self._drawn[2]))]

    @property
    @override
    def width(self) -> int:
        return self.hierarchy.settings.d_model

    @override
    def rows(self, index: Int[Tensor, " chosen"]) -> Float[Tensor, "chosen width"]:
        return self._drawn[1][index]

    @override
    def check_sae(self, sae: SparseAutoencoder) -> None:
        """Check that an SAE reads single rows of the world's width.

        Raises:
            SaeArchitectureError: Its latents depend on earlier rows.
            SaeWidthError: It reads activations of another width.
        """
        require_rows(sae)
        require_width(sae, self.width)
