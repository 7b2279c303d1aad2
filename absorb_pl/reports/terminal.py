"""What commands print: tables that fit the terminal, and where everything is."""

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import Literal

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from absorb_pl.reports.names import shared_folder, short_names
from absorb_pl.reports.page import PAGE
from absorb_pl.reports.summary_columns import (
    TextColumn,
    crossfit_columns,
    rate_text,
    summary_columns,
    summary_rows,
)
from absorb_pl.rules.rates import WEAK_MAIN_F1

ColumnChoice = Literal["fit", "all"]
"""Columns of a printed summary: those that fit, or all, in tables below each other if one is too narrow."""

_WIDEST = 1000
_WIDTH_OF_FILES = 120
_GAP = 2
_TITLE = "Feature absorption, mean over letters [95 % interval]"


def print_summary(
    summary: pd.DataFrame, console: Console | None = None, notes: Sequence[str] = (), columns: ColumnChoice = "fit"
) -> None:
    """Print the summary, one row per SAE, no wider than the console.

    Args:
        summary: The `summary` table of a study.
        console: Where to print; the terminal when None, with 120 columns if there is none.
        notes: Lines to print below it.
        columns: Which columns.
    """
    console = console or wide_console()
    found = summary_columns(summary)
    heads = _heads(summary)
    widest_rate = max(_width(column) for column in found if column.name == "rate")
    whole = dict[str, str]()
    if _width(TextColumn("SAE", tuple(heads))) + _GAP + widest_rate > console.width:
        whole = {str(number): head for number, head in enumerate(heads, start=1)}
        heads = list(whole)
    blocks = _blocks(TextColumn("SAE", tuple(heads)), found, console.width)
    folder = shared_folder(summary["sae"]).rstrip("/")
    _print_line(console, f"{_TITLE}; SAEs of {folder}" if folder else _TITLE)
    for number, block in enumerate(blocks if columns == "all" else blocks[:1]):
        if number:
            console.print()
        print_whole(console, _table(block))
    for number, head in whole.items():
        _print_whole_line(console, f"{number:>{len(str(len(heads)))}}  {head.strip()}")
    left_out = [column.title for block in blocks[1:] for column in block[1:]]
    if left_out and columns == "fit":
        _print_line(console, f"Left out at this width: {', '.join(left_out)}. `--columns all` prints them.")
    for note in [*_not_evaluable(summary), *_weak_mains(summary), *notes]:
        _print_line(console, note)


def print_rates(summary: pd.DataFrame, console: Console | None = None) -> None:
    """Print the rates of each SAE on a line.

    Args:
        summary: Rows of the `summary` table of a study.
        console: Where to print; the terminal when None.
    """
    console = console or wide_console()
    for (_, name), rules in summary_rows(summary).items():
        rates = [
            f"{rule} {rate_text(row)}" + ("" if row["evaluable"] else f": {row['reason']}")
            for rule, row in rules.items()
        ]
        _print_line(console, f"{name}: {', '.join(rates)}")


def print_crossfit(crossfit: pd.DataFrame, console: Console | None = None) -> None:
    """Print the rates over words that were all judged out of sample, one row per SAE, in tables that fit the console.

    Args:
        crossfit: The `crossfit` table of a study.
        console: Where to print; the terminal when None, with 120 columns if there is none.
    """
    console = console or wide_console()
    of_saes = crossfit[crossfit["label"] == ""]
    folds, repeats = (int(of_saes[name].iloc[0]) for name in ("folds", "repeats"))
    _print_line(
        console,
        f"Cross-fitted: every word judged out of sample, {folds} folds, {repeats} repeats [95 % interval, which holds "
        "what the choice of words and seeds adds]",
    )
    short = short_names(of_saes["sae"])
    heads = TextColumn("SAE", tuple(short[str(sae)] for sae in of_saes["sae"].unique()))
    for block in _blocks(heads, crossfit_columns(crossfit), console.width):
        print_whole(console, _table(block))


