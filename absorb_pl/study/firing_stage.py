"""Where named latents fire, as a stage of a study: the words behind the numbers."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from typing_extensions import override

from absorb_pl.evaluators.firings import firings_table, named_latents
from absorb_pl.study.probing_stages import SaeProbingStage
from absorb_pl.study.stage import Files, Stage


class FiringStage(Stage):
    """Finds on which held-out words the latents fire that an SAE's tables name.

    Args:
        cache_dir: Root of the cache.
        probing: The finished stage that found main latents.
        evidence: Gives all that has been gathered of an SAE for the rules.
    """

    name = "firings"
    title = "firings"

    def __init__(
        self, cache_dir: Path, probing: SaeProbingStage, evidence: Callable[[str], Sequence[pd.DataFrame]]
    ) -> None:
        super().__init__(cache_dir)
        self.probing, self.evidence = probing, evidence
        self._named: dict[str, list[int]] = {}

    @override
    def identity(self, unit: str) -> dict[str, Any]:
        return {"probing": self.probing.identity(unit), "latents": self._latents(unit), "format": 1}

    @override
    def size(self, unit: str) -> int:
        return self.probing.size(unit)

    @override
    def make(self, unit: str, device: torch.device) -> Files:
        source = self.probing.saes[unit]
        rows = self.probing.probes.held_out(source.hook_name)
        return {"firings.parquet": firings_table(source.load(device), rows, self._latents(unit))}

    def table(self, unit: str) -> pd.DataFrame:
        """Where an SAE's named latents fire, one row per latent and word."""
        return self.read(unit, "firings.parquet")

    def _latents(self, unit: str) -> list[int]:
        if unit not in self._named:
            found = self.probing.result(unit)
            self._named[unit] = named_latents(found.letters, found.latents, self.evidence(unit))
        return self._named[unit]
