"""Ranking probes of several SAEs of one hook, trained side by side."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule
from torch import nn

from absorb_pl.probes.base import Batch, take_steps
from absorb_pl.probes.ranking import LatentRanking
from absorb_pl.probes.rows import training_batches, training_labels


class LatentRankings(LightningModule):
    """Ranking probes that step through the same batches; each ends with the weights that it gets alone, bit for bit.

    A step of one probe is so short that the Trainer's loop and the optimiser take a good part of the time; here all
    probes share them. The sum of the losses is minimised, in which no weight of one probe touches another's.

    Args:
        probes: The probes, with equal settings of their optimiser and their steps.

    Attributes:
        losses: The mean loss of each probe, `[probes]`, by epoch. Logging them would take as long as the optimiser.
    """

    def __init__(self, probes: Sequence[LatentRanking]) -> None:
        super().__init__()
        self.probes = nn.ModuleList(probes)
        self.automatic_optimization = False
        self.losses: list[torch.Tensor] = []
        self._seen: list[tuple[torch.Tensor, int]] = []

    @property
    def members(self) -> list[LatentRanking]:
        """The probes."""
        return cast(list[LatentRanking], list(self.probes))

    def setup(self, stage: str) -> None:
        """Give every probe the Trainer."""
        for probe in self.members:
            probe.trainer = self.trainer
            probe.setup(stage)

    def on_train_start(self) -> None:
        """Count the labels and encode the training rows, once for all probes."""
        labels, batches = training_labels(self.trainer), list(training_batches(self.trainer))
        for probe in self.members:
            probe.count_labels(labels)
            probe.encode_training_rows(batches)
        [optimizer] = self.trainer.optimizers
        optimizer.param_groups[0]["params"] = [weight for probe in self.members for weight in probe.stepped]

    def training_step(self, batch: Batch) -> None:
        """Take the steps of a batch."""

        def losses(rows: Batch) -> torch.Tensor:
            return torch.stack([probe.training_loss(rows) for probe in self.members])

        rows_per_step = self.members[0].rows_per_step
        found = take_steps(self.optimizers(), batch, rows_per_step, losses)
        self._seen.append((found, len(batch["x"])))

    def on_train_epoch_end(self) -> None:
        """Sum up the losses, lower the learning rate, and finish after the last epoch."""
        rows = sum(count for _, count in self._seen)
        mean = torch.zeros_like(self._seen[0][0])
        for loss, count in self._seen:
            mean += loss * (count / rows)
        self.losses.append(mean)
        self._seen.clear()
        schedule: Any = self.lr_schedulers()
        schedule.step()
        if self.trainer.current_epoch + 1 == self.trainer.max_epochs:
            for probe in self.members:
                probe.finish_once()

    def on_train_end(self) -> None:
        """Let every probe finish what it has not, and forget the encoded training rows."""
        for probe in self.members:
            probe.on_train_end()

    def configure_optimizers(self) -> Any:
        """The optimiser of the first probe, for all."""
        return self.members[0].configure_optimizers()
