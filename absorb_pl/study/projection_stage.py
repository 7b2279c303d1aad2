"""The projection stage of a study: what SAEBench's rules are decided on, one artifact an SAE."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from typing_extensions import override

from absorb_pl.data import write_artifact
from absorb_pl.evaluators.projections import score_projections
from absorb_pl.saes.source import SaeSource
from absorb_pl.study.probing_stages import LinearProbeStage, ProbeData, SaeProbingStage
from absorb_pl.study.stage import UnitStage

_WORDS, _CFG = "words.parquet", "sae_cfg.json"


class ProjectionStage(UnitStage):
    """Projects the held-out words that the linear probe is right about on the probe, from cached rows alone.

    Args:
        cache_dir: Root of the cache.
        data: The labelled rows.
        saes: The SAEs by name.
        probes: The finished stage of the linear probes.
        probing: The finished stage that found main latents.
        stored_absorbers: How many absorbers of a word can be asked for later.
    """

    name = "projections"

    def __init__(
        self,
        cache_dir: Path,
        data: ProbeData,
        saes: Mapping[str, SaeSource],
        probes: LinearProbeStage,
        probing: SaeProbingStage,
        stored_absorbers: int,
    ) -> None:
        super().__init__(cache_dir)
        self.data, self.saes, self.probes, self.probing = data, saes, probes, probing
        self.stored_absorbers = stored_absorbers

    @override
    def identity(self, unit: str) -> dict[str, Any]:
        return {"probing": self.probing.identity(unit), "stored_absorbers": self.stored_absorbers, "format": 2}

    @override
    def make(self, unit: str, device: torch.device) -> None:
        hook, sae = self.saes[unit].hook_name, self.saes[unit].load(device)
        classes = self.data.words.task.classes
        x, y, index = self.data.split(hook, "test")
        weight, bias = self.probes.weights(hook)
        seen = ((x @ weight.T + bias)[y.bool()] > 0).nonzero().squeeze(-1)
        mains = self.probing.result(unit).letters.set_index("label")["main_latents"]
        found = score_projections(
            sae,
            x[seen],
            index[seen].tolist(),
            [classes[c] for c in y[seen].argmax(dim=1).tolist()],
            weight,
            classes,
            {str(label): [int(latent) for latent in latents] for label, latents in mains.items()},
            stored_absorbers=self.stored_absorbers,
        )
        texts = [self.data.words.texts[row] for row in found["row"]]
        found = found.assign(word=[text.word for text in texts], prompt=[text.base for text in texts])
        cfg = getattr(sae, "cfg", None)
        described = cfg.to_dict() if cfg is not None and hasattr(cfg, "to_dict") else None
        with write_artifact(self.path(unit), self.identity(unit)) as folder:
            found.sort_values("row", ignore_index=True).to_parquet(folder / _WORDS, index=False)
            (folder / _CFG).write_text(json.dumps(described, default=str), encoding="utf-8")

    def table(self, unit: str) -> pd.DataFrame:
        """Stored scores of an SAE's words."""
        return pd.read_parquet(self.folder(unit) / _WORDS).assign(sae=unit)

    def sae_cfg(self, unit: str) -> dict[str, Any] | None:
        """Configuration of an SAE, as SAELens writes it; None for one without."""
        return json.loads((self.folder(unit) / _CFG).read_text(encoding="utf-8"))
