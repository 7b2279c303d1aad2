"""All that a study shows: tables and probes on disk, figures, TensorBoard events, and the summary on the terminal."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from safetensors.torch import save_file
from torch import Tensor

from absorb_pl.data.drafts import writing_to
from absorb_pl.data.publication import publishing
from absorb_pl.data.run_folder import SUMMARY_SO_FAR
from absorb_pl.evaluators.writers import write_table
from absorb_pl.reports.controls import without_controls
from absorb_pl.reports.figures import about_study, draw_figures, save_figures
from absorb_pl.reports.page import PAGE, write_page
from absorb_pl.reports.saebench_results import SaeBenchRun, write_saebench_results
from absorb_pl.reports.shuffle_report import print_shuffles
from absorb_pl.reports.tensorboard import log_study
from absorb_pl.reports.terminal import ColumnChoice, print_crossfit, print_places, print_rates, print_summary


def report_part(run_dir: Path, tables: Mapping[str, pd.DataFrame], names: Sequence[str], *, show: bool = True) -> None:
    """Show the rates of SAEs that are through while others are not, and write `summary_so_far.parquet`.

    Args:
        run_dir: The run's folder.
        tables: From `study_tables`, of all SAEs so far.
        names: The SAEs that are new.
        show: Whether to print their rates.

    Raises:
        OutputFolderError: The folder cannot be written.
    """
    summary = tables["summary"]
    write_table(summary, run_dir / SUMMARY_SO_FAR)
    if show:
        print_rates(summary[summary["sae"].isin(list(names))])


def report_study(
    run_dir: Path,
    tables: Mapping[str, pd.DataFrame],
    probes: Mapping[str, tuple[Tensor, Tensor]],
    config: Mapping[str, Any],
    saebench: SaeBenchRun | None = None,
    columns: ColumnChoice | None = "fit",
) -> None:
    """Write a study's tables, probes, figures, events, page and results in other formats; print the summary.

    They are published together when all are whole, in place of those of before; the page follows them.

    Args:
        run_dir: The run's folder.
        tables: From `study_tables`.
        probes: Weight and bias of each hook's linear probe.
        config: The study's settings, plain values only.
        saebench: What files in SAEBench's format have in common; there are none when None.
        columns: Columns of the printed summary; nothing is printed when None.

    Raises:
        OutputFolderError: The folder cannot be written.
    """
    measured = without_controls(tables)
    (run_dir / PAGE).unlink(missing_ok=True)
    with publishing(run_dir) as folder:
        for name, table in tables.items():
            write_table(table, folder / "tables" / f"{name}.parquet")
        with writing_to(folder / "probes"):
            (folder / "probes").mkdir()
            for hook, (weight, bias) in probes.items():
                save_file({"weight": weight, "bias": bias}, folder / "probes" / f"{hook}.safetensors")
        figures = save_figures(draw_figures(measured), folder / "figures", about_study(tables, config))
        events = log_study(folder, tables, figures)
        reasons = write_saebench_results(folder / "saebench", measured, saebench) if saebench else {}
    write_page(run_dir, tables, config)
    (run_dir / SUMMARY_SO_FAR).unlink(missing_ok=True)
    if columns is None:
        return
    notes = [f"No SAEBench result of {sae}: {why}." for sae, why in reasons.items()]
    print_summary(tables["summary"], notes=notes, columns=columns)
    if "shuffles" in tables:
        print_shuffles(tables["shuffles"])
    if "crossfit" in tables:
        print_crossfit(tables["crossfit"])
    print_places(run_dir, events)
