"""The stages that train probes: one linear probe a hook, then everything that is asked of one SAE."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from safetensors.torch import load_file, save_file
from torch import Tensor
from typing_extensions import override

from absorb_pl.data import ActivationCache, PromptDataModule, stratified_split, write_artifact
from absorb_pl.data.splits import check_split
from absorb_pl.evaluators.sae_probing import EvaluationRows, SaeProbing, SplitSettings, evaluate_sae
from absorb_pl.probes import MISSING_LOGIT, KSparseProbe, LinearProbe, SaeProbe, fit_probe
from absorb_pl.probes.settings import KSparseSettings, LinearProbeSettings
from absorb_pl.saes.source import SaeSource
from absorb_pl.study.stage import UnitStage

_FRAMES = ("latents", "k_sparse", "letters", "candidates")
_PROBE, _CURVE = "probe.safetensors", "training.parquet"


@dataclass(frozen=True)
class ProbeData:
    """The labelled words behind cached activations, split for training and evaluation.

    Attributes:
        words: The prompts.
        activations: Cached rows of each hook.
        identities: Identity of the cached rows of each hook.
        test_fraction: Share of each class's words held out.
        seed: Seed of the split and of training.

    Raises:
        LabelError: The split leaves no words for training or none for evaluation.
    """

    words: PromptDataModule
    activations: Mapping[str, ActivationCache]
    identities: Mapping[str, dict[str, Any]]
    test_fraction: float
    seed: int

    def __post_init__(self) -> None:
        check_split(self.words.labels, self.test_fraction, self.seed)

    def identity(self, hook: str) -> dict[str, Any]:
        """What determines the labelled, split rows of a hook."""
        return {
            "activations": self.identities[hook],
            "task": self.words.identity,
            "test_fraction": self.test_fraction,
            "seed": self.seed,
        }

    def split(self, hook: str, part: str) -> tuple[Tensor, Tensor, Tensor]:
        """Rows, one-hot labels and row numbers of `train` or `test`."""
        parts = stratified_split(self.words.labels, (1 - self.test_fraction, self.test_fraction), self.seed)
        index = parts[("train", "test").index(part)]
        y = torch.nn.functional.one_hot(self.words.labels[index], len(self.words.task.classes))
        return self.activations[hook].rows(index), y, index

    @contextmanager
    def seeded(self) -> Iterator[None]:
        """Draw from this seed inside the block, whatever was drawn before, and leave the generators as they were."""
        with isolate_rng():
            torch.manual_seed(self.seed)
            yield


class LinearProbeStage(UnitStage):
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
        probe = LinearProbe(
            x.shape[1],
            y.shape[1],
            lr=self.settings.lr,
            end_lr=self.settings.end_lr,
            weight_decay=self.settings.weight_decay,
            class_names=self.data.words.task.classes,
            polish=self.settings.polish,
        )
        with self.data.seeded():
            curve = fit_probe(probe, x, y, self.settings.max_epochs, self.settings.batch_size, device)
        with write_artifact(self.path(unit), self.identity(unit)) as folder:
            save_file({"weight": probe.weights.detach().cpu(), "bias": probe.biases.detach().cpu()}, folder / _PROBE)
            curve.to_parquet(folder / _CURVE, index=False)

    def weights(self, hook: str) -> tuple[Tensor, Tensor]:
        """Weight `[classes, d_model]` and bias `[classes]` of a hook's probe."""
        tensors = load_file(self.folder(hook) / _PROBE)
        return tensors["weight"], tensors["bias"]

    def probe(self, hook: str) -> LinearProbe:
        """The probe of a hook."""
        return LinearProbe.from_weights(*self.weights(hook), self.data.words.task.classes)

    def curve(self, hook: str) -> pd.DataFrame:
        """Training curve of a hook's probe, a row an epoch."""
        return pd.read_parquet(self.folder(hook) / _CURVE)


class SaeProbingStage(UnitStage):
    """Trains the k-sparse probes of each SAE and evaluates it on the held-out words.

    Args:
        cache_dir: Root of the cache.
        data: The labelled rows.
        saes: The SAEs by name.
        probes: The finished stage of the linear probes.
        settings: How to train.
        splits: How main latents and candidate words are found.
    """

    name = "sae_probing"

    def __init__(
        self,
        cache_dir: Path,
        data: ProbeData,
        saes: Mapping[str, SaeSource],
        probes: LinearProbeStage,
        settings: KSparseSettings,
        splits: SplitSettings,
    ) -> None:
        super().__init__(cache_dir)
        self.data, self.saes, self.probes, self.settings, self.splits = data, saes, probes, settings, splits

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
            "format": 3,
        }

    @override
    def make(self, unit: str, device: torch.device) -> None:
        hook, sae = self.saes[unit].hook_name, self.saes[unit].load(device)
        x, y, _ = self.data.split(hook, "train")
        ks = tuple(k for k in self.settings.ks if k <= sae.W_dec.shape[0])
        probe = SaeProbe(
            sae,
            y.shape[1],
            ks=ks,
            l1_decay=self.settings.l1_decay,
            lr=self.settings.lr,
            end_lr=self.settings.end_lr,
            class_names=self.data.words.task.classes,
        )
        with self.data.seeded():
            curve = fit_probe(probe, x, y, self.settings.max_epochs, self.settings.batch_size, device)
        found = evaluate_sae(sae, probe, self._evaluation_rows(hook), self.splits)
        with write_artifact(self.path(unit), self.identity(unit)) as folder:
            for name in _FRAMES:
                getattr(found, name).to_parquet(folder / f"{name}.parquet", index=False)
            (folder / "statistics.json").write_text(json.dumps(found.statistics), encoding="utf-8")
            tensors = {"latent_ids": probe.latent_ids, "weight": probe.weight, "bias": probe.bias}
            save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, folder / _PROBE)
            curve.to_parquet(folder / _CURVE, index=False)

    def result(self, unit: str) -> SaeProbing:
        """What was found of an SAE."""
        folder = self.folder(unit)
        frames = {name: pd.read_parquet(folder / f"{name}.parquet") for name in _FRAMES}
        return SaeProbing(json.loads((folder / "statistics.json").read_text(encoding="utf-8")), **frames)

    def probes_of(self, unit: str) -> dict[int, dict[int, KSparseProbe]]:
        """The k-sparse probes of an SAE, by k and by number of the class, without classes that no training word has."""
        tensors = load_file(self.folder(unit) / _PROBE)
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
        """Training curve of an SAE's ranking probe, a row an epoch."""
        return pd.read_parquet(self.folder(unit) / _CURVE)

    def _evaluation_rows(self, hook: str) -> EvaluationRows:
        x, y, index = self.data.split(hook, "test")
        weight, bias = self.probes.weights(hook)
        return EvaluationRows(x, y.bool(), index, weight, x @ weight.T + bias, self.data.words.task.classes)
