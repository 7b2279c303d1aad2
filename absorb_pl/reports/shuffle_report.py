"""Rates beside those of copies with shuffled decoder rows: a table on the terminal, and a figure."""

from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from absorb_pl.reports.layout import percent, place_panels
from absorb_pl.reports.names import short_names
from absorb_pl.reports.terminal import print_whole, wide_console

_HEADS = ("SAE", "rule", "rate", "shuffled copies", "excess in points [95 %]", "p", "")
_COLOUR, _GREY = "#0072B2", "#999999"
_NAME_POINTS = 7


def print_shuffles(shuffles: pd.DataFrame, console: Console | None = None) -> None:
    """Print by how much each SAE's rates exceed those of its shuffled copies.

    Args:
        shuffles: The `shuffles` table of a study.
        console: Where to print; the terminal when None, with 120 columns if there is none.
    """
    console = console or wide_console()
    rates = shuffles[shuffles["amount"] == "absorption_rate"]
    if rates.empty:
        return
    short = short_names(rates["sae"])
    copies = rates["copies"].max()
    console.print(
        f"Held against {copies} copies of each SAE with shuffled decoder rows (they fire alike and point elsewhere)",
        highlight=False,
        soft_wrap=True,
    )
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for number, head in enumerate(_HEADS):
        table.add_column(head, justify="left" if number < 2 or not head else "right", no_wrap=True)
    shown = ["sae", "value", "shuffled_mean", "excess", "excess_ci_low", "excess_ci_high", "p_value", "exceeds"]
    alike = rates.groupby(shown, sort=False)["rule"].agg(", ".join).reset_index()  # rules that agree share a line
    for row in alike.to_dict("records"):
        table.add_row(
            short[row["sae"]],
            row["rule"],
            f"{row['value']:.1%}",
            f"{row['shuffled_mean']:.1%}",
            f"{100 * row['excess']:+.1f} [{100 * row['excess_ci_low']:+.1f}, {100 * row['excess_ci_high']:+.1f}]",
            f"{row['p_value']:.2f}",
            "" if row["exceeds"] else "not above its copies",
        )
    print_whole(console, table)


def shuffles_figure(shuffles: pd.DataFrame) -> Figure:
    """Each SAE's rate beside those of its shuffled copies, one panel per rule.

    Args:
        shuffles: The `shuffles` table of a study.
    """
    rates = shuffles[shuffles["amount"] == "absorption_rate"]
    rules, short = list(rates["rule"].unique()), short_names(rates["sae"])
    saes = list(rates["sae"].unique())
    left = 0.3 + 0.65 * _NAME_POINTS / 72 * max(map(len, short.values()))
    figure = Figure(figsize=(left + 3.0 * len(rules) + 2.0, 1.2 + 0.24 * len(saes)))
    axes = figure.subplots(1, len(rules), squeeze=False, sharey=True)[0]
    for axis, rule in zip(axes, rules, strict=True):
        for row in rates[rates["rule"] == rule].to_dict("records"):
            place = saes.index(row["sae"])
            copies = row["shuffled_rates"]
            axis.plot(copies, [place] * len(copies), ".", color=_GREY, alpha=0.6, markersize=4, clip_on=False)
            filled = _COLOUR if row["exceeds"] else "white"
            axis.plot(row["value"], place, "o", color=_COLOUR, markerfacecolor=filled, clip_on=False)
        axis.set_title(f"rule {rule}", fontsize=9)
        axis.set_xlabel("absorption rate, mean over letters", fontsize=8)
        axis.set_xlim(left=0)
        axis.xaxis.set_major_formatter(percent)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks(range(len(saes)), [short[sae] for sae in saes], fontsize=_NAME_POINTS)
    axes[0].invert_yaxis()
    dots: dict[str, Any] = {"marker": "o", "linestyle": "none", "color": _COLOUR}
    handles = [
        Line2D([], [], label="SAE, above its copies", **dots),
        Line2D([], [], label="SAE, not above them", markerfacecolor="white", **dots),
        Line2D([], [], label="shuffled copies", marker=".", linestyle="none", color=_GREY),
    ]
    legend = figure.legend(handles=handles, loc="upper right", fontsize=8, frameon=False)
    place_panels(figure, (1, len(rules)), legend=legend, left=left)
    return figure
