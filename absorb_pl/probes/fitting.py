"""Fit a probe on tensors with a quiet Trainer of its own, and keep its training curve."""

import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Num
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torchmetrics import Metric
from typing_extensions import override

from absorb_pl.data.labelled_batches import DEFAULT_BATCH_SIZE, LabelledBatches
from absorb_pl.data.trainers import one_device_trainer
from absorb_pl.interruption import interruptible
from absorb_pl.probes.base import OneVsRestModule
from absorb_pl.probes.ranking import LatentRanking
from absorb_pl.probes.rankings import LatentRankings
from absorb_pl.ranges import Count, check_ranges

WHOLE_EPOCH_VALUES = 2**25
"""Most values of the rows that are gathered for a whole epoch at once, 128 MiB; larger ones are gathered a step."""


class _Curve(Callback):
    """Keeps what a module logs, a row per epoch."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        figures = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.rows.append({"epoch": trainer.current_epoch, **figures})


def fit_probe(
    probe: OneVsRestModule,
    x: Float[Tensor, "rows features"],
    y: Num[Tensor, "rows classes"],
    max_epochs: Count = 50,
    batch_size: Count = DEFAULT_BATCH_SIZE,
    device: torch.device | str = "cpu",
    *,
    show_progress: bool = False,
    verbose: bool = False,
) -> pd.DataFrame:
    """Fit a probe on one device; it is in evaluation mode afterwards.

    May be called inside a step of another Trainer. Batches are smaller than `batch_size` if an epoch would
    have fewer than the probe's `min_steps_per_epoch` steps. An epoch of few rows is one batch for the Trainer, whose
    loop takes longer than such steps themselves; the probe cuts it into its steps.

    Args:
        probe: The probe.
        x: What its batches hold as `x`.
        y: One-hot or multi-hot labels.
        max_epochs: Epochs.
        batch_size: Rows a step, at most.
        device: Where to train.
        show_progress: Show a progress bar.
        verbose: Show Lightning's messages.

    Returns:
        The training curve: `epoch` and what the probe logs.

    Example:
        >>> from absorb_pl.probes import LinearProbe
        >>> x = torch.eye(2).repeat(8, 1)
        >>> list(fit_probe(LinearProbe(2, 2), x, x, max_epochs=1).columns)
        ['epoch', 'train/loss', 'train/f1']
    """
    check_ranges(fit_probe, locals())
    return _fit(probe, [probe], x, y, max_epochs, batch_size, device, show_progress=show_progress, verbose=verbose)


def fit_rankings(
    probes: Sequence[LatentRanking],
    x: Float[Tensor, "rows features"],
    y: Num[Tensor, "rows classes"],
    max_epochs: Count = 50,
    batch_size: Count = DEFAULT_BATCH_SIZE,
    device: torch.device | str = "cpu",
) -> list[pd.DataFrame]:
    """Fit the ranking probes of several SAEs side by side; each ends as `fit_probe` leaves it.

    Args:
        probes: The probes, with equal settings of their optimiser.
        x: What their batches hold as `x`.
        y: One-hot or multi-hot labels.
        max_epochs: Epochs.
        batch_size: Rows a step, at most.
        device: Where to train.

    Returns:
        The training curve of each.
    """
    check_ranges(fit_rankings, locals())
    rankings = LatentRankings(probes)
    _fit(rankings, probes, x, y, max_epochs, batch_size, device)
    losses = torch.stack(rankings.losses, dim=1).tolist()
    return [pd.DataFrame({"epoch": range(len(of_probe)), "train/loss": of_probe}) for of_probe in losses]


def _fit(
    module: LightningModule,
    probes: Sequence[OneVsRestModule],
    x: Tensor,
    y: Tensor,
    max_epochs: int,
    batch_size: int,
    device: torch.device | str,
    *,
    show_progress: bool = False,
    verbose: bool = False,
) -> pd.DataFrame:
    """Fit a module that is or holds probes, which take equal steps; returns what it logs, a row per epoch."""
    target = torch.device(device)
    rows = LabelledBatches(x.detach().to(target, torch.float32).__getitem__, y.to(target, torch.float32))
    curve, size = _Curve(), min(batch_size, math.ceil(len(x) / probes[0].min_steps_per_epoch))
    for metric in (part for part in module.modules() if isinstance(part, Metric)):
        # The fit is this process's alone; others may fit something else meanwhile.
        metric.distributed_available_fn = lambda: False
    with interruptible(), nullcontext() if verbose else quiet_lightning():
        trainer = one_device_trainer(
            target, max_epochs=max_epochs, callbacks=[curve], enable_progress_bar=show_progress
        )
        module.to(target)  # probes put their SAE where they are, before the Trainer moves them
        whole = probes[0].steps and size < len(x) and x.numel() <= WHOLE_EPOCH_VALUES
        with _steps_of(probes, size if whole else None):
            trainer.fit(module, rows.loader(len(x) if whole else size, shuffle=len(x) > size))
    module.to(target)
    for probe in probes:
        probe.eval()
    return pd.DataFrame(curve.rows)


@contextmanager
def _steps_of(probes: Sequence[OneVsRestModule], rows: int | None) -> Iterator[None]:
    for probe in probes:
        probe.rows_per_step, probe.unseen = rows, True
        probe.automatic_optimization = probe.steps and rows is None
    try:
        yield
    finally:
        for probe in probes:
            probe.rows_per_step, probe.unseen = None, False


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Silence Lightning's messages and hints for a while; errors still show.

    Example:
        >>> with quiet_lightning():
        ...     logging.getLogger("lightning.pytorch").level == logging.ERROR
        True
    """
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
