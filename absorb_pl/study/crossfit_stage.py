"""Cross-fitting as a stage of a study: every word judged out of sample, by rules that need no language model."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from typing_extensions import override

from absorb_pl.evaluators.crossfit import crossfit
from absorb_pl.evaluators.folds import CrossfitSettings, Folds, ProbeOfFold
from absorb_pl.evaluators.sae_probing import SplitSettings
from absorb_pl.probes.settings import KSparseSettings
from absorb_pl.rules.evidence import Gradients
from absorb_pl.rules.rates import RateSettings
from absorb_pl.rules.rule import AbsorptionRule
from absorb_pl.saes.source import SaeSource
from absorb_pl.study.probing_stages import LinearProbeStage
from absorb_pl.study.stage import Files, Stage

TABLES = ("crossfit", "crossfit_words")


class CrossfitStage(Stage):
    """Judges all words of each SAE out of sample, several times over.

    Args:
        cache_dir: Root of the cache.
        saes: The SAEs by name.
        probes: The stage of the linear probes, for its data and settings; probes of folds are trained here.
        rules: The rules of the study; those that need gradients are left out.
        settings: How words are held out.
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
        probes: LinearProbeStage,
        rules: Sequence[AbsorptionRule],
        settings: CrossfitSettings,
        k_sparse: KSparseSettings,
        splits: SplitSettings,
        rates: RateSettings,
    ) -> None:
        super().__init__(cache_dir)
        self.saes, self.probes, self.settings = saes, probes, settings
        self.rules = rules_to_crossfit(rules)
        self.k_sparse, self.splits, self.rates = k_sparse, splits, rates
        self._of_hooks: dict[str, tuple[Folds, ProbeOfFold]] = {}

    @override
    def identity(self, unit: str) -> dict[str, Any]:
        sae = self.saes[unit]
        return {
            "linear_probe": self.probes.identity(sae.hook_name),
            "sae": sae.identity,
            "dtype": sae.dtype,
            "folded": sae.folded,
            "k_sparse": asdict(self.k_sparse),
            "splits": asdict(self.splits),
            "rates": asdict(self.rates),
            "rules": {rule.name: rule.own_settings() for rule in self.rules},
            **asdict(self.settings),
            "format": 1,
        }

    @override
    def size(self, unit: str) -> int:
        return self.probes.data.values(self.saes[unit].d_sae)

    @override
    def make(self, unit: str, device: torch.device) -> Files:
        source = self.saes[unit]
        folds, probe_of_fold = self._folds(source.hook_name, device)
        found = crossfit(
            source.load(device),
            folds,
            self.rules,
            probe_of_fold=probe_of_fold,
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

    def _folds(self, hook: str, device: torch.device) -> tuple[Folds, ProbeOfFold]:
        """The folds of a hook; SAEs of one hook share its linear probes."""
        if hook not in self._of_hooks:
            data = self.probes.data
            labels = data.activations.words.labels
            rows = data.activations.rows(hook, torch.arange(len(labels)))
            y = torch.nn.functional.one_hot(labels, len(data.class_names)).bool()
            folds = Folds(rows, y, data.class_names, self.settings, data.seed)
            self._of_hooks[hook] = folds, folds.probe_of_fold(self.probes.settings, device)
        return self._of_hooks[hook]


def rules_to_crossfit(rules: Sequence[AbsorptionRule]) -> list[AbsorptionRule]:
    """The rules that activations are enough for.

    Args:
        rules: The rules of a study.
    """
    return [rule for rule in rules if rule.evidence is not Gradients]
