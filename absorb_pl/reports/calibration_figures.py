"""Figures of a calibration: where each rule is off, and what it says of trained SAEs beside what is true."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure

from absorb_pl.reports.layout import percent, place_panels
from absorb_pl.reports.style import COLOURS

_MOST_POINTS = 35
"""Error, in points, at which the colours end."""
_MEASURES = {"rate": ("absorption_rate", "true_rate"), "share": ("absorption_fraction", "true_share")}
_TITLES = {"rate": "absorption rate", "share": "absorbed share"}


def draw_calibration(tables: Mapping[str, pd.DataFrame]) -> dict[str, Figure]:
    """All figures of a calibration by name.

    Args:
        tables: `calibration` and `calibration_summary`.
    """
    scores, summary = tables["calibration"], tables["calibration_summary"]
    figures: dict[str, Figure] = {}
    with rc_context({"axes.titley": 1.0}):
        planted = summary[summary["family"] == "planted"]
        trained = scores[scores["family"] != "planted"]
        if len(planted):
            figures["planted_errors"] = planted_figure(planted)
        for measure in _MEASURES if len(trained) else ():
            if trained[_MEASURES[measure][0]].notna().any():
                figures[f"trained_{measure}"] = trained_figure(trained, measure)
    return figures


def planted_figure(summary: pd.DataFrame) -> Figure:
    """Mean errors of rate and share by rule, a row per planted setting; white is right.

    Args:
        summary: Rows of `calibration_summary` of planted settings.
    """
    settings, rules = list(summary["setting"].unique()), list(summary["rule"].unique())
    figure = Figure(figsize=(3.2 + 1.15 * len(rules) * 2, 1.3 + 0.24 * len(settings)))
    axes = figure.subplots(1, 2, sharey=True)
    for axis, measure in zip(axes, _MEASURES, strict=True):
        grid = summary.pivot(index="setting", columns="rule", values=f"{measure}_bias").loc[settings, rules]
        points = 100 * grid.to_numpy(float)
        axis.imshow(points, cmap="RdBu_r", vmin=-_MOST_POINTS, vmax=_MOST_POINTS, aspect="auto")
        for (row, column), value in np.ndenumerate(points):
            text = "–" if np.isnan(value) else f"{value:+.1f}" if abs(value) >= 0.05 else "0"
            shade = "white" if abs(value) > 0.7 * _MOST_POINTS else "black"
            axis.text(column, row, text, ha="center", va="center", fontsize=7, color=shade)
        axis.set_xticks(range(len(rules)), [_broken(rule) for rule in rules], fontsize=7)
        axis.set_title(f"{_TITLES[measure]} − truth, in points", fontsize=9)
        axis.tick_params(length=0)
    axes[0].set_yticks(range(len(settings)), settings, fontsize=7)
    place_panels(figure, (1, 2), left=1.45, bottom=0.5, top=0.35, gaps=(0.15, 0.0))
    return figure


def trained_figure(scores: pd.DataFrame, measure: str) -> Figure:
    """What each rule says of trained SAEs against the truth; a panel per rule, a colour per world.

    Args:
        scores: Rows of `calibration` of trained SAEs.
        measure: `rate` or `share`.
    """
    said, true = _MEASURES[measure]
    rules, worlds = list(scores["rule"].unique()), list(scores["family"].unique())
    means = scores.astype({said: float}).groupby(["rule", "family", "setting"])[[said, true]].mean().reset_index()
    most = 1.08 * max(0.05, float(means[[said, true]].max().max()))
    figure = Figure(figsize=(2.6 * len(rules) + 2.1, 3.1))
    axes = figure.subplots(1, len(rules), squeeze=False, sharey=True)[0]
    for axis, rule in zip(axes, rules, strict=True):
        for number, world in enumerate(worlds):
            rows = means[(means["rule"] == rule) & (means["family"] == world)]
            axis.scatter(rows[true], rows[said], s=22, color=COLOURS[number % len(COLOURS)], label=world, alpha=0.85)
        axis.plot([0, most], [0, most], color="0.6", linewidth=0.8, zorder=0)
        axis.set(xlim=(-0.02 * most, most), ylim=(-0.02 * most, most), xlabel=f"true {_TITLES[measure].split()[1]}")
        axis.set_title(rule, fontsize=10)
        axis.xaxis.set_major_formatter(percent)
        axis.yaxis.set_major_formatter(percent)
    axes[0].set_ylabel(f"{_TITLES[measure]} as measured")
    legend = figure.legend(*axes[0].get_legend_handles_labels(), loc="upper right", fontsize=8, frameon=False)
    place_panels(figure, (1, len(rules)), legend=legend, left=0.75, bottom=0.55)
    return figure


def _broken(rule: str) -> str:
    """A rule's name in two lines."""
    head, _, tail = rule.rpartition("-")
    return f"{head}\n{tail}" if head else rule
