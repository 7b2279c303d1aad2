"""Figures of absorption while SAEs train."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from absorb_pl.reports.layout import percent, place_panels
from absorb_pl.reports.style import COLOURS, MARKERS, house_style

_PANELS = {
    "activations_seen": "activations seen",
    "l0": "L0 on the words",
    "explained_variance": "explained variance on the words",
}


def draw_checks(checks: pd.DataFrame) -> dict[str, Figure]:
    """All figures of a training by name.

    Args:
        checks: Of `AbsorptionMonitor`, see `absorb_pl.schema.CHECKS`.
    """
    with house_style():
        return {"absorption_while_training": checks_figure(checks)}


def checks_figure(checks: pd.DataFrame) -> Figure:
    """Absorption rates with their intervals, a row of panels per rule: against activations seen, L0 and reconstruction.

    Against L0 and explained variance a line is an SAE's way through its training, and the large mark is its end.

    Args:
        checks: A row per step, SAE and rule.
    """
    rules, names = list(checks["rule"].unique()), list(checks["sae"].unique())
    figure = Figure(figsize=(3.4 * len(_PANELS) + 2.6, 0.9 + 2.5 * len(rules)))
    grid = figure.subplots(len(rules), len(_PANELS), squeeze=False, sharex="col", sharey="row")
    for row, rule in enumerate(rules):
        for axis, (column, title) in zip(grid[row], _PANELS.items(), strict=True):
            for number, name in enumerate(names):
                of_sae = checks[(checks["rule"] == rule) & (checks["sae"] == name) & checks["absorption_rate"].notna()]
                _draw_sae(axis, of_sae.sort_values("step"), column, number)
            axis.grid(alpha=0.25)
            axis.xaxis.set_major_locator(MaxNLocator(5))
            axis.yaxis.set_major_formatter(percent)
            if row == len(rules) - 1:
                axis.set_xlabel(title, fontsize=9)
        grid[row][0].set_ylabel(f"{rule}\nabsorption rate", fontsize=9)
        grid[row][0].set_ylim(bottom=0)
        grid[row][0].xaxis.set_major_formatter(_thousands)
    figure.suptitle(_title(checks), fontsize=10, x=0.01, ha="left")
    lines = [grid[0][0].plot([], [], **_style(number))[0] for number in range(len(names))]
    legend = figure.legend(lines, names, loc="upper right", fontsize=8, frameon=False)
    place_panels(figure, (len(rules), len(_PANELS)), legend=legend, left=0.95, gaps=(0.15, 0.2), bottom=0.55, top=0.45)
    return figure


def draw_hedging(found: pd.DataFrame) -> dict[str, Figure]:
    """The figure of hedging while SAEs train, by its name.

    Args:
        found: Of `MeasureHedging`, see `absorb_pl.schema.HEDGING`.
    """
    with house_style():
        figure = Figure(figsize=(6.4, 3.4))
        axis = figure.subplots()
        for number, (name, of_sae) in enumerate(found.groupby("sae", sort=False)):
            axis.plot(of_sae["step"], of_sae["degree"], label=name, **_style(number))
        axis.grid(alpha=0.25)
        axis.set_ylim(bottom=0)
        axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axis.set_xlabel("step", fontsize=9)
        axis.set_ylabel("degree of hedging", fontsize=9)
        title = f"{', '.join(found['hook_name'].unique())}: hedging while training (0 is none, 1 is all)"
        figure.suptitle(title, fontsize=10, x=0.01, ha="left")
        legend = figure.legend(loc="upper right", fontsize=8, frameon=False)
        place_panels(figure, (1, 1), legend=legend, left=0.75, bottom=0.55, top=0.45)
        return {"hedging_while_training": figure}


def _draw_sae(axis: Axes, of_sae: pd.DataFrame, column: str, number: int) -> None:
    if of_sae.empty:
        return
    x, rate = of_sae[column].to_numpy(float), of_sae["absorption_rate"].to_numpy(float)
    style = _style(number)
    if column == "activations_seen":
        low, high = of_sae["ci_low"].to_numpy(float), of_sae["ci_high"].to_numpy(float)
        axis.fill_between(x, low, high, color=style["color"], alpha=0.12, linewidth=0)
        axis.plot(x, rate, **style)
        return
    axis.plot(x, rate, **{**style, "marker": None, "alpha": 0.45})
    last = of_sae.iloc[-1]
    ends = np.array([[last["absorption_rate"] - last["ci_low"]], [last["ci_high"] - last["absorption_rate"]]])
    axis.errorbar(x[-1:], rate[-1:], yerr=ends.clip(min=0), capsize=2, **{**style, "markersize": 7})


def _style(number: int) -> dict[str, Any]:
    return {
        "color": COLOURS[number % len(COLOURS)],
        "marker": MARKERS[number // len(COLOURS) % len(MARKERS)],
        "markersize": 4,
        "linewidth": 1.4,
    }


def _title(checks: pd.DataFrame) -> str:
    hooks, last = ", ".join(checks["hook_name"].unique()), checks[checks["step"] == checks["step"].max()]
    words = " to ".join(f"{count}" for count in sorted({int(last["num_words"].min()), int(last["num_words"].max())}))
    return f"{hooks}: absorption while training, with 95 % intervals ({words} words)"


def _thousands(value: float, _position: int | None = None) -> str:
    return f"{value / 1e6:.3g}M" if abs(value) >= 1e6 else f"{value / 1e3:.3g}k" if abs(value) >= 1e3 else f"{value:g}"