def print_places(folder: Path, events: Sequence[str], console: Console | None = None) -> None:
    """Print where a run's tables and figures are, and which command shows the events.

    Args:
        folder: With the page, `tables`, `figures` and, if there are any, `saebench`.
        events: Names of folders of TensorBoard events there, from `log_study`.
        console: Where to print; the terminal when None.
    """
    console = console or wide_console()
    places = {"Page": f"{folder / PAGE} (the words behind every rate; opens in a browser)"}
    places |= {"Tables": f"{folder / 'tables'} (summary.parquet is the one above)", "Figures": f"{folder / 'figures'}"}
    if (folder / "saebench").is_dir():
        places["SAEBench"] = str(folder / "saebench")
    for place, name in zip(events, ("TensorBoard", "Each SAE"), strict=False):
        places[name] = f"tensorboard --logdir {shlex.quote(str(folder / place))}"
    console.print()
    for what, where in places.items():
        _print_whole_line(console, f"{what:<11}  {where}")


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
    print_whole(console or Console(), table)


def wide_console() -> Console:
    """The terminal, or 120 columns if output goes to a file and `COLUMNS` says nothing else."""
    console = Console()
    return console if console.is_terminal or "COLUMNS" in os.environ else Console(width=_WIDTH_OF_FILES)


def _heads(summary: pd.DataFrame) -> list[str]:
    """What stands before each row: the SAE's name, or which control it is of the one above."""
    rows, short = summary_rows(summary), short_names(summary["sae"])
    several = len({model for model, _ in rows}) > 1
    heads = []
    for (model, sae), rules in rows.items():
        control = next(iter(rules.values()))["control"]
        named = f"{model}: {short[sae]}" if several else short[sae]
        heads.append(f"  control: {control.replace('_', ' ')}" if control else named)
    return heads


def _blocks(heads: TextColumn, columns: Sequence[TextColumn], width: int) -> list[list[TextColumn]]:
    """Columns in tables no wider than `width`, each beginning with `heads`; what comes first is in the first."""
    blocks, left = [], list(columns)
    while left:
        room = width - _width(heads)
        block, rest = [heads], []
        for column in left:
            needed = _GAP + _width(column)
            if needed <= room or (len(block) == 1 and column is left[-1]):
                block.append(column)
                room -= needed
            else:
                rest.append(column)
        blocks.append(block)
        left = rest
    return blocks


def _table(columns: Sequence[TextColumn]) -> Table:
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, _GAP - 1, 0, 0), header_style="bold")
    for number, column in enumerate(columns):
        table.add_column("\n".join(_header(column)), justify="right" if number else "left", no_wrap=True)
    for cells in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*cells)
    return table


def _header(column: TextColumn) -> list[str]:
    return [*column.rules, *column.name.split(" ", 1)]


def _width(column: TextColumn) -> int:
    return max(map(len, (*column.cells, *_header(column))))


def _not_evaluable(summary: pd.DataFrame) -> list[str]:
    short, found = short_names(summary["sae"]), dict[tuple[str, tuple[str, ...]], list[str]]()
    for (_, sae), rules in summary_rows(summary).items():
        reasons = dict[str, list[str]]()
        for rule, row in rules.items():
            if not row["evaluable"]:
                reasons.setdefault(str(row["reason"]), []).append(rule)
        for reason, names in reasons.items():
            found.setdefault((reason, tuple(names)), []).append(short[sae])
    return [
        f"Not evaluable by {', '.join(rules)}, {reason}: {', '.join(saes)}." for (reason, rules), saes in found.items()
    ]


def _weak_mains(summary: pd.DataFrame) -> list[str]:
    rows = summary[summary["weak_mains"] > 0].drop_duplicates("sae")
    short = short_names(summary["sae"])
    saes = [f"{short[sae]} ({count})" for sae, count in zip(rows["sae"], rows["weak_mains"], strict=True)]
    return [f"Classes that main latents tell with an F1 below {WEAK_MAIN_F1:g}: {', '.join(saes)}."] if saes else []


def print_whole(console: Console, table: Table) -> None:
    """Print a table with no cell cut, even if it is wider than the console."""
    needed = Console(width=_WIDEST).measure(table).maximum
    if console.width < needed:
        console = Console(file=console.file, width=needed)
    console.print(table)


def _print_line(console: Console, text: str) -> None:
    """Break lines between words only, so that names stay whole."""
    _print_whole_line(console, fill(text, console.width, break_long_words=False, break_on_hyphens=False))


def _print_whole_line(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)
