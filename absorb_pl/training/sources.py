"""Where activations to train on come from: in numbered chunks, each the same whenever and wherever it is asked for."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from datasets import Dataset, load_from_disk
from jaxtyping import Float, Int
from torch import Tensor
from typing_extensions import override

from absorb_pl.data.drafts import user_path
from absorb_pl.data.residuals import read_contexts
from absorb_pl.errors import AbsorbError, HookNotFoundError, ShapeError
from absorb_pl.models.divided import is_divided
from absorb_pl.models.placement import move_model
from absorb_pl.ranges import Count, Seed, check_ranges
from absorb_pl.saes.properties import shape_at
from absorb_pl.truth.hierarchy import HIERARCHIES, HierarchyName, HierarchyWorld


class ActivationSource(ABC):
    """Activations of one or several hooks in numbered chunks.

    A chunk depends on its number alone, so any process can make any chunk, in any order, and a training that was
    stopped goes on with the same batches.
    """

    @property
    @abstractmethod
    def hook_widths(self) -> dict[str, int]:
        """Width of the activations by hook."""

    @property
    @abstractmethod
    def num_chunks(self) -> int | None:
        """How many chunks there are; None if there is no end to them."""

    @abstractmethod
    def chunk(self, number: int, device: torch.device) -> dict[str, Tensor]:
        """The rows of a chunk by hook, `[rows, width]` each; as many in every chunk.

        Args:
            number: Number of the chunk.
            device: Where to put, and where to make, the rows.
        """

    @property
    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What determines the chunks, as plain values."""

    @property
    def sae_metadata(self) -> dict[str, Any]:
        """What SAEs trained on these activations say of them, by SAELens's names."""
        return {}


class ModelActivations(ActivationSource):
    """Activations that a language model makes on contexts without padding.

    Attributes:
        model: The language model.
        hook_names: TransformerLens hook names.
    """

    model: Any
    hook_names: list[str]

    @abstractmethod
    def token_ids(self, number: int) -> Int[Tensor, "contexts tokens"]:
        """The contexts of a chunk."""

    @property
    @override
    def hook_widths(self) -> dict[str, int]:
        return {hook: shape_at(self.model, hook).numel() for hook in self.hook_names}

    @property
    def starts_with_bos(self) -> bool:
        """Whether contexts begin with a beginning-of-sequence token, whose activations are left out."""
        return self.model.tokenizer.bos_token_id is not None

    def read(
        self, input_ids: Int[Tensor, "contexts tokens"], device: torch.device
    ) -> dict[str, Float[Tensor, "contexts tokens width"]]:
        """Activations at all tokens of contexts, by hook.

        Args:
            input_ids: The contexts.
            device: Where the model is to run.
        """
        if is_divided(self.model) and dist.is_initialized() and dist.get_world_size() > 1:
            raise AbsorbError(
                "trainer.devices",
                dist.get_world_size(),
                expected="one process for a model that is divided among GPUs; each would load its own",
                remedy="Leave `trainer.devices` at 1.",
            )
        move_model(self.model, device)
        return read_contexts(self.model, input_ids.to(device), self.hook_names)


class WorldActivations(ActivationSource):
    """Samples of a world of which all features are known, under the hook name `activations`.

    Args:
        world: Name of the world.
        rows_per_chunk: Samples per chunk.
        seed: Seed of the samples.

    Example:
        >>> source = WorldActivations("superposition", rows_per_chunk=32)
        >>> source.chunk(7, torch.device("cpu"))["activations"].shape, source.num_chunks
        (torch.Size([32, 64]), None)
    """

    def __init__(
        self, world: HierarchyName = "frequent-children", rows_per_chunk: Count = 4096, seed: Seed = 0
    ) -> None:
        check_ranges(WorldActivations.__init__, locals())
        self.world, self.rows_per_chunk, self.seed = world, rows_per_chunk, seed
        self.hierarchy = HierarchyWorld(HIERARCHIES[world])

    @property
    @override
    def hook_widths(self) -> dict[str, int]:
        return {"activations": self.hierarchy.settings.d_model}

    @property
    @override
    def num_chunks(self) -> None:
        return None

    @override
    def chunk(self, number: int, device: torch.device) -> dict[str, Tensor]:
        seed = int(chunk_rng(self.seed, number).integers(2**32))
        return {"activations": self.hierarchy.sample(self.rows_per_chunk, seed)[1].to(device)}

    @property
    @override
    def identity(self) -> dict[str, Any]:
        return {"world": self.world, "rows_per_chunk": self.rows_per_chunk, "seed": self.seed}


class CachedActivations(ActivationSource):
    """Activations in a folder that SAELens's `CacheActivationsRunner` wrote: contexts of rows, a column per hook.

    Args:
        folder: The folder.
        hook_names: The columns to read; all that hold activations if not given.
        contexts_per_chunk: Contexts per chunk; those that fill no chunk are left out.

    Raises:
        AbsorbError: There is no such folder, or it holds no data set of Hugging Face's.
        HookNotFoundError: It has no such column.
        ShapeError: It has too few contexts for one chunk.
    """

    def __init__(self, folder: str, hook_names: list[str] | None = None, contexts_per_chunk: Count = 64) -> None:
        check_ranges(CachedActivations.__init__, locals())
        self.folder, self.contexts_per_chunk = user_path(folder), contexts_per_chunk
        self._rows = _opened(self.folder)
        known = [name for name in self._rows.column_names if name != "token_ids"]
        self.hook_names = list(hook_names or known)
        for name in self.hook_names:
            if name not in known:
                raise HookNotFoundError(
                    "hook_names", name, expected=f"columns of {self.folder}", remedy=f"It has {', '.join(known)}."
                )
        if len(self._rows) < contexts_per_chunk:
            raise ShapeError(
                "contexts_per_chunk",
                contexts_per_chunk,
                expected=f"at most the {len(self._rows)} contexts of {self.folder}",
                remedy="Lower it.",
            )

    @property
    @override
    def hook_widths(self) -> dict[str, int]:
        first = self._rows[0]
        return {name: first[name].shape[-1] for name in self.hook_names}

    @property
    @override
    def num_chunks(self) -> int:
        return len(self._rows) // self.contexts_per_chunk

    @override
    def chunk(self, number: int, device: torch.device) -> dict[str, Tensor]:
        first = number * self.contexts_per_chunk
        rows = self._rows[first : first + self.contexts_per_chunk]
        return {name: rows[name].flatten(0, -2).float().to(device) for name in self.hook_names}

    @property
    @override
    def identity(self) -> dict[str, Any]:
        return {
            "rows": self._rows._fingerprint,  # the data set's own hash of its content
            "hook_names": self.hook_names,
            "contexts_per_chunk": self.contexts_per_chunk,
        }


def chunk_rng(*seeds: int) -> np.random.Generator:
    """A generator of its own for each tuple of seeds and numbers.

    Args:
        seeds: Numbers of zero or more.
    """
    return np.random.default_rng(seeds)


def _opened(folder: Path) -> Dataset:
    try:
        found = load_from_disk(str(folder))
    except (OSError, ValueError) as error:
        raise AbsorbError(
            "folder",
            str(folder),
            expected="a folder of activations that SAELens's `CacheActivationsRunner` wrote",
            remedy=str(error).strip(),
        ) from error
    if not isinstance(found, Dataset):
        raise AbsorbError(
            "folder",
            str(folder),
            expected="one data set",
            remedy=f"Name one of its splits: {', '.join(map(str, found))}.",
        )
    return found.with_format("torch")
