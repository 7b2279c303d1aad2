"""The printed table of a calibration: how far each rule is from the truth."""

from pathlib import Path

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from absorb_pl.reports.terminal import wide_console

_TITLE = "Rules held against the truth: rate − true rate, and fraction − true share, in points"


def print_calibration(summary: pd.DataFrame, run_dir: Path, console: Console | None = None) -> None:
    """Print how far each rule is from the truth, a line per setting.

    Args:
        summary: The table `calibration_summary`.
        run_dir: Where the tables and figures are.
        console: Where to print; the terminal when None, with 120 columns if there is none.
    """
    console = console or wide_console()
    rules = list(summary["rule"].unique())
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("setting", overflow="fold")
    table.add_column("true\nrate", justify="right", no_wrap=True)
    for rule in rules:
        table.add_column(f"{rule}\nrate  share", justify="right", no_wrap=True)
    planted = summary[summary["family"] == "planted"]
    for setting, rows in planted.groupby("setting", sort=False):
        _add(table, str(setting), rows, rules, "bias")
    in_training = summary["family"] == "training"
    for family, rows in summary[(summary["family"] != "planted") & ~in_training].groupby("family", sort=False):
        _add(table, f"{family}, RMSE", rows, rules, "rmse")
        _add(table, f"{family}, rank correlation", rows, rules, "spearman")
    for sae, rows in summary[in_training].groupby("setting", sort=False):
        _add(table, f"{sae} in training, rank correlation", rows, rules, "spearman")
    console.print(_TITLE, highlight=False, soft_wrap=True)
    console.print(table)
    missing = summary[summary["not_evaluable"] > 0]
    for row in missing.to_dict("records"):
        console.print(
            f"{row['setting'] or row['family']}, {row['rule']}: {row['not_evaluable']} of "
            f"{row['evaluations'] + row['not_evaluable']} evaluations have no rate.",
            highlight=False,
            soft_wrap=True,
        )
    for name, folder in (("Tables", "tables"), ("Figures", "figures")):
        console.print(f"{name:<8} {run_dir / folder}", highlight=False, soft_wrap=True)


def _add(table: Table, name: str, rows: pd.DataFrame, rules: list[str], what: str) -> None:
    by_rule = rows.set_index("rule").reindex(rules)
    cells = []
    for rule in rules:
        rate, share = (float(by_rule[f"{of}_{what}"][rule]) for of in ("rate", "share"))
        cells.append("  ".join(_cell(value, what) for value in (rate, share)))
    true = f"{100 * rows['true_rate'].iloc[0]:.1f}" if what != "spearman" else ""
    table.add_row(name, true, *cells)


def _cell(value: float, what: str) -> str:
    if pd.isna(value):
        return "    –"
    if what == "spearman":
        return f"{value:5.2f}"
    points = round(100 * value, 1) or 0.0  # no −0.0
    return f"{points:+5.1f}" if what == "bias" and points else f"{points:5.1f}"
