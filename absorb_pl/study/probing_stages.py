"""The stages before any rule: activations, one linear probe per hook, and everything that is asked of one SAE."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from lightning.pytorch import Callback
from torch import Tensor
from typing_extensions import override

from absorb_pl.data.activation_cache import ActivationCache, StorageDtype
from absorb_pl.data.collector import ActivationCacheWriter, ActivationCollector
from absorb_pl.data.prompt_datamodule import PromptDataModule
from absorb_pl.data.splits import stratified_split
from absorb_pl.data.trainers import TrainerFactory
from absorb_pl.evaluators.sae_probing import EvaluationRows, SaeProbing, SplitSettings, evaluate_sae
from absorb_pl.evaluators.training import SIDE_BY_SIDE, portions_side_by_side, train_linear_probe, train_sae_probes
from absorb_pl.probes.base import MISSING_LOGIT
from absorb_pl.probes.linear import LinearProbe
from absorb_pl.probes.settings import KSparseSettings, LinearProbeSettings
from absorb_pl.probes.training import KSparseProbe
from absorb_pl.saes.source import SaeSource
from absorb_pl.study.stage import Files, Stage

_FRAMES = ("latents", "k_sparse", "letters", "candidates")


class ActivationStage(Stage):
    """Residual activations at the words; one pass over the prompts serves all hooks that are missing.

    Args:
        cache_dir: Root of the cache.
        words: The prompts.
        identities: What determines the rows of each hook.
        dtype: Storage dtype.
    """

    name = "activations"
    title = "activations"

    def __init__(
        self,
        cache_dir: Path,
        words: PromptDataModule,
        identities: Mapping[str, dict[str, object]],
        dtype: StorageDtype,
    ) -> None:
        super().__init__(cache_dir)
        self.words, self.identities = words, identities
        self.dtype: StorageDtype = dtype
        self._opened: dict[str, ActivationCache] = {}

    @override
    def identity(self, unit: str) -> dict[str, Any]:
        return dict(self.identities[unit])

    @override
    def make_all(self, units: Sequence[str], make_trainer: TrainerFactory) -> None:
        writer: Callback = ActivationCacheWriter(
            self.cache_dir, self.dtype, {hook: self.identity(hook) for hook in units}
        )
        collector = ActivationCollector(self.words.language_model, units)
        make_trainer([writer]).predict(collector, datamodule=self.words, return_predictions=False)

    def rows(self, hook: str, index: Tensor) -> Tensor:
        """Rows of a hook, float32, in the order of `index`."""
        return self._cache(hook).rows(index)

    def width(self, hook: str) -> int:
        """Width of a hook's rows."""
        return self._cache(hook).width

    def _cache(self, hook: str) -> ActivationCache:
        if hook not in self._opened:
            self._opened[hook] = ActivationCache(self.path(hook))
        return self._opened[hook]


@dataclass(frozen=True)
class ProbeData:
    """The labelled activations of a study, split for training and evaluation.

    Attributes:
        activations: The finished stage of the activations.
        test_fraction: Share of each class's words held out.
        seed: Seed of the split and of training.
    """

    activations: ActivationStage
    test_fraction: float
    seed: int

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.activations.words.task.classes

    def values(self, width: int) -> int:
        """How many values all words have in a matrix of such a width."""
        return width * len(self.activations.words.labels)

    def identity(self, hook: str) -> dict[str, Any]:
        """What determines the labelled, split rows of a hook."""
        return {
            "activations": self.activations.identity(hook),
            "task": self.activations.words.identity,
            "test_fraction": self.test_fraction,
            "seed": self.seed,
        }

    def split(self, hook: str, part: str) -> tuple[Tensor, Tensor, Tensor]:
        """Rows, one-hot labels and row numbers of `train` or `test`."""
        labels = self.activations.words.labels
        parts = stratified_split(labels, (1 - self.test_fraction, self.test_fraction), self.seed)
        index = parts[("train", "test").index(part)]
        y = torch.nn.functional.one_hot(labels[index], len(self.class_names))
        return self.activations.rows(hook, index), y, index


