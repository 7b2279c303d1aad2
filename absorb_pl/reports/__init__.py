"""Reports: a study's tables, figures, TensorBoard events and terminal table."""

from absorb_pl.reports.ablation_figures import ablation_figure
from absorb_pl.reports.controls import without_controls
from absorb_pl.reports.figures import draw_figures, save_figures
from absorb_pl.reports.predictions import AblationReport, PredictionReport, SpellingReport
from absorb_pl.reports.report import report_part, report_study
from absorb_pl.reports.saebench_results import SaeBenchRun, result_file, saebench_result
from absorb_pl.reports.sensitivity_figures import sensitivity_figure
from absorb_pl.reports.sweep_figures import spelling_figure
from absorb_pl.reports.tensorboard import log_study
from absorb_pl.reports.terminal import ColumnChoice, print_listing, print_summary

__all__ = [
    "AblationReport",
    "ColumnChoice",
    "PredictionReport",
    "SaeBenchRun",
    "SpellingReport",
    "ablation_figure",
    "draw_figures",
    "log_study",
    "print_listing",
    "print_summary",
    "report_part",
    "report_study",
    "result_file",
    "saebench_result",
    "save_figures",
    "sensitivity_figure",
    "spelling_figure",
    "without_controls",
]
