"""Stages of a study: named units of work, each kept as an artifact."""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar, cast

import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from typing_extensions import override

from absorb_pl.data.artifacts import artifact_path, open_artifact, write_artifact
from absorb_pl.data.claims import claim
from absorb_pl.data.forked_steps import ForkedSteps, forks_on
from absorb_pl.data.forks import at_a_time
from absorb_pl.data.shares import Share
from absorb_pl.data.trainers import TrainerFactory
from absorb_pl.errors import CacheCorruptedError

Files = Mapping[str, Any]
"""What an artifact holds by the names of its files: tables (`.parquet`), tensors by name (`.safetensors`), plain values
(`.json`)."""


class Stage(ABC):
    """A kind of work, done once per unit (a hook, or an SAE) and kept under the cache.

    A subclass says what determines a unit's artifact and makes it: unit by unit (`make`), each in one process alone, so
    that the result is the same however many processes there are; or some side by side, where that is faster
    (`make_some`); or all together (`make_all`). Small units are made in forked processes, where cores are free.

    Args:
        cache_dir: Root of the cache.

    Attributes:
        name: Folder of the stage under the cache.
        title: What manifests and progress bars call it.
        side_by_side: How many units are made side by side.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    side_by_side: ClassVar[int] = 1

    def __init__(self, cache_dir: Path) -> None:
        self.cache_dir = cache_dir

    @abstractmethod
    def identity(self, unit: str) -> dict[str, Any]:
        """Everything that determines the artifact of a unit, plain types only."""

    def make(self, unit: str, device: torch.device) -> Files:
        """Do the unit's work on `device`; returns what to keep. Others may do without: see `make_some`."""
        raise NotImplementedError

    def make_some(self, units: Sequence[str], device: torch.device) -> Iterator[tuple[str, Files]]:
        """Do the work of some units; yields each with what to keep, and no unit depends on the company of others."""
        for unit in units:
            yield unit, self.make(unit, device)

    def size(self, unit: str) -> int | None:  # noqa: ARG002
        """Values of the largest matrix that a unit's work is on; None, as here, if this process is to do it."""
        return None

    def make_all(self, units: Sequence[str], make_trainer: TrainerFactory) -> None:
        """Make units and keep them; by default some at a time, spread over the devices of a Trainer.

        Args:
            units: Names of the units.
            make_trainer: Makes a Trainer with `inference_mode=False` from its callbacks.
        """
        trainer = make_trainer([])
        forks = forks_on(trainer, len(units), [self.size(unit) for unit in units])
        loader = Share(units, "", trainer).loader(at_a_time(len(units), forks, self.side_by_side))
        trainer.predict(_UnitLoop(self), loader, return_predictions=False)
        trainer.strategy.barrier()

    def run(self, units: Sequence[str], make_trainer: TrainerFactory) -> int:
        """Make what is missing; returns how many units that were.

        Args:
            units: Names of the units.
            make_trainer: Makes a Trainer with `inference_mode=False` from its callbacks.
        """
        missing = self.missing(units)
        if missing:
            self.make_all(missing, make_trainer)
        return len(missing)

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

    def keep(self, unit: str, files: Files) -> None:
        """Write the artifact of a unit, whole or not at all.

        Raises:
            OutputFolderError: The cache cannot be written.
        """
        with write_artifact(self.path(unit), self.identity(unit)) as folder:
            for name, content in files.items():
                _write(folder / name, content)

    def read(self, unit: str, file: str) -> Any:
        """What a file of a unit's artifact holds.

        Raises:
            CacheCorruptedError: The stage has not made the unit.
        """
        path = self.path(unit)
        if not path.is_dir():
            raise CacheCorruptedError(
                str(path), "missing", expected="a finished artifact", remedy=f"Run the stage {self.name} first."
            )
        return _read(path / file)


class _UnitLoop(ForkedSteps):
    """Makes some units per predict step, with gradients allowed.

    Units that another study has begun are left to it; in the end their artifacts are waited for.
    """

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.stage = stage
        self._begun_elsewhere: list[str] = []

    @override
    def step(self, batch: list[str]) -> list[str]:
        return self._make([unit for unit in batch if unit], wait=False)

    @override
    def largest(self, batch: list[str]) -> int | None:
        sizes = [self.stage.size(unit) for unit in batch if unit]
        return None if None in sizes else max(cast(list[int], sizes), default=0)

    @override
    def predict_step(self, batch: list[str], batch_idx: int) -> None:
        self._begun_elsewhere += super().predict_step(batch, batch_idx)

    @override
    def on_predict_epoch_end(self) -> None:
        for unit in self._begun_elsewhere:
            self._make([unit], wait=True)
        self._begun_elsewhere = []

    def _make(self, units: list[str], *, wait: bool) -> list[str]:
        """Make units, but for those that another process makes, which are returned."""
        with ExitStack() as claims, torch.enable_grad():
            ours = [unit for unit in units if claims.enter_context(claim(self.stage.path(unit), wait=wait))]
            for unit, files in self.stage.make_some(self.stage.missing(ours), self.device):
                self.stage.keep(unit, files)
            return [unit for unit in units if unit not in ours]


def _write(file: Path, content: Any) -> None:
    if file.suffix == ".parquet":
        content.to_parquet(file, index=False)
    elif file.suffix == ".safetensors":
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in content.items()}, file)
    else:
        file.write_text(json.dumps(content, default=str), encoding="utf-8")


def _read(file: Path) -> Any:
    if file.suffix == ".parquet":
        return pd.read_parquet(file)
    return load_file(file) if file.suffix == ".safetensors" else json.loads(file.read_text(encoding="utf-8"))
