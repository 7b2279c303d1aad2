"""Trainers that leave SIGTERM to whoever runs them."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from absorb_pl.interruption import take_signals, watch_launcher


class StopOnSignal(Callback):
    """Lets `interruptible` stop a Trainer's loop.

    Trainers put a handler of their own in place of the one for SIGTERM. It leaves loops other than fits running, ends
    fits with exit code 0, and waits for all processes from within the handler, whatever they are at.
    """

    @override
    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        take_signals()

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        take_signals()

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        take_signals()

    @override
    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        take_signals()

    @override
    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        take_signals()


def stoppable(trainer: Trainer) -> Trainer:
    """Make a Trainer stop as `interruptible` says, with the processes that it will start.

    Args:
        trainer: The Trainer, before it runs.

    Returns:
        The same, with a callback more.

    Example:
        >>> trainer = stoppable(Trainer(logger=False, enable_checkpointing=False))
        >>> isinstance(trainer.callbacks[0], StopOnSignal)
        True
    """
    callbacks: list[Any] = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
    callbacks.insert(0, StopOnSignal())
    watch_launcher(trainer.strategy.launcher)
    return trainer
