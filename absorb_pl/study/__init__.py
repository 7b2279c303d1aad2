"""The pipeline: from words to a table of how much each SAE splits and absorbs."""

from absorb_pl.study.calibration import CalibrationConfig, calibrate
from absorb_pl.study.compare import compare_saes
from absorb_pl.study.config import StudyConfig, TrainerSettings
from absorb_pl.study.page import make_page
from absorb_pl.study.rescore import rescore_run
from absorb_pl.study.result import StudyResult
from absorb_pl.study.scoring import score
from absorb_pl.study.stages import StudyStages
from absorb_pl.study.sweep import run_study

__all__ = [
    "CalibrationConfig",
    "StudyConfig",
    "StudyResult",
    "StudyStages",
    "TrainerSettings",
    "calibrate",
    "compare_saes",
    "make_page",
    "rescore_run",
    "run_study",
    "score",
]
