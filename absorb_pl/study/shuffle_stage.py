"""Shuffled copies as a stage of a study: what rates would be if latents pointed anywhere."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from typing_extensions import override

from absorb_pl.evaluators.shuffles import shuffled_rates
from absorb_pl.rules.evidence import Gradients
from absorb_pl.rules.rates import RateSettings
from absorb_pl.rules.rule import AbsorptionRule
from absorb_pl.study.probing_stages import SaeProbingStage
from absorb_pl.study.stage import Files, Stage


class ShuffleStage(Stage):
    """Judges copies of each SAE whose decoder rows were shuffled.

    Args:
        cache_dir: Root of the cache.
        probing: The finished stage that found main latents.
        rules: The rules of the study; those that need gradients are left out.
        copies: Copies of each SAE.
        rates: How rates are summed up.
    """

    name = "shuffles"
    title = "shuffles"

    def __init__(
        self,
        cache_dir: Path,
        probing: SaeProbingStage,
        rules: Sequence[AbsorptionRule],
        copies: int,
        rates: RateSettings,
    ) -> None:
        super().__init__(cache_dir)
        self.probing, self.copies, self.rates = probing, copies, rates
        self.rules = [rule for rule in rules if rule.evidence is not Gradients]

    @override
    def identity(self, unit: str) -> dict[str, Any]:
        return {
            "probing": self.probing.identity(unit),
            "rules": {rule.name: rule.own_settings() for rule in self.rules},
            "rates": asdict(self.rates),
            "copies": self.copies,
            "format": 1,
        }

    @override
    def size(self, unit: str) -> int:
        return self.probing.size(unit)

    @override
    def make(self, unit: str, device: torch.device) -> Files:
        source = self.probing.saes[unit]
        rows, letters = self.probing.probes.held_out(source.hook_name), self.probing.result(unit).letters
        found = shuffled_rates(source.load(device), rows, letters, self.rules, self.copies, self.rates)
        return {"rates.parquet": found}

    def table(self, unit: str) -> pd.DataFrame:
        """Rates of an SAE's copies, one row per copy and rule."""
        return self.read(unit, "rates.parquet")
