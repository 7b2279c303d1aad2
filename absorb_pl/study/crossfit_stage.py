"""Cross-fitting as a stage of a study: every word judged out of sample, by rules that need no language model."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from typing_extensions import override

from absorb_pl.data.trainers import TrainerFactory
from absorb_pl.evaluators.crossfit import crossfit
from absorb_pl.evaluators.folds import CrossfitSettings, Folds
from absorb_pl.evaluators.sae_probing import SplitSettings
from absorb_pl.probes.settings import KSparseSettings
from absorb_pl.rules.evidence import Gradients
from absorb_pl.rules.rates import RateSettings
from absorb_pl.rules.rule import AbsorptionRule
from absorb_pl.saes.source import SaeSource
from absorb_pl.study.probing_stages import LinearProbeStage
from absorb_pl.study.stage import Files, Stage

TABLES = ("crossfit", "crossfit_words")


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

    def probe_of(self, hook: str, repeat: int, fold: int) -> tuple[Tensor, Tensor]:
        """Weight and bias of the probe of a fold."""
        found = self.read(self.units(hook)[repeat], "probes.safetensors")
        return found["weight"][fold], found["bias"][fold]


class CrossfitStage(Stage):
    """Judges all words of each SAE out of sample, several times over.

    Args:
        cache_dir: Root of the cache.
        saes: The SAEs by name.
        fold_probes: The stage of the linear probes of folds, which runs before this.
        rules: The rules of the study; those that need gradients are left out.
        k_sparse: Training of the k-sparse probes.
        splits: How main latents and candidate words are found.
        rates: How rates are summed up.
    """

    name = "crossfit"
    title = "cross-fit"

    def __init__(
        self,
        cache_dir: Path,
        saes: Mapping[str, SaeSource],
        fold_probes: FoldProbeStage,
        rules: Sequence[AbsorptionRule],
        k_sparse: KSparseSettings,
        splits: SplitSettings,
        rates: RateSettings,
    ) -> None:
        super().__init__(cache_dir)
        self.saes, self.fold_probes = saes, fold_probes
        self.rules = rules_to_crossfit(rules)
        self.k_sparse, self.splits, self.rates = k_sparse, splits, rates

    @override
    def identity(self, unit: str) -> dict[str, Any]:
        sae = self.saes[unit]
        return {
            "linear_probe": self.fold_probes.probes.identity(sae.hook_name),
            "sae": sae.identity,
            "dtype": sae.dtype,
            "folded": sae.folded,
            "k_sparse": asdict(self.k_sparse),
            "splits": asdict(self.splits),
            "rates": asdict(self.rates),
            "rules": {rule.name: rule.own_settings() for rule in self.rules},
            **asdict(self.fold_probes.settings),
            "format": 1,
        }

    @override
    def size(self, unit: str) -> int:
        return self.fold_probes.probes.data.values(self.saes[unit].d_sae)

    @override
    def run(self, units: Sequence[str], make_trainer: TrainerFactory) -> int:
        """Make what is missing of SAEs, with the linear probes of folds before; returns how many SAEs that were."""
        hooks = dict.fromkeys(self.saes[unit].hook_name for unit in self.missing(units))
        self.fold_probes.run([unit for hook in hooks for unit in self.fold_probes.units(hook)], make_trainer)
        return super().run(units, make_trainer)

    @override
    def make(self, unit: str, device: torch.device) -> Files:
        source = self.saes[unit]
        found = crossfit(
            source.load(device),
            self.fold_probes.folds(source.hook_name),
            self.rules,
            probe_of_fold=lambda repeat, fold, _: self.fold_probes.probe_of(source.hook_name, repeat, fold),
            k_sparse=self.k_sparse,
            splits=self.splits,
            rates=self.rates,
            device=device,
        )
        return {f"{name}.parquet": found[name] for name in TABLES}

    def tables(self, unit: str) -> dict[str, pd.DataFrame]:
        """What was found of an SAE."""
        found = {name: self.read(unit, f"{name}.parquet") for name in TABLES}
        for table in found.values():
            table.insert(0, "sae", unit)
        return found


def rules_to_crossfit(rules: Sequence[AbsorptionRule]) -> list[AbsorptionRule]:
    """The rules that activations are enough for.

    Args:
        rules: The rules of a study.
    """
    return [rule for rule in rules if rule.evidence is not Gradients]
