"""Comparisons on the terminal and as a figure: differences of SAEs, and what difference a study can tell."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from absorb_pl.reports.layout import percent, place_panels
from absorb_pl.reports.names import short_names
from absorb_pl.reports.terminal import print_whole, wide_console

_MOST_PAIRS = 40
_LEVEL = 0.05
_COLOUR = "#0072B2"
_NAME_POINTS = 7


def print_comparison(table: pd.DataFrame, file: Path, page: Path, console: Console | None = None) -> None:
    """Print the difference of each pair of SAEs, smallest p-values first.

    Args:
        table: From `compare_saes`.
        file: Where all of it was written.
        page: The page that shows it.
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
    console.print(f"Page: {page}", highlight=False, soft_wrap=True)
    console.print(f"Figure: {file.with_suffix('.png')}", highlight=False, soft_wrap=True)


def comparison_figure(table: pd.DataFrame) -> Figure:
    """Differences of pairs of SAEs with their intervals, one panel per rule; filled where p (Holm) is at most 0.05.

    Args:
        table: From `compare_saes`. Of many pairs those with the smallest p-values are shown.
    """
    whole = table[table["label"] == ""].sort_values(["p_holm", "p_value"], kind="stable")
    short, rules = short_names([*whole["a"], *whole["b"]]), list(table["rule"].unique())
    pairs = list(dict.fromkeys(zip(whole["a"], whole["b"], strict=True)))
    shown = pairs[:_MOST_PAIRS]
    names = [f"{short[a]} − {short[b]}" for a, b in shown]
    left = 0.3 + 0.65 * _NAME_POINTS / 72 * max(map(len, names))
    figure = Figure(figsize=(left + 3.0 * len(rules) + 0.2, 1.3 + 0.22 * len(shown)))
    axes = figure.subplots(1, len(rules), squeeze=False, sharey=True)[0]
    for axis, rule in zip(axes, rules, strict=True):
        for row in whole[whole["rule"] == rule].to_dict("records"):
            if (row["a"], row["b"]) not in shown:
                continue
            reach = [[row["difference"] - row["ci_low"]], [row["ci_high"] - row["difference"]]]
            filled = _COLOUR if row["p_holm"] <= _LEVEL else "white"
            place = shown.index((row["a"], row["b"]))
            axis.errorbar(
                row["difference"], place, xerr=reach, fmt="o", color=_COLOUR, markerfacecolor=filled, capsize=2
            )
        axis.axvline(0, color="grey", linewidth=0.8)
        axis.set_title(f"rule {rule}", fontsize=9)
        axis.set_xlabel("difference of rates [95 %]", fontsize=8)
        axis.xaxis.set_major_formatter(percent)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks(range(len(shown)), names, fontsize=_NAME_POINTS)
    axes[0].set_ylim(len(shown) - 0.5, -0.5)
    which = f"the {len(shown)} of {len(pairs)} pairs with the smallest p" if len(shown) < len(pairs) else "all pairs"
    figure.suptitle(f"Absorption rates compared, {which}; filled: p (Holm) at most {_LEVEL:g}", fontsize=9)
    place_panels(figure, (1, len(rules)), left=left, top=0.6)
    return figure


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
