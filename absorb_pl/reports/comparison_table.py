"""Printed tables of comparisons: differences of SAEs, and what difference a study can tell."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from absorb_pl.reports.names import short_names
from absorb_pl.reports.terminal import print_whole, wide_console


def print_comparison(table: pd.DataFrame, file: Path, console: Console | None = None) -> None:
    """Print the difference of each pair of SAEs, smallest p-values first.

    Args:
        table: From `compare_saes`.
        file: Where all of it was written.
        console: Where to print; the terminal when None, with 120 columns if there is none.
    """
    console = console or wide_console()
    whole = table[table["label"] == ""].sort_values(["rule", "p_holm", "p_value"], kind="stable")
    short = short_names([*whole["a"], *whole["b"]])
    rows = [
        [
            row["rule"],
            short[row["a"]],
            short[row["b"]],
            f"{row['rate_a']:.1%}",
            f"{row['rate_b']:.1%}",
            f"{100 * row['difference']:+.1f} [{100 * row['ci_low']:+.1f}, {100 * row['ci_high']:+.1f}]",
            _p(row["p_value"]),
            _p(row["p_holm"]),
        ]
        for row in whole.to_dict("records")
    ]
    heads = ("rule", "A", "B", "rate A", "rate B", "A − B in points [95 %]", "p", "p (Holm)")
    _print(console, "Absorption rates compared on the same words, mean over letters", heads, rows, left=3)
    console.print(f"Letters, and all of the above: {file}", highlight=False, soft_wrap=True)


def print_power(table: pd.DataFrame, power: float, confidence: float, console: Console | None = None) -> None:
    """Print what difference the words of a study can tell.

    Args:
        table: From `print_resolution`.
        power: How often the difference would be found.
        confidence: Two-sided level of the test.
        console: Where to print; the terminal when None, with 120 columns if there is none.
    """
    console = console or wide_console()
    short = short_names(table["sae"])
    rows = [
        [
            row["rule"],
            short[row["sae"]],
            f"{row['rate']:.1%}",
            str(row["num_words"]),
            f"{row['design_effect']:.1f}",
            f"{100 * row['smallest_difference']:.1f}",
        ]
        for row in table.to_dict("records")
    ]
    title = (
        f"Differences that these words tell apart in {power:.0%} of cases, at a level of {confidence:.0%}, in points"
    )
    _print(console, title, ("rule", "SAE", "pooled rate", "words", "design effect", "difference"), rows, left=2)


def _print(console: Console, title: str, heads: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> None:
    console.print(title, highlight=False, soft_wrap=True)
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for number, head in enumerate(heads):
        table.add_column(head, justify="left" if number < left else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    print_whole(console, table)


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
