"""What a datamodule must know of cached activations to serve them without loading the language model that gave them.

A small file in the cache says which rows belong to a model's folder as it is, a hook and a task. What cannot be told
without the model (a hub name, a folder that changed, another version) has no such file, and the model is loaded.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

import absorb_pl
from absorb_pl.data.artifacts import identity_key
from absorb_pl.data.drafts import whole_file
from absorb_pl.data.prompt_datamodule import PromptDataModule
from absorb_pl.models.bundled import SPELLER, speller_path
from absorb_pl.models.hooked_model import HookedModel
from absorb_pl.models.placement import local_folder
from absorb_pl.words import TaskConfig
from absorb_pl.words.tables import find_table

_FOLDER = "known_activations"
_VERSIONS = ("absorb-pl", "torch", "transformers", "transformer-lens", "tokenizers", "wordfreq")


@dataclass(frozen=True)
class KnownActivations:
    """What is known of cached rows.

    Attributes:
        identity: What determines them.
        labels: Class of each word.
        classes: Names of the classes.
        words: The words.
        positions: Positions of words in their prompts, each once.
        width: Length of a row.
    """

    identity: dict[str, Any]
    labels: list[int]
    classes: list[str]
    words: list[str]
    positions: list[int]
    width: int

    @classmethod
    def of(cls, data: PromptDataModule, identity: Mapping[str, Any], width: int) -> "KnownActivations":
        """What the prompts say.

        Args:
            data: The prompts.
            identity: What determines the rows.
            width: Length of a row.
        """
        task = data.task
        positions = data.prompts.word_positions.unique().tolist()
        return cls(dict(identity), list(task.labels), list(task.classes), list(task.words), positions, width)

    @property
    def label_numbers(self) -> Int[Tensor, " words"]:
        """Class of each word as a tensor."""
        return torch.tensor(self.labels)


def fingerprint(model: HookedModel, task: TaskConfig, **settings: str) -> str | None:
    """Short hash of all that determines cached rows and can be told without loading a model.

    Args:
        model: Name for `load_language_model`, or a model.
        task: The task's settings.
        settings: Hook, dtypes.

    Returns:
        The hash; None for a model that is not a folder on this machine, or a table that cannot be found.
    """
    folder = speller_path() if model == SPELLER else local_folder(model) if isinstance(model, str) else None
    if folder is None:
        return None
    files = [*folder.rglob("*"), *Path(absorb_pl.__file__).parent.rglob("*.py")]
    if task.table is not None:
        files.append(find_table(task.table.path))
    return identity_key(
        {
            "files": sorted((str(file), (stat := file.stat()).st_size, stat.st_mtime_ns) for file in files),
            "task": asdict(task),
            "versions": {package: version(package) for package in _VERSIONS},
            **settings,
        }
    )


def recall(cache_dir: Path, key: str | None) -> KnownActivations | None:
    """What is known under a fingerprint; None if nothing is."""
    file = cache_dir / _FOLDER / f"{key}.json"
    if key is None or not file.is_file():
        return None
    return KnownActivations(**json.loads(file.read_text(encoding="utf-8")))


def remember(cache_dir: Path, key: str | None, known: KnownActivations) -> None:
    """Keep what is known under a fingerprint.

    Raises:
        OutputFolderError: The cache cannot be written.
    """
    if key is not None:
        with whole_file(cache_dir / _FOLDER / f"{key}.json") as part:
            part.write_text(json.dumps(asdict(known)), encoding="utf-8")
