"""What a Trainer is given from outside: devices that may not be there, and checkpoints that may hold anything."""

import pickle
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from absorb_pl.data.drafts import user_path
from absorb_pl.errors import AbsorbError, CheckpointError, TrainerError


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