class LinearProbeStage(Stage):
    """Trains the linear probe of each hook.

    Args:
        cache_dir: Root of the cache.
        data: The labelled rows.
        settings: How to train.
    """

    name = "linear_probes"
    title = "linear probes"

    def __init__(self, cache_dir: Path, data: ProbeData, settings: LinearProbeSettings) -> None:
        super().__init__(cache_dir)
        self.data, self.settings = data, settings

    @override
    def identity(self, unit: str) -> dict[str, Any]:
        return {**self.data.identity(unit), "settings": self.settings.identity, "format": 2}

    @override
    def size(self, unit: str) -> int:
        return self.data.values(self.data.activations.width(unit))

    @override
    def make(self, unit: str, device: torch.device) -> Files:
        x, y, _ = self.data.split(unit, "train")
        probe, curve = train_linear_probe(x, y, self.settings, self.data.class_names, self.data.seed, device)
        return {"probe.safetensors": {"weight": probe.weights, "bias": probe.biases}, "training.parquet": curve}

    def weights(self, hook: str) -> tuple[Tensor, Tensor]:
        """Weight `[classes, d_model]` and bias `[classes]` of a hook's probe."""
        tensors = self.read(hook, "probe.safetensors")
        return tensors["weight"], tensors["bias"]

    def probe(self, hook: str) -> LinearProbe:
        """The probe of a hook."""
        return LinearProbe.from_weights(*self.weights(hook), self.data.class_names)

    def curve(self, hook: str) -> pd.DataFrame:
        """Training curve of a hook's probe, one row per epoch."""
        return self.read(hook, "training.parquet")

    def held_out(self, hook: str) -> EvaluationRows:
        """The held-out words, with the probe's opinion of them."""
        return EvaluationRows.of(*self.data.split(hook, "test"), *self.weights(hook), self.data.class_names)


class SaeProbingStage(Stage):
    """Trains the k-sparse probes of each SAE and evaluates it on the held-out words.

    Args:
        cache_dir: Root of the cache.
        saes: The SAEs by name.
        probes: The finished stage of the linear probes.
        settings: How to train.
        splits: How main latents and candidate words are found.
    """

    name = "sae_probing"
    title = "k-sparse probes"
    side_by_side = SIDE_BY_SIDE

    def __init__(
        self,
        cache_dir: Path,
        saes: Mapping[str, SaeSource],
        probes: LinearProbeStage,
        settings: KSparseSettings,
        splits: SplitSettings,
    ) -> None:
        super().__init__(cache_dir)
        self.saes, self.probes, self.settings, self.splits = saes, probes, settings, splits

    @override
    def identity(self, unit: str) -> dict[str, Any]:
        sae = self.saes[unit]
        return {
            "linear_probe": self.probes.identity(sae.hook_name),
            "sae": sae.identity,
            "dtype": sae.dtype,
            "settings": asdict(self.settings),
            "splits": asdict(self.splits),
            **({"folded": sae.folded} if sae.folded else {}),  # probes made before norms were folded are others
            "format": 6,
        }

    @override
    def size(self, unit: str) -> int:
        return self.probes.data.values(self.saes[unit].d_sae)

    @override
    def make_some(self, units: Sequence[str], device: torch.device) -> Iterator[tuple[str, Files]]:
        for hook in dict.fromkeys(self.saes[unit].hook_name for unit in units):
            names = [unit for unit in units if self.saes[unit].hook_name == hook]
            for portion in portions_side_by_side([self.saes[name].d_sae for name in names]):
                yield from self._made(hook, [names[number] for number in portion], device)

    def _made(self, hook: str, names: Sequence[str], device: torch.device) -> Iterator[tuple[str, Files]]:
        """What is found of SAEs that are held in memory together."""
        data, held_out = self.probes.data, self.probes.held_out(hook)
        saes = [self.saes[name].load(device) for name in names]
        x, y, _ = data.split(hook, "train")
        trained = train_sae_probes(saes, x, y, self.settings, data.class_names, data.seed, device)
        for name, sae, (probe, curve) in zip(names, saes, trained, strict=True):
            found = evaluate_sae(sae, probe, held_out, self.splits, (x, y))
            files = {
                **{f"{frame}.parquet": getattr(found, frame) for frame in _FRAMES},
                "statistics.json": found.statistics,
                "probe.safetensors": {"latent_ids": probe.latent_ids, "weight": probe.weight, "bias": probe.bias},
                "training.parquet": curve,
            }
            yield name, files

    def result(self, unit: str) -> SaeProbing:
        """What was found of an SAE."""
        frames = {name: self.read(unit, f"{name}.parquet") for name in _FRAMES}
        return SaeProbing(self.read(unit, "statistics.json"), **frames)

    def probes_of(self, unit: str) -> dict[int, dict[int, KSparseProbe]]:
        """The k-sparse probes of an SAE, by k and by number of the class, without classes that no training word has."""
        tensors = self.read(unit, "probe.safetensors")
        ids, weight, bias = (tensors[name] for name in ("latent_ids", "weight", "bias"))
        ks = [k for k in sorted(set(self.settings.ks)) if k <= self.saes[unit].d_sae]
        return {
            k: {
                c: KSparseProbe(weight[i, c, :k], bias[i, c], ids[c, :k])
                for c in range(len(ids))
                if bias[i, c] != MISSING_LOGIT
            }
            for i, k in enumerate(ks)
        }

    def curve(self, unit: str) -> pd.DataFrame:
        """Training curve of an SAE's ranking probe, one row per epoch."""
        return self.read(unit, "training.parquet")
