"""Studies that kill themselves: a process of their own dies by SIGKILL when part of a stage's work is done."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absorb_pl.cli import main
from absorb_pl.data import collector, publication
from absorb_pl.evaluators import training, writers
from absorb_pl.reports import report
from absorb_pl.study import evidence_stages, firing_stage, probing_stages
from absorb_pl.study import stage as stage_module


def kill_at_call(number: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a function so that the process dies when it is called for the nth time."""
    calls = 0

    def wrapped(*args: Any, **settings: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **settings)

    return wrapped


# Where each stage dies: a module or class, one of its functions, and which call of it.
DEATHS = {
    "activations": (collector, "write_rows", 4),
    "activations_unnamed": (collector, "finish_artifact", 2),
    "linear_probes": (training, "fit_probe", 2),
    "sae_probing": (probing_stages, "evaluate_sae", 2),
    "sae_probing_half_written": (stage_module, "save_file", 2),
    "projections": (evidence_stages.ProjectionStage, "make", 2),
    "absorption": (evidence_stages.GradientStage, "keep", 2),
    "absorption_words": (writers, "write_table", 1),
    "firings": (firing_stage, "firings_table", 2),
    "report": (report, "write_table", 4),
    "report_figures": (report, "save_figures", 1),
    "report_half_published": (publication, "replace_folder", 3),
}


def run_until_death(config: str, folder: Path, stage: str) -> int:
    """Start a study in a copy of this process, which dies in a stage; returns the signal that ended it, 0 for none."""
    child = os.fork()
    if child == 0:
        try:
            module, name, number = DEATHS[stage]
            setattr(module, name, kill_at_call(number, getattr(module, name)))
            if stage != "report_figures":  # they take longer than all else
                report.draw_figures = lambda _: {}
            main(["study", f"--config={config}", f"--run_dir={folder / 'run'}", f"--cache_dir={folder / 'cache'}"])
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return status & 0x7F
