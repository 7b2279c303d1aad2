"""Units of work spread over the devices of a Trainer, each done whole by one of them."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader
from typing_extensions import override

Work = Callable[[str, torch.device], None]


class _UnitLoop(LightningModule):
    """Does one named unit of work a predict step, with gradients allowed."""

    def __init__(self, work: Work) -> None:
        super().__init__()
        self.work = work

    @override
    def predict_step(self, unit: str, batch_idx: int) -> None:
        with torch.enable_grad():
            self.work(unit, self.device)


def do_each(trainer: Trainer, units: Sequence[str], work: Work) -> None:
    """Do a piece of work for every unit; with several processes each does its share.

    A unit is done by one process alone, so its result is the same however many there are. Returns when all are
    done.

    Args:
        trainer: A Trainer with `inference_mode=False`.
        units: Names of the units.
        work: Called as `work(unit, device)`; leaves its result on disk.
    """
    loader: DataLoader[Any] = DataLoader(list(units), batch_size=None)  # pyright: ignore[reportArgumentType]
    trainer.predict(_UnitLoop(work), loader, return_predictions=False)
    trainer.strategy.barrier()
