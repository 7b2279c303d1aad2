"""How an experiment runs: the stages of a study up to one, then data frames of each SAE, kept like the stages' own."""

import re
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from typing_extensions import override

from absorb_pl.evaluators.writers import write_table
from absorb_pl.experiments.common import SaeInfo
from absorb_pl.functional.sae_stats import SaeStatistics
from absorb_pl.probes.fitting import quiet_lightning
from absorb_pl.probes.latents import encode_latents
from absorb_pl.saes.interface import SparseAutoencoder
from absorb_pl.study.config import StageName, StudyConfig
from absorb_pl.study.stage import Files, Stage
from absorb_pl.study.stages import StudyStages
from absorb_pl.study.sweep import run_study
from absorb_pl.study.trainers import stage_trainers

Frames = dict[str, pd.DataFrame]
Results = dict[int, list[tuple[pd.DataFrame, SaeInfo]]]
"""The main data frame of each SAE with what it is of, by layer."""

_INFO = "info.json"


class FrameStage(Stage):
    """Makes the data frames of one experiment from finished stages of a study, one artifact per SAE.

    Args:
        stages: The stages of the study.
        infos: What the caller says of SAEs; the rest is measured.
    """

    title = "data frames"

    def __init__(self, stages: StudyStages, infos: Mapping[str, SaeInfo]) -> None:
        super().__init__(stages.probes.cache_dir)
        self.stages, self.infos = stages, infos

    @abstractmethod
    def basis(self, unit: str) -> dict[str, Any]:
        """What determines the frames of an SAE, beside what the caller says of it."""

    @abstractmethod
    def frames(self, unit: str, sae: SparseAutoencoder, info: SaeInfo) -> Frames:
        """The frames of an SAE by the names of their files, the main one last."""

    @override
    def identity(self, unit: str) -> dict[str, Any]:
        said = asdict(self.infos[unit]) if unit in self.infos else None
        return {**self.basis(unit), "said": said, "format": 1}

    @override
    def size(self, unit: str) -> int:
        return self.stages.probing.size(unit)

    @override
    def make(self, unit: str, device: torch.device) -> Files:
        sae = self.stages.subject.saes[unit].load(device)
        info = self.infos.get(unit) or self._measured(unit, sae)
        frames = self.frames(unit, sae, info)
        return {**frames, _INFO: {"info": asdict(info), "files": list(frames)}}

    def result(self, unit: str) -> tuple[Frames, SaeInfo]:
        """The frames of an SAE, read back, and what they are of."""
        found = self.read(unit, _INFO)
        return {name: self.read(unit, name) for name in found["files"]}, SaeInfo(**found["info"])

    def held_out(self, unit: str) -> tuple[Tensor, list[tuple[str, int]]]:
        """Residual rows of the held-out words, and word and class number of each."""
        rows = self.stages.probes.held_out(self.stages.subject.saes[unit].hook_name)
        words = [self.stages.subject.words.texts[row].word for row in rows.index.tolist()]
        return rows.x, list(zip(words, rows.y.int().argmax(dim=1).tolist(), strict=True))

    def _measured(self, unit: str, sae: SparseAutoencoder) -> SaeInfo:
        x, _ = self.held_out(unit)
        source, statistics = self.stages.subject.saes[unit], SaeStatistics.empty(x.shape[1], sae.W_dec.shape[0])
        encode_latents(sae, x, torch.zeros(0, dtype=torch.long), statistics)
        return SaeInfo(statistics.l0, source.layer, source.d_sae, unit)


@quiet_lightning()
def run_experiment(
    make_stage: Callable[[StudyStages, Mapping[str, SaeInfo]], FrameStage],
    until: StageName,
    saes: Sequence[str | SaeInfo],
    experiment_dir: Path | str,
    settings: Mapping[str, Any],
) -> Results:
    """Run the stages of a study that an experiment reads, then make and write the frames of its SAEs.

    Args:
        make_stage: Makes the stage of the experiment's frames.
        until: Last stage of the study that it reads.
        saes: Names for `load_sae`, patterns, or what to call SAEs in tables.
        experiment_dir: Where the frames go, in a folder for each SAE, beside the manifest.
        settings: Further settings of `StudyConfig`.

    Returns:
        The main frame of each SAE, by layer, in the order of the SAEs.

    Raises:
        AbsorbError: One of the named errors of `absorb_pl.errors`.
    """
    infos = {sae.path: sae for sae in saes if isinstance(sae, SaeInfo)}
    names = [sae.path if isinstance(sae, SaeInfo) else sae for sae in saes]
    config = StudyConfig(saes=names, run_dir=str(experiment_dir), until=until, **settings)
    study = run_study(config)
    assert study.stages is not None
    stage = make_stage(study.stages, infos)
    stage.run(list(study.stages.subject.saes), stage_trainers(config.trainer, stage.title))
    results: Results = {}
    for name, source in study.stages.subject.saes.items():
        frames, info = stage.result(name)
        if getattr(rank_zero_only, "rank", 0) == 0:
            folder = study.run_dir / folder_of_sae(name, source.identity)
            for file, frame in frames.items():
                write_table(frame, folder / file)
        results.setdefault(info.layer, []).append((list(frames.values())[-1], info))
    return results


def folder_of_sae(name: str, identity: str) -> str:
    """Folder of an SAE's frames below the experiment's, another for each name and content.

    Args:
        name: Name of the SAE.
        identity: Hash of its weights and configuration.

    Example:
        >>> folder_of_sae("speller/l1-standard-w512-dense", "0123456789abcdef")
        'speller-l1-standard-w512-dense-01234567'
    """
    return f"{re.sub(r'[^A-Za-z0-9_.]+', '-', name).strip('-.')}-{identity[:8]}"
