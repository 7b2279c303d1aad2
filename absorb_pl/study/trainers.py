"""The Trainers that the stages of a study run under."""

import dataclasses
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentError, ArgumentParser
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.loggers import Logger
from torch.profiler import profile, tensorboard_trace_handler
from typing_extensions import override

from absorb_pl.data.stopping import stoppable
from absorb_pl.data.trainers import TrainerFactory, named_trainer_errors
from absorb_pl.errors import TrainerError
from absorb_pl.study.config import TrainerSettings

_KINDS = {"callbacks": Callback, "logger": Logger, "plugins": ClusterEnvironment}
"""What objects that are given by their class must be, by argument."""


class _StageBar(TQDMProgressBar):
    """A progress bar that says which stage it is of."""

    def __init__(self, stage: str) -> None:
        super().__init__()
        self.stage = stage

    @property
    @override
    def predict_description(self) -> str:
        return self.stage


class _Trace(Callback):
    """Leaves a trace of all that a predict loop does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.running = ExitStack()

    @override
    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.running.enter_context(profile(on_trace_ready=tensorboard_trace_handler(str(self.folder))))

    @override
    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.running.close()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.running.close()


def stage_trainers(settings: TrainerSettings, stage: str, traces: Path | None = None) -> TrainerFactory:
    """Make the Trainers of a stage.

    Args:
        settings: Where they run.
        stage: What the progress bar says.
        traces: Where they leave traces of `torch.profiler`; nowhere when None.

    Returns:
        A function from callbacks to a Trainer; it raises `TrainerError` if there are no such devices, or a class is not
        what it must be.
    """
    arguments = dataclasses.asdict(settings)
    if settings.accelerator == "auto":
        arguments["accelerator"] = "gpu" if torch.cuda.is_available() else "cpu"  # Apple's GPUs have no float64

    def make(callbacks: list[Callback]) -> Trainer:
        bar = [_StageBar(stage)] if settings.enable_progress_bar else []
        trace = [_Trace(traces)] if traces is not None else []
        made = {name: [_made(name, each) for each in arguments[name]] for name in _KINDS}
        made["callbacks"] = [*callbacks, *made["callbacks"], *bar, *trace]
        with named_trainer_errors(dataclasses.asdict(settings)):
            return stoppable(
                Trainer(
                    **{**arguments, **made},
                    inference_mode=False,
                    enable_checkpointing=False,
                    enable_model_summary=False,
                )
            )

    return make


def _made(argument: str, given: dict[str, Any]) -> Any:
    """An object of the class that a setting names."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--made", type=_KINDS[argument])
    try:
        return parser.instantiate(parser.parse_object({"made": given}))["made"]
    except (ArgumentError, TypeError, ValueError) as error:
        raise TrainerError(
            f"trainer.{argument}",
            given,
            expected=f"the `class_path` of a {_KINDS[argument].__name__}, and its `init_args`",
            remedy=str(error),
        ) from error
