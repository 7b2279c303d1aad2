"""The pipeline: from words to a table of how much each SAE splits and absorbs."""

from absorb_pl.study.absorption_stage import AbsorptionStage
from absorb_pl.study.config import StageName, StudyConfig, TrainerSettings
from absorb_pl.study.pipeline import StudyResult
from absorb_pl.study.probing_stages import LinearProbeStage, ProbeData, SaeProbingStage
from absorb_pl.study.projection_stage import ProjectionStage
from absorb_pl.study.rescore import rescore_run
from absorb_pl.study.stage import Stage, UnitStage
from absorb_pl.study.stages import StudyStages
from absorb_pl.study.sweep import run_study

__all__ = [
    "AbsorptionStage",
    "LinearProbeStage",
    "ProbeData",
    "ProjectionStage",
    "SaeProbingStage",
    "Stage",
    "StageName",
    "StudyConfig",
    "StudyResult",
    "StudyStages",
    "TrainerSettings",
    "UnitStage",
    "rescore_run",
    "run_study",
]
