"""The table that a study ends with on the terminal."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

_WIDEST = 1000
_ABOUT = {
    "layer": lambda row: str(row["layer"]),
    "width": lambda row: str(row["d_sae"]),
    "L0": lambda row: f"{row['l0']:.1f}",
    "dead": lambda row: f"{row['dead_fraction']:.0%}",
    "expl. var.": lambda row: f"{row['explained_variance']:.3f}",
    "probe F1": lambda row: f"{row['probe_f1']:.3f}",
    "main recall": lambda row: f"{row['main_latent_recall']:.2f}",
    "splits": lambda row: f"{row['num_splits']:.2f}",
}


def summary_table(summary: pd.DataFrame) -> Table:
    """The summary as a rich table, one row an SAE, with a rate of each rule and what it should be read beside.

    Args:
        summary: The `summary` table of a study.
    """
    table = Table(title="Feature absorption, mean over letters [95 % interval]", header_style="bold")
    table.add_column("SAE", no_wrap=True)
    names = list(summary["sae"].unique())
    first = {str(name): rows.iloc[0].to_dict() for name, rows in summary.groupby("sae", sort=False)}
    cells = [[_line_head(first[name]), *(show(first[name]) for show in _ABOUT.values())] for name in names]
    for name in _ABOUT:
        table.add_column(name.replace(" ", "\n", 1), justify="right", no_wrap=True)
    for header, column in _measure_columns(summary, names, first).items():
        table.add_column(header, justify="right", no_wrap=True)
        for line, cell in zip(cells, column, strict=True):
            line.append(cell)
    table.add_column("n", justify="right", no_wrap=True)
    for name, line in zip(names, cells, strict=True):
        table.add_row(*line, str(first[name]["num_words"]))
    return table


def _measure_columns(
    summary: pd.DataFrame, names: Sequence[str], first: Mapping[str, Mapping[Hashable, Any]]
) -> dict[str, list[str]]:
    """Cells of every rule's rate and fraction by their header; rules that agree on all SAEs share a column."""
    columns: dict[tuple[str, ...], list[str]] = {}
    for rule, rows in summary.groupby("rule", sort=False):
        by_sae = {row["sae"]: row for row in rows.to_dict("records")}
        shown = {"rate": tuple(_rate(by_sae.get(name), first[name]["num_words"]) for name in names)}
        if rows["absorption_fraction"].notna().any():
            shown["fraction"] = tuple(_fraction(by_sae.get(name)) for name in names)
        for measure, column in shown.items():
            columns.setdefault((measure, *column), []).append(str(rule))
    return {"\n".join([*rules, column[0]]): list(column[1:]) for column, rules in columns.items()}


def print_listing(listing: pd.DataFrame, console: Console | None = None) -> None:
    """Print a table of SAEs, as wide as it needs to be.

    Args:
        listing: From `absorb_pl.models.list_saes`.
        console: Where to print; the terminal when None.
    """
    table = Table(title=f"{len(listing)} SAEs", header_style="bold")
    for name in ("SAE", "model", "hook", "width", "published L0", "architecture"):
        table.add_column(name, no_wrap=True, justify="right" if name in ("width", "published L0") else "left")
    for row in listing.to_dict("records"):
        l0 = "" if pd.isna(row["published_l0"]) else f"{row['published_l0']:.1f}"
        texts = [row["name"], row["model"], row["hook_name"], row["d_sae"]]
        cells = ["" if pd.isna(value) else str(value) for value in texts]
        table.add_row(*cells, l0, "" if pd.isna(row["architecture"]) else str(row["architecture"]))
    _print(table, console or Console())


def print_rates(summary: pd.DataFrame, console: Console | None = None) -> None:
    """Print a line an SAE with its rates.

    Args:
        summary: Rows of the `summary` table of a study.
        console: Where to print; the terminal when None.
    """
    console = console or Console()
    for name, rows in summary.groupby("sae", sort=False):
        rates = ", ".join(f"{row['rule']} {_rate(row, row['num_words']).strip()}" for row in rows.to_dict("records"))
        console.print(f"{name}: {rates}", highlight=False, markup=False, soft_wrap=True)


def print_summary(summary: pd.DataFrame, console: Console | None = None, notes: Sequence[str] = ()) -> None:
    """Print the summary, as wide as it needs to be.

    Args:
        summary: The `summary` table of a study.
        console: Where to print; the terminal when None.
        notes: Lines to print below it.
    """
    console = _print(summary_table(summary), console or Console())
    for note in notes:
        console.print(note, highlight=False, markup=False)


def _print(table: Table, console: Console) -> Console:
    """Print a table whole, and give the console, which may have been widened for it."""
    needed = Console(width=_WIDEST).measure(table).maximum
    if not console.is_terminal or console.width < needed:
        console = Console(file=console.file, width=needed)
    console.print(table)
    return console


def _line_head(row: Mapping[Hashable, Any]) -> str:
    return f"  control: {row['control'].replace('_', ' ')}" if row["control"] else row["sae"]


def _rate(row: Mapping[Hashable, Any] | None, words: int) -> str:
    if row is None:
        return "-"
    if not row["evaluable"]:
        return f"not evaluable: {row['reason']}"
    of_others = "" if row["num_words"] == words else f" (n = {row['num_words']})"
    return f"{row['absorption_rate']:6.1%} [{row['ci_low']:5.1%}, {row['ci_high']:5.1%}]{of_others}"


def _fraction(row: Mapping[Hashable, Any] | None) -> str:
    if row is None or pd.isna(row["absorption_fraction"]):
        return "-"
    return f"{row['absorption_fraction']:6.1%} [{row['fraction_ci_low']:5.1%}, {row['fraction_ci_high']:5.1%}]"
