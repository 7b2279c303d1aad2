"""What a Trainer is given from outside: devices that may not be there, and checkpoints that may hold anything."""

import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.strategies import SingleDeviceStrategy

from absorb_pl.data.drafts import user_path
from absorb_pl.data.stopping import stoppable
from absorb_pl.errors import AbsorbError, CheckpointError, TrainerError
from absorb_pl.ranges import Count, CountOrMinusOne, CountOrZero, Fraction, NotNegative, check_ranges

TrainerFactory = Callable[[list[Callback]], Trainer]
"""Makes a Trainer from its callbacks."""


def check_trainer_numbers(
    *,
    num_nodes: Count = 1,
    max_epochs: CountOrMinusOne | None = None,
    min_epochs: CountOrZero | None = None,
    max_steps: CountOrMinusOne = -1,
    min_steps: CountOrZero | None = None,
    limit_train_batches: Fraction | CountOrZero | None = None,
    limit_val_batches: Fraction | CountOrZero | None = None,
    limit_test_batches: Fraction | CountOrZero | None = None,
    limit_predict_batches: Fraction | CountOrZero | None = None,
    overfit_batches: Fraction | CountOrZero = 0.0,
    check_val_every_n_epoch: Count | None = 1,
    num_sanity_val_steps: CountOrMinusOne | None = None,
    log_every_n_steps: CountOrZero | None = None,
    accumulate_grad_batches: Count = 1,
    gradient_clip_val: NotNegative | None = None,
    reload_dataloaders_every_n_epochs: CountOrZero = 0,
    **_: Any,
) -> None:
    """Refuse numbers that a Trainer cannot do anything with; Lightning itself looks at some of them only.

    The arguments are those of `lightning.Trainer`; of its others there is no range.

    Raises:
        RangeError: Names the first that is outside, and its range.

    Example:
        >>> check_trainer_numbers(accumulate_grad_batches=0)
        Traceback (most recent call last):
            ...
        absorb_pl.errors.RangeError: `accumulate_grad_batches` was 0, expected a whole number, at least 1 and ...
    """
    check_ranges(check_trainer_numbers, locals())


@contextmanager
def named_trainer_errors(settings: Mapping[str, Any]) -> Iterator[None]:
    """While a Trainer is made, turn what Lightning says of devices that are not there into a named error.

    Args:
        settings: What the Trainer was asked for, for the error.

    Raises:
        TrainerError: The Trainer could not be made.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> with named_trainer_errors({"devices": 0}):
        ...     Trainer(accelerator="cpu", devices=0)
        Traceback (most recent call last):
            ...
        absorb_pl.errors.TrainerError: `trainer` was {'devices': 0}, expected devices that this machine has. ...
    """
    try:
        yield
    except AbsorbError:
        raise
    except (MisconfigurationException, ValueError, TypeError, ImportError) as error:
        raise TrainerError(
            "trainer", dict(settings), expected="devices that this machine has", remedy=str(error)
        ) from error


def one_device_trainer(device: torch.device | str, **options: Any) -> Trainer:
    """A Trainer on one device that writes nothing, for what runs inside a stage or another Trainer.

    Args:
        device: The device.
        **options: Further arguments of `lightning.Trainer`.

    Example:
        >>> one_device_trainer("cpu", max_steps=3, enable_progress_bar=False).max_steps
        3
    """
    device = torch.device(device)
    return stoppable(
        Trainer(
            accelerator="gpu" if device.type == "cuda" else device.type,
            strategy=SingleDeviceStrategy(device),
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            **options,
        )
    )


def log_folder(trainer: Trainer) -> Path:
    """Where a Trainer's run is written. All processes must ask, for they agree on it.

    Args:
        trainer: The Trainer.

    Example:
        >>> log_folder(Trainer(logger=False, enable_checkpointing=False, default_root_dir="runs")).name
        'runs'
    """
    return Path(trainer.log_dir or trainer.default_root_dir)


def checkpoint_file(path: str) -> str:
    """The file of a checkpoint, once it is known to be of this machine and to hold weights and settings alone.

    Lightning would fetch addresses, and run the code that a pickle can carry.

    Args:
        path: The checkpoint's file.

    Returns:
        Its absolute path, a leading `~` resolved.

    Raises:
        CheckpointError: There is no such file, or it is not a checkpoint of weights and settings alone.

    Example:
        >>> checkpoint_file("https://a.org/a.ckpt")
        Traceback (most recent call last):
            ...
        absorb_pl.errors.CheckpointError: `ckpt_path` was 'https://a.org/a.ckpt', expected a file... Download...
    """
    if "://" in path:
        raise CheckpointError(
            "ckpt_path", path, expected="a file on this machine", remedy="Download it, and name the file."
        )
    file = user_path(path)
    if not file.is_file():
        raise CheckpointError(
            "ckpt_path",
            path,
            expected="the file of a checkpoint",
            remedy="Name a `.ckpt` file below the run's `checkpoints` folder.",
        )
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, zipfile.BadZipFile, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            "ckpt_path",
            path,
            expected="a checkpoint that holds weights and settings alone",
            remedy="It is damaged, or carries code, which is not run.",
        ) from error
    if not isinstance(found, dict) or "state_dict" not in found:
        raise CheckpointError(
            "ckpt_path", path, expected="a checkpoint of Lightning, with a `state_dict`", remedy="Train one with `fit`."
        )
    return str(file)
