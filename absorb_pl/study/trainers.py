"""The Trainers that the stages of a study run under."""

import dataclasses

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from typing_extensions import override

from absorb_pl.data.stopping import stoppable
from absorb_pl.data.trainers import TrainerFactory, named_trainer_errors
from absorb_pl.study.config import TrainerSettings


class _StageBar(TQDMProgressBar):
    """A progress bar that says which stage it is of."""

    def __init__(self, stage: str) -> None:
        super().__init__()
        self.stage = stage

    @property
    @override
    def predict_description(self) -> str:
        return self.stage


def stage_trainers(settings: TrainerSettings, stage: str) -> TrainerFactory:
    """Make the Trainers of a stage.

    Args:
        settings: Where they run.
        stage: What the progress bar says.

    Returns:
        A function from callbacks to a Trainer; it raises `TrainerError` if there are no such devices.
    """
    arguments = dataclasses.asdict(settings)
    if settings.accelerator == "auto":
        arguments["accelerator"] = "gpu" if torch.cuda.is_available() else "cpu"  # Apple's GPUs have no float64

    def make(callbacks: list[Callback]) -> Trainer:
        bar = [_StageBar(stage)] if settings.enable_progress_bar else []
        with named_trainer_errors(dataclasses.asdict(settings)):
            return stoppable(
                Trainer(
                    **arguments,
                    callbacks=[*callbacks, *bar],
                    inference_mode=False,
                    logger=False,
                    enable_checkpointing=False,
                    enable_model_summary=False,
                )
            )

    return make
