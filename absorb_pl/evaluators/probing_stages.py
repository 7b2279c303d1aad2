"""The stages that train probes: one linear probe a hook, then everything that is asked of one SAE."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from safetensors.torch import load_file, save_file
from torch import Tensor
from typing_extensions import override

from absorb_pl.data import ActivationCache, PromptDataModule, Stage, stratified_split, write_artifact
from absorb_pl.models import content_hash
from absorb_pl.probes import LinearProbe, LinearProbeSettings, fit_probe

_FRAMES = ("latents", "k_sparse", "letters", "candidates")


@dataclass(frozen=True)
class ProbeData:
    """The labelled words behind cached activations, split for training and evaluation.

    Attributes:
        words: The prompts.
        activations: Cached rows of each hook.
        identities: Identity of the cached rows of each hook.
        test_fraction: Share of each class's words held out.
        seed: Seed of the split and of training.
    """

    words: PromptDataModule
    activations: Mapping[str, ActivationCache]
    identities: Mapping[str, dict[str, Any]]
    test_fraction: float
    seed: int

    def identity(self, hook: str) -> dict[str, Any]:
        """What determines the labelled, split rows of a hook."""
        return {
            "activations": self.identities[hook],
            "labels": content_hash({"labels": self.words.labels}, {"classes": self.words.task.classes}),
            "test_fraction": self.test_fraction,
            "seed": self.seed,
        }

    def split(self, hook: str, part: str) -> tuple[Tensor, Tensor, Tensor]:
        """Rows, one-hot labels and row numbers of `train` or `test`."""
        parts = stratified_split(self.words.labels, (1 - self.test_fraction, self.test_fraction), self.seed)
        index = parts[("train", "test").index(part)]
        y = torch.nn.functional.one_hot(self.words.labels[index], len(self.words.task.classes))
        return self.activations[hook].rows(index), y, index


class LinearProbeStage(Stage):
    """Trains the linear probe of each hook.

    Args:
        cache_dir: Root of the cache.
        data: The labelled rows.
        settings: How to train.
    """

    name = "linear_probes"

    def __init__(self, cache_dir: Path, data: ProbeData, settings: LinearProbeSettings) -> None:
        super().__init__(cache_dir)
        self.data, self.settings = data, settings

    @override
    def identity(self, unit: str) -> dict[str, Any]:
        return {**self.data.identity(unit), "settings": asdict(self.settings), "format": 1}

    @override
    def make(self, unit: str, device: torch.device) -> None:
        x, y, _ = self.data.split(unit, "train")
        with isolate_rng():
            torch.manual_seed(self.data.seed)
            probe = LinearProbe(x.shape[1], y.shape[1], class_names=list(self.data.words.task.classes), **asdict(self.settings))
            history = fit_probe(probe, x, y, device=device)
        with write_artifact(self.path(unit), self.identity(unit)) as folder:
            save_file({"weight": probe.weights.detach().cpu(), "bias": probe.biases.detach().cpu()}, folder / "probe.safetensors")
            history.to_parquet(folder / "training.parquet", index=False)

    def weights(self, hook: str) -> tuple[Tensor, Tensor]:
        """Weight `[classes, d_model]` and bias `[classes]` of a hook's probe."""
        tensors = load_file(self.folder(hook) / "probe.safetensors")
        return tensors["weight"], tensors["bias"]
