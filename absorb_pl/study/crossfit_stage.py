"""Cross-fitting as a stage of a study: every word judged out of sample."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from typing_extensions import override

from absorb_pl.data.trainers import TrainerFactory
from absorb_pl.evaluators.crossfit import judge_folds
from absorb_pl.rules.evidence import Gradients
from absorb_pl.rules.rates import RateSettings
from absorb_pl.rules.rule import AbsorptionRule
from absorb_pl.study.fold_stages import FoldGradientStage, FoldMainsStage
from absorb_pl.study.stage import Files, Stage

TABLES = ("crossfit", "crossfit_letters", "crossfit_words")


class CrossfitStage(Stage):
    """Judges all words of each SAE out of sample, several times over.

    Args:
        cache_dir: Root of the cache.
        mains: The stage of main latents of folds, which runs before this, after that of their linear probes.
        gradients: The stage of gradients at candidate words, which then runs; None if no rule needs it.
        rules: The rules of the study.
        rates: How rates are summed up.
    """

    name = "crossfit"
    title = "cross-fit"

    def __init__(
        self,
        cache_dir: Path,
        mains: FoldMainsStage,
        gradients: FoldGradientStage | None,
        rules: Sequence[AbsorptionRule],
        rates: RateSettings,
    ) -> None:
        super().__init__(cache_dir)
        self.mains, self.gradients = mains, gradients
        self.rules, self.rates = rules, rates

    @override
    def identity(self, unit: str) -> dict[str, Any]:
        return {
            "mains": self.mains.identity(unit),
            "gradients": {} if self.gradients is None else self.gradients.identities(unit),
            "rates": asdict(self.rates),
            "rules": {rule.name: rule.own_settings() for rule in self.rules},
            "format": 2,
        }

    @override
    def size(self, unit: str) -> int:
        return self.mains.size(unit)

    @override
    def run(self, units: Sequence[str], make_trainer: TrainerFactory) -> int:
        """Make what is missing of SAEs, with what it rests on before; returns how many SAEs that were."""
        missing = self.missing(units)
        hooks = dict.fromkeys(self.mains.saes[unit].hook_name for unit in missing)
        probes = self.mains.fold_probes
        probes.run([unit for hook in hooks for unit in probes.units(hook)], make_trainer)
        self.mains.run(missing, make_trainer)
        if self.gradients is not None:
            self.gradients.run(missing, make_trainer)
        return super().run(units, make_trainer)

    @override
    def make(self, unit: str, device: torch.device) -> Files:
        source, probes = self.mains.saes[unit], self.mains.fold_probes
        found = judge_folds(
            source.load(device),
            probes.folds(source.hook_name),
            self.mains.result(unit),
            self.rules,
            probes.probe_of_fold(source.hook_name),
            {
                rule.needs: self.gradients.table(unit, rule.needs)
                for rule in self.rules
                if self.gradients is not None and isinstance(rule.needs, Gradients)
            },
            self.rates,
        )
        return {f"{name}.parquet": found[name] for name in TABLES}

    def tables(self, unit: str) -> dict[str, pd.DataFrame]:
        """What was found of an SAE."""
        found = {name: self.read(unit, f"{name}.parquet") for name in TABLES}
        for table in found.values():
            table.insert(0, "sae", unit)
        return found
