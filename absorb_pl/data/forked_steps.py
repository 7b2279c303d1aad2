"""Predict steps that are done ahead in forked processes, where they are too small for several threads."""

from abc import abstractmethod
from collections.abc import Generator, Sequence
from itertools import islice
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader
from typing_extensions import override

from absorb_pl.data.forks import forks_for, in_forks
from absorb_pl.data.shares import Share


class ForkedSteps(LightningModule):
    """A predict-only module that does small steps in forked processes, of which callbacks see what they predict.

    Steps are to leave nothing in the module that later ones need. Give loaders of a `Share`.
    """

    _forked: Generator[Any] | None = None

    @abstractmethod
    def step(self, batch: Any) -> Any:
        """What is predicted of a batch."""

    @abstractmethod
    def largest(self, batch: Any) -> int | None:
        """Values of the largest matrix that the step of a batch works on; None if it is to be done in this process."""

    @override
    def configure_callbacks(self) -> list[Callback]:
        return [_EndForks()]

    @override
    def on_predict_start(self) -> None:
        """Begin with the steps; to be called when all is there that they need."""
        loader = self.trainer.predict_dataloaders
        if isinstance(loader, DataLoader) and isinstance(loader.dataset, Share):  # it may be gone through twice
            [limit] = self.trainer.num_predict_batches
            batches = list(islice(loader, int(limit)))
            forks = forks_on(self.trainer, len(batches), [self.largest(batch) for batch in batches])
            if forks > 1:
                self._forked = in_forks(self.step, batches, forks)

    @override
    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return self.step(batch) if self._forked is None else next(self._forked)

    def end_forks(self) -> None:
        """End the processes, whatever they are at."""
        if self._forked is not None:
            self._forked.close()
            self._forked = None


class _EndForks(Callback):
    """Ends the processes of `ForkedSteps` with the loop."""

    @override
    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        _steps_of(pl_module).end_forks()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        _steps_of(pl_module).end_forks()


def forks_on(trainer: Trainer, pieces: int, sizes: Sequence[int | None]) -> int:
    """How many processes a Trainer's only process forks for pieces of work; see `forks_for`.

    Args:
        trainer: The Trainer.
        pieces: How many pieces there are.
        sizes: Values of the largest matrices that they work on; None for work that cannot be forked.
    """
    known = [size for size in sizes if size is not None]
    if len(known) < len(sizes) or trainer.world_size > 1 or trainer.strategy.root_device.type != "cpu":
        return 1
    return forks_for(pieces, max(known, default=0))


def _steps_of(module: LightningModule) -> ForkedSteps:
    assert isinstance(module, ForkedSteps)
    return module
