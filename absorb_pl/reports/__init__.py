"""Reports: a study's tables, figures, TensorBoard events and terminal table."""

from absorb_pl.reports.figures import draw_figures, save_figures
from absorb_pl.reports.report import report_study
from absorb_pl.reports.tables import study_tables
from absorb_pl.reports.tensorboard import log_study
from absorb_pl.reports.terminal import print_summary, summary_table

__all__ = [
    "draw_figures",
    "log_study",
    "print_summary",
    "report_study",
    "save_figures",
    "study_tables",
    "summary_table",
]
