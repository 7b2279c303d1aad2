"""Reports: a study's tables, figures, TensorBoard events and terminal table."""

from absorb_pl.reports.figures import draw_figures, save_figures
from absorb_pl.reports.predictions import AblationReport, PredictionReport, SpellingReport
from absorb_pl.reports.terminal import print_summary

__all__ = ["AblationReport", "PredictionReport", "SpellingReport", "draw_figures", "print_summary", "save_figures"]
