"""The LightningDataModule that SAEs are trained on: activations made as they are needed, in shuffled batches."""

from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader
from typing_extensions import override

from absorb_pl.data.artifacts import identity_key
from absorb_pl.data.shares import Share
from absorb_pl.errors import CheckpointError
from absorb_pl.ranges import Count, Seed, check_ranges
from absorb_pl.training.sources import ActivationSource
from absorb_pl.training.stream import ActivationStream


class TokenActivationDataModule(LightningDataModule):
    """Shuffled batches of activations by hook, without end, and held-out chunks for validation.

    A Trainer's `max_steps` says when to stop. Batches depend on the settings alone, not on the number of processes nor
    on where a training was stopped and taken up; checkpoints hold what determines them, and other data are refused.

    Args:
        source: Where activations come from: `TextActivations`, `SpellingActivations`, `CachedActivations` or
            `WorldActivations`.
        batch_size: Rows per training step, of all processes together.
        chunks_per_buffer: Chunks of the source that are held and mixed at a time.
        shards: Parts that the buffer is filled in; a multiple of the number of processes.
        val_chunks: Chunks held out for validation.
        seed: Seed of the order.

    Raises:
        ShapeError: Shards do not divide chunks and rows evenly, or the source has too few chunks.

    Example:
        >>> from absorb_pl.training import WorldActivations
        >>> data = TokenActivationDataModule(WorldActivations("superposition", rows_per_chunk=64), batch_size=32)
        >>> next(iter(data.train_dataloader()))["activations"].shape
        torch.Size([32, 64])
    """

    def __init__(
        self,
        source: ActivationSource,
        batch_size: Count = 4096,
        chunks_per_buffer: Count = 32,
        shards: Count = 4,
        val_chunks: Count = 4,
        seed: Seed = 42,
    ) -> None:
        check_ranges(TokenActivationDataModule.__init__, locals())
        super().__init__()
        self.source, self.val_chunks = source, val_chunks
        self.batches = ActivationStream(source, batch_size, chunks_per_buffer, shards, val_chunks, seed, self._where)
        self._identity = {
            "source": source.identity,
            "batch_size": batch_size,
            "chunks_per_buffer": chunks_per_buffer,
            "shards": shards,
            "val_chunks": val_chunks,
            "seed": seed,
        }

    @property
    def hook_widths(self) -> dict[str, int]:
        """Width of the activations by hook."""
        return self.source.hook_widths

    @property
    def sae_metadata(self) -> dict[str, Any]:
        """What SAEs trained on these data say of them."""
        return self.source.sae_metadata

    @override
    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        return self.batches.loader()

    @override
    def val_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        return Share(_Chunks(self), {}, self.trainer).loader()

    @override
    def state_dict(self) -> dict[str, Any]:
        """What determines the batches, for the checkpoint."""
        return {"identity": identity_key(self._identity), "said": repr(self._identity)}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Compare the data that a checkpoint was trained on with these.

        Raises:
            CheckpointError: They differ.
        """
        if state_dict["identity"] != identity_key(self._identity):
            raise CheckpointError(
                "ckpt_path",
                f"a checkpoint of a training on {state_dict['said']}",
                expected=f"one on the data asked for, {self._identity}",
                remedy="Go on with the data of the checkpoint, or begin anew without it.",
            )

    def device(self) -> torch.device:
        """Where activations are made."""
        return torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device

    def _where(self) -> tuple[int, int, int, torch.device]:
        trainer = self.trainer
        if trainer is None:
            return 0, 0, 1, self.device()
        return trainer.fit_loop.total_batch_idx + 1, trainer.global_rank, trainer.world_size, self.device()


class _Chunks:
    """The held-out chunks by number."""

    def __init__(self, data: TokenActivationDataModule) -> None:
        self.data = data

    def __len__(self) -> int:
        return self.data.val_chunks

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        return self.data.source.chunk(number, self.data.device())
