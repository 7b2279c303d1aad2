"""Predict steps that are done ahead in forked processes, where they are too small for several threads."""

from abc import abstractmethod
from collections.abc import Generator, Sequence
from itertools import islice
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.profilers import PassThroughProfiler
from torch.utils.data import DataLoader
from typing_extensions import override

from absorb_pl.data.forks import forks_for, in_forks
from absorb_pl.data.shares import Share


class ForkedSteps(LightningModule):
    """A predict-only module whose steps are done in forked processes where they are small.

    Steps are to leave nothing in the module that later ones need. Callbacks see what steps predict and no more.
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
        return [_EndForks(self)]

    @override
    def on_predict_start(self) -> None:
        """Begin with the steps; to be called when all is there that they need."""
        loader = self.trainer.predict_dataloaders
        if not (isinstance(loader, DataLoader) and isinstance(loader.dataset, Share)):
            return  # other loaders may not be gone through twice
        [limit] = self.trainer.num_predict_batches
        if forks_on(self.trainer, int(limit), []) > 1:
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
    """Ends a module's processes with its loop; a Trainer keeps the callback when it goes on to other modules."""

    def __init__(self, steps: ForkedSteps) -> None:
        self.steps = steps

    @override
    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.steps.end_forks()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.steps.end_forks()


def forks_on(trainer: Trainer, pieces: int, sizes: Sequence[int | None]) -> int:
    """How many processes to fork for pieces of work that a Trainer runs, see `forks_for`.

    It is 1 if the Trainer has several processes, another device than a CPU, or a profiler, which would see no work.

    Args:
        trainer: The Trainer.
        pieces: How many pieces there are.
        sizes: Values of the largest matrices that they work on; None for work that cannot be forked.
    """
    known = [size for size in sizes if size is not None]
    alone = trainer.world_size == 1 and trainer.strategy.root_device.type == "cpu"
    if len(known) < len(sizes) or not alone or not isinstance(trainer.profiler, PassThroughProfiler):  # pyright: ignore[reportAttributeAccessIssue]
        return 1
    return forks_for(pieces, max(known, default=0))
