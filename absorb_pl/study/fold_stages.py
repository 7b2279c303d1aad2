"""What cross-fitting finds fold by fold: linear probes, main latents, and gradients at candidate words."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from typing_extensions import override

from absorb_pl.data.prompt_datamodule import PromptDataModule
from absorb_pl.engine.run_size import RunSize
from absorb_pl.evaluators.fold_mains import FoldMains, fold_mains
from absorb_pl.evaluators.folds import CrossfitSettings, Folds, ProbeOfFold
from absorb_pl.evaluators.gradients import GradientEvaluator
from absorb_pl.evaluators.sae_probing import SplitSettings
from absorb_pl.probes.settings import KSparseSettings
from absorb_pl.rules.evidence import Gradients
from absorb_pl.saes.source import SaeSource
from absorb_pl.study.evidence_stages import ScoringStage
from absorb_pl.study.probing_stages import LinearProbeStage
from absorb_pl.study.stage import Files, Stage


class FoldProbeStage(Stage):
    """Trains the linear probes of each hook's folds; a unit is a hook with the number of a repeat (see `units`).

    Args:
        cache_dir: Root of the cache.
        probes: The stage of the linear probes, for its data and settings.
        settings: How words are held out.
    """

    name = "fold_probes"
    title = "cross-fit"

    def __init__(self, cache_dir: Path, probes: LinearProbeStage, settings: CrossfitSettings) -> None:
        super().__init__(cache_dir)
        self.probes, self.settings = probes, settings
        self._folds: dict[str, Folds] = {}

    def units(self, hook: str) -> list[str]:
        """The units of a hook."""
        return [f"{hook}@{repeat}" for repeat in range(self.settings.repeats)]

    @override
    def identity(self, unit: str) -> dict[str, Any]:
        hook, repeat = unit.rsplit("@", 1)
        return {
            "linear_probe": self.probes.identity(hook),
            "folds": self.settings.folds,
            "repeat": int(repeat),
            "format": 1,
        }

    @override
    def size(self, unit: str) -> int:
        return self.probes.size(unit.rsplit("@", 1)[0])

    @override
    def make(self, unit: str, device: torch.device) -> Files:
        hook, repeat = unit.rsplit("@", 1)
        folds = self.folds(hook)
        probe = folds.probe_of_fold(self.probes.settings, device)
        found = [probe(int(repeat), fold, train) for fold, (train, _) in enumerate(folds.of_repeat(int(repeat)))]
        weight, bias = (torch.stack(part) for part in zip(*found, strict=True))
        return {"probes.safetensors": {"weight": weight, "bias": bias}}

    def folds(self, hook: str) -> Folds:
        """The words of a hook and how they are held out."""
        if hook not in self._folds:
            data = self.probes.data
            labels = data.activations.words.labels
            rows = data.activations.rows(hook, torch.arange(len(labels)))
            y = torch.nn.functional.one_hot(labels, len(data.class_names)).bool()
            self._folds[hook] = Folds(rows, y, data.class_names, self.settings, data.seed)
        return self._folds[hook]

    def probe_of_fold(self, hook: str) -> ProbeOfFold:
        """Gives weight and bias of the probe of each fold of a hook."""

        def probe(repeat: int, fold: int, _: Tensor) -> tuple[Tensor, Tensor]:
            found = self.read(self.units(hook)[repeat], "probes.safetensors")
            return found["weight"][fold], found["bias"][fold]

        return probe


class FoldMainsStage(Stage):
    """Finds main latents and candidate words of each SAE for all folds.

    Args:
        cache_dir: Root of the cache.
        saes: The SAEs by name.
        fold_probes: The finished stage of the linear probes of folds.
        k_sparse: Training of the k-sparse probes.
        splits: How main latents and candidate words are found.
    """

    name = "fold_mains"
    title = "cross-fit"

    def __init__(
        self,
        cache_dir: Path,
        saes: Mapping[str, SaeSource],
        fold_probes: FoldProbeStage,
        k_sparse: KSparseSettings,
        splits: SplitSettings,
    ) -> None:
        super().__init__(cache_dir)
        self.saes, self.fold_probes = saes, fold_probes
        self.k_sparse, self.splits = k_sparse, splits

    @override
    def identity(self, unit: str) -> dict[str, Any]:
        sae, probes = self.saes[unit], self.fold_probes
        return {
            "linear_probes": [probes.identity(one) for one in probes.units(sae.hook_name)],
            "sae": sae.identity,
            "dtype": sae.dtype,
            "folded": sae.folded,
            "k_sparse": asdict(self.k_sparse),
            "splits": asdict(self.splits),
            **asdict(self.fold_probes.settings),
            "format": 1,
        }

    @override
    def size(self, unit: str) -> int:
        return self.fold_probes.probes.data.values(self.saes[unit].d_sae)

    @override
    def make(self, unit: str, device: torch.device) -> Files:
        source = self.saes[unit]
        found = fold_mains(
            source.load(device),
            self.fold_probes.folds(source.hook_name),
            self.fold_probes.probe_of_fold(source.hook_name),
            self.k_sparse,
            self.splits,
            device,
        )
        return {f"{name}.parquet": table for name, table in vars(found).items()}

    def result(self, unit: str) -> FoldMains:
        """What was found of an SAE."""
        return FoldMains(**{name: self.read(unit, f"{name}.parquet") for name in ("letters", "candidates")})


class FoldGradientStage(ScoringStage):
    """Scores the candidate words of all folds of each SAE by integrated gradients, each word once.

    Args:
        cache_dir: Root of the cache.
        run_dir: The run's folder, where a pass under way keeps its table.
        words: The prompts.
        mains: The finished stage that found the candidates.
        evidence: How to score, for several rules.
        batch_size: Most sequences in one run of the model; `auto` takes what the device's memory allows.
        saes_per_pass: SAEs held in memory at once.
    """

    name = "fold_gradients"
    title = "cross-fit"

    def __init__(
        self,
        cache_dir: Path,
        run_dir: Path,
        words: PromptDataModule,
        mains: FoldMainsStage,
        evidence: Iterable[Gradients],
        batch_size: RunSize,
        saes_per_pass: int,
    ) -> None:
        super().__init__(cache_dir, run_dir, words, mains.saes, evidence, batch_size, saes_per_pass)
        self.mains = mains

    @override
    def scored_from(self, sae: str) -> dict[str, Any]:
        return {"mains": self.mains.identity(sae)}

    @override
    def candidates(self, sae: str) -> pd.DataFrame:
        return self.mains.result(sae).to_score

    @override
    def evaluator(
        self, saes: Mapping[str, Any], words: pd.DataFrame, evidence: Sequence[Gradients]
    ) -> GradientEvaluator:
        return GradientEvaluator(self.words.language_model, saes, words, evidence, self.batch_size)
