"""Stages of a pipeline: named units of work, each kept as an artifact."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from typing_extensions import override

from absorb_pl.data import Share, TrainerFactory
from absorb_pl.data.artifacts import artifact_path, open_artifact
from absorb_pl.errors import CacheCorruptedError


class Stage(ABC):
    """A stage whose units leave one artifact each under the cache.

    Args:
        cache_dir: Root of the cache.

    Attributes:
        name: Folder of the stage under the cache.
    """

    name: str

    def __init__(self, cache_dir: Path) -> None:
        self.cache_dir = cache_dir

    @abstractmethod
    def identity(self, unit: str) -> dict[str, Any]:
        """Everything that determines the artifact of a unit, plain types only."""

    @abstractmethod
    def run(self, units: Sequence[str], make_trainer: TrainerFactory) -> int:
        """Make what is missing; returns how many units that were.

        Args:
            units: Names of the units.
            make_trainer: Makes a Trainer with `inference_mode=False` from its callbacks.
        """

    def path(self, unit: str) -> Path:
        """Where the artifact of a unit lives."""
        return artifact_path(self.cache_dir, self.name, unit, self.identity(unit))

    def missing(self, units: Sequence[str]) -> list[str]:
        """The units without a whole artifact.

        Raises:
            CacheCorruptedError: An artifact's files do not match their checksums.
            ManifestMismatchError: An artifact was made from something else.
        """
        return [unit for unit in units if open_artifact(self.path(unit), self.identity(unit)) is None]

    def folder(self, unit: str) -> Path:
        """Folder of a unit's artifact, once the stage has run.

        Raises:
            CacheCorruptedError: There is none.
        """
        path = self.path(unit)
        if not path.is_dir():
            raise CacheCorruptedError(
                str(path), "missing", expected="a finished artifact", remedy=f"Run the stage {self.name} first."
            )
        return path


class UnitStage(Stage):
    """A stage whose units are independent, and spread over the devices of a Trainer.

    A unit is done by one process alone, so its result is the same however many processes there are.
    """

    @abstractmethod
    def make(self, unit: str, device: torch.device) -> None:
        """Do the unit's work on `device` and write its artifact to `path(unit)`."""

    @override
    def run(self, units: Sequence[str], make_trainer: TrainerFactory) -> int:
        missing = self.missing(units)
        if missing:
            trainer = make_trainer([])
            trainer.predict(_UnitLoop(self), Share(missing, "", trainer).loader(), return_predictions=False)
            trainer.strategy.barrier()
        return len(missing)


class _UnitLoop(LightningModule):
    """Makes one unit a predict step, with gradients allowed."""

    def __init__(self, stage: UnitStage) -> None:
        super().__init__()
        self.stage = stage

    @override
    def predict_step(self, unit: str, batch_idx: int) -> None:
        if unit:
            with torch.enable_grad():
                self.stage.make(unit, self.device)
