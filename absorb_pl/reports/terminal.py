"""The table that a study ends with on the terminal."""

import math
from collections.abc import Hashable
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

_WIDEST = 1000
_COLUMNS = (
    ("SAE", "left"),
    ("layer", "right"),
    ("width", "right"),
    ("L0", "right"),
    ("expl. var.", "right"),
    ("probe F1", "right"),
    ("top latent P / R", "right"),
    ("splits", "right"),
    ("absorption [95 % interval]", "right"),
    ("n", "right"),
)


def summary_table(summary: pd.DataFrame) -> Table:
    """The summary as a rich table, one row an SAE and rule.

    Args:
        summary: The `summary` table of a study.
    """
    rules = list(summary["rule"].unique())
    table = Table(title=f"Feature absorption (rule: {', '.join(rules)})", header_style="bold")
    for name, side in _COLUMNS:
        table.add_column(name, justify="right" if side == "right" else "left", no_wrap=True)
    for row in summary.to_dict("records"):
        table.add_row(
            row["sae"] if len(rules) == 1 else f"{row['sae']} ({row['rule']})",
            str(row["layer"]),
            str(row["d_sae"]),
            f"{row['l0']:.1f}",
            f"{row['explained_variance']:.3f}",
            f"{row['probe_f1']:.3f}",
            f"{row['top_latent_precision']:.2f} / {row['top_latent_recall']:.2f}",
            f"{row['num_splits']:.2f}",
            _rate(row),
            str(row["num_words"]),
        )
    return table


def print_summary(summary: pd.DataFrame, console: Console | None = None) -> None:
    """Print the summary, as wide as it needs to be.

    Args:
        summary: The `summary` table of a study.
        console: Where to print; the terminal when None.
    """
    console = console or Console()
    table = summary_table(summary)
    needed = Console(width=_WIDEST).measure(table).maximum
    if not console.is_terminal or console.width < needed:
        console = Console(file=console.file, width=needed)
    console.print(table)


def _rate(row: dict[Hashable, Any]) -> str:
    if not row["evaluable"]:
        return f"not evaluable: {row['reason']}"
    if math.isnan(row["absorption_rate"]):
        return "-"
    return f"{row['absorption_rate']:6.1%} [{row['ci_low']:5.1%}, {row['ci_high']:5.1%}]"
