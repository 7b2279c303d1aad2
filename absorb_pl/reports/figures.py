"""The paper's figures, drawn from a study's tables (arXiv 2409.14507, figures 4 to 8)."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D

from absorb_pl.data.drafts import whole_file
from absorb_pl.data.forks import forks_for, in_forks
from absorb_pl.reports.layout import percent, place_panels
from absorb_pl.reports.sensitivity_figures import sensitivity_figure
from absorb_pl.reports.shuffle_report import shuffles_figure
from absorb_pl.reports.style import (
    COLOURS,
    MARKERS,
    MOST_LABELS,
    add_caption,
    house_style,
    label_lines,
    label_width,
    line_styles,
)

_NAMES = {"l0": "L0", "layer": "layer"}
_AXES = {"l0": "L0 (latents that fire per word)", "layer": "layer"}
_METRICS = ("f1", "precision", "recall")
_DPI = 150
_NAME_POINTS = 7
_WIDE = 0.4


def draw_figures(tables: Mapping[str, pd.DataFrame]) -> dict[str, Figure]:
    """All figures of a study by name.

    Args:
        tables: `summary`, `letters`, `k_sparse` and `sensitivity`, and `shuffles` if there are any, as a study writes
            them.
    """
    return {name: draw_figure(tables, name) for name in figure_names(tables)}


def figure_names(tables: Mapping[str, pd.DataFrame]) -> list[str]:
    """Names of a study's figures.

    Args:
        tables: As for `draw_figures`.
    """
    return list(_makers(tables))


def draw_figure(tables: Mapping[str, pd.DataFrame], name: str) -> Figure:
    """One figure of a study.

    Args:
        tables: As for `draw_figures`.
        name: One of `figure_names`.
    """
    with house_style():
        return _makers(tables)[name]()


def _makers(tables: Mapping[str, pd.DataFrame]) -> dict[str, Callable[[], Figure]]:
    summary, letters, k_sparse = tables["summary"], tables["letters"], tables["k_sparse"]
    sensitivity, saes = tables["sensitivity"], summary.drop_duplicates("sae")
    makers: dict[str, Callable[[], Figure]] = {
        "top_latent_vs_l0": lambda: top_latent_figure(saes, "l0"),
        "top_latent_vs_layer": lambda: top_latent_figure(saes, "layer"),
        "splits_vs_l0": lambda: splits_figure(saes),
        "absorption_vs_l0": lambda: absorption_figure(summary, "l0"),
        "absorption_vs_layer": lambda: absorption_figure(summary, "layer"),
        "absorption_by_letter": lambda: letters_figure(letters, summary),
        "f1_vs_k": lambda: f1_vs_k_figure(k_sparse, summary),
    }
    if len(tables.get("shuffles", ())):
        makers["shuffles"] = lambda: shuffles_figure(tables["shuffles"])
    with_fraction = summary[summary["absorption_fraction"].notna()]
    if len(with_fraction):
        makers["absorption_fraction_vs_l0"] = lambda: absorption_figure(with_fraction, "l0", fraction=True)
    for rule in summary["rule"].unique():
        rows = sensitivity[sensitivity["rule"] == rule]
        makers[f"sensitivity_{rule}"] = partial(sensitivity_figure, rows, summary)
    return makers


def about_study(tables: Mapping[str, pd.DataFrame], config: Mapping[str, Any]) -> str:
    """What the figures of a study are of: model, task, words.

    Args:
        tables: The study's tables.
        config: Its settings, plain values only.

    Example:
        >>> letters = pd.DataFrame({"sae": ["s", "s"], "rule": ["r", "r"], "label": ["a", "b"], "num_words": [5, 4]})
        >>> about_study({"letters": letters}, {"model": "gpt2", "task": {"name": "first_letter"}})
        'gpt2 · first letter · 9 held-out words of 2 classes · intervals are 95 %'
    """
    letters = tables["letters"].drop_duplicates("label")
    level = config.get("rates", {}).get("confidence", 0.95)
    return " · ".join(
        [
            str(config.get("model")),
            str(config.get("task", {}).get("name", "")).replace("_", " "),
            f"{letters['num_words'].sum()} held-out words of {len(letters)} classes",
            f"intervals are {100 * level:g} %",
        ]
    )


def save_figures(figures: Mapping[str, Figure], folder: Path, caption: str = "") -> dict[str, Path]:
    """Save each figure as `folder/name.png` and `name.svg`, whole or not at all.

    Args:
        figures: Figures by name.
        folder: Where to.
        caption: What all of them are of, written below each; nothing if empty.

    Returns:
        The PNG files by the figures' names.

    Raises:
        OutputFolderError: The folder cannot be written.
    """

    def save(name: str) -> Path:
        for kind in ("svg", "png"):
            file = folder / f"{name}.{kind}"
            with whole_file(file) as part:
                figures[name].savefig(part, dpi=_DPI, format=kind)
        return file

    with house_style():
        for figure in figures.values() if caption else ():
            add_caption(figure, caption)
        return dict(zip(figures, in_forks(save, list(figures), forks_for(len(figures))), strict=True))


def top_latent_figure(summary: pd.DataFrame, against: str) -> Figure:
    """F1, precision and recall of the latent nearest to the probe, and the probe's own as a line.

    Args:
        summary: One row per SAE.
        against: Column of the horizontal axis, `l0` or `layer`.
    """
    figure = Figure(figsize=(11, 3.4))
    axes = figure.subplots(1, len(_METRICS), sharey=True)
    for axis, metric in zip(axes, _METRICS, strict=True):
        _scatter(axis, summary, against, f"top_latent_{metric}")
        _probe_line(axis, summary, against, f"probe_{metric}")
        axis.set(title=metric.capitalize() if metric != "f1" else "F1", ylim=(-0.02, 1.04))
    axes[0].set_ylabel("mean over letters")
    figure.suptitle(f"The latent nearest to the probe, against {_NAMES[against]}")
    place_panels(figure, (1, len(axes)), legend=_legend(figure, summary, probe=True), top=0.6)
    return figure


def splits_figure(summary: pd.DataFrame) -> Figure:
    """Mean number of feature splits a letter against L0."""
    figure = Figure(figsize=(5.6, 3.6))
    axis = figure.subplots()
    _scatter(axis, summary, "l0", "num_splits")
    axis.set(title="Feature splits against L0", ylabel="splits per letter, mean")
    axis.set_ylim(bottom=-0.02)
    place_panels(figure, (1, 1), legend=_legend(figure, summary))
    return figure


def absorption_figure(summary: pd.DataFrame, against: str, *, fraction: bool = False) -> Figure:
    """Absorption rate, or fraction, with its 95 % interval against `l0` or `layer`; one panel per rule."""
    rules = list(summary["rule"].unique())
    what, measure = ("rate", "absorption_rate") if not fraction else ("fraction", "absorption_fraction")
    interval = ("ci_low", "ci_high") if not fraction else ("fraction_ci_low", "fraction_ci_high")
    figure = Figure(figsize=(min(5.6, 2.2 + 9.6 / len(rules)) * len(rules), 3.6))
    axes = figure.subplots(1, len(rules), squeeze=False, sharey=True)[0]
    for axis, rule in zip(axes, rules, strict=True):
        rows = summary[(summary["rule"] == rule) & summary["evaluable"]]
        _scatter(axis, rows, against, measure, interval=interval)
        axis.set_title(f"Absorption against {_NAMES[against]} (rule {rule})", fontsize=10)
        axis.yaxis.set_major_formatter(percent)
    axes[0].set_ylim(bottom=0)
    axes[0].set_ylabel(f"absorption {what}, mean over letters")
    place_panels(figure, (1, len(rules)), legend=_legend(figure, summary))
    return figure


def letters_figure(letters: pd.DataFrame, summary: pd.DataFrame) -> Figure:
    """Absorption rate letter by letter by the first rule: bars of the mean over SAEs above a heat map SAE × letter.

    Rates of which little is known, as their intervals are wide, are crossed; below each letter is its number of words.
    """
    rule = letters["rule"].iloc[0]
    rows = letters[letters["rule"] == rule]
    rows = rows.assign(width=rows["ci_high"] - rows["ci_low"])
    rates = rows.pivot_table(index="sae", columns="label", values="absorption_rate", dropna=False)
    rates = rates.reindex([sae for sae in summary["sae"].unique() if sae in rates.index])
    widths = rows.pivot_table(index="sae", columns="label", values="width", dropna=False).reindex_like(rates)
    words = rows.groupby("label")["num_words"].max()
    names = [_short(name) for name in rates.index]
    left = 0.3 + 0.65 * _NAME_POINTS / 72 * max(map(len, names))
    width, height = left + 0.36 * len(rates.columns) + 1.5, 0.24 * len(rates) + 3.7
    figure = Figure(figsize=(width, height))
    bars, heat = figure.subplots(2, 1, sharex=True, height_ratios=[1.6, max(1.0, 0.24 * len(rates))])
    place_panels(figure, (2, 1), left=left, right=1.5, bottom=0.65, gaps=(0.0, 0.2))
    positions = np.arange(len(rates.columns))
    bars.bar(positions, rates.mean(axis=0), color=COLOURS[0])
    bars.set(title=f"Absorption letter by letter (rule {rule})", ylabel="mean over SAEs")
    bars.yaxis.set_major_formatter(percent)
    image = heat.imshow(rates.to_numpy(float), aspect="auto", cmap="magma_r", vmin=0)
    uncertain = np.argwhere(widths.to_numpy(float) > _WIDE)
    heat.plot(uncertain[:, 1], uncertain[:, 0], "x", color="#777777", markersize=5, markeredgewidth=0.8)
    heat.set_xticks(positions, [f"{label}\n{words[label]}" for label in rates.columns], fontsize=8)
    heat.set_xlabel(f"letter, and its held-out words; ×: the interval is wider than {100 * _WIDE:g} points", fontsize=8)
    heat.set_yticks(range(len(rates)), names, fontsize=_NAME_POINTS)
    heat.set_facecolor("#dddddd")
    beside = heat.get_position()
    bar = figure.add_axes((1 - 1.3 / width, beside.y0, 0.25 / width, beside.height))
    figure.colorbar(image, cax=bar, label="rate (grey: not evaluable)", format=percent)
    return figure


def f1_vs_k_figure(k_sparse: pd.DataFrame, summary: pd.DataFrame) -> Figure:
    """Mean F1 of the k-sparse probes against k, one line per SAE, named at its end; colours are architectures."""
    layers = sorted(summary["layer"].unique())
    saes = summary.drop_duplicates("sae").sort_values(["architecture", "l0"])
    beside = label_width([_short(name) for name in saes["sae"]])
    figure = Figure(figsize=((4.6 + beside) * len(layers), 4.2))
    axes = figure.subplots(1, len(layers), squeeze=False, sharey=True)[0]
    place_panels(figure, (1, len(layers)), right=beside, gaps=(beside + 0.3, 0.0))
    mean_f1 = k_sparse.groupby(["sae", "k"], sort=False)["f1"].mean()
    for axis, layer in zip(axes, layers, strict=True):
        here = saes[saes["layer"] == layer].set_index("sae")
        styles = line_styles(here["architecture"].to_dict())
        ends = {}
        for name, style in styles.items():
            curve = mean_f1.loc[name]
            axis.plot(curve.index, curve, label=_short(name), **style)
            ends[_short(name)] = (float(curve.index[-1]), float(curve.iloc[-1]))
        axis.axhline(here["probe_f1"].iloc[0], color="grey", linestyle="--", label="linear probe")
        axis.set(
            title=f"k-sparse probes, layer {layer}", xlabel="k (latents in the probe)", xscale="log", ylim=(0, 1.04)
        )
        axis.set_xticks([1, 2, 5, 10, 20, 50], ["1", "2", "5", "10", "20", "50"])
        if len(ends) <= MOST_LABELS:
            label_lines(axis, ends, {_short(name): style["color"] for name, style in styles.items()})
    axes[0].set_ylabel("F1, mean over letters (dashed grey: linear probe)")
    if len(saes) > MOST_LABELS:
        _legend(figure, summary)
    return figure


def _scatter(axis: Axes, summary: pd.DataFrame, x: str, y: str, interval: tuple[str, str] | None = None) -> None:
    colours, markers = _styles(summary)
    placed = summary.assign(place=summary[x] + _spread(summary) if x == "layer" else summary[x])
    by = ["architecture", "d_sae"] if interval is not None else "sae"
    for _, rows in placed.groupby(by, sort=False):
        first = rows.iloc[0]
        style: dict[str, Any] = {"color": colours[first["architecture"]], "marker": markers[first["d_sae"]]}
        style |= {"linestyle": "none", "alpha": 0.85, "clip_on": False}
        if interval is not None:
            reach = [rows[y] - rows[interval[0]], rows[interval[1]] - rows[y]]
            axis.errorbar(rows["place"], rows[y], yerr=reach, capsize=2, **style)
        else:
            axis.plot(rows["place"], rows[y], **style)
    if x == "layer":
        axis.set_xticks(sorted(summary["layer"].unique()))
    axis.set_xlabel(_AXES[x])


def _probe_line(axis: Axes, summary: pd.DataFrame, against: str, column: str) -> None:
    by_layer = summary.groupby("layer")[column].first()
    if against == "layer":
        axis.plot(by_layer.index, by_layer, color="grey", marker=".", linestyle="--")
    else:
        for value in by_layer:
            axis.axhline(value, color="grey", linestyle="--", linewidth=0.9)


def _styles(summary: pd.DataFrame) -> tuple[dict[str, str], dict[int, str]]:
    architectures, widths = sorted(summary["architecture"].unique()), sorted(summary["d_sae"].unique().tolist())
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(architectures)}
    return colours, {width: MARKERS[i % len(MARKERS)] for i, width in enumerate(widths)}


def _spread(summary: pd.DataFrame) -> np.ndarray:
    """Small sideways offsets that keep the SAEs of a layer apart."""
    rank = summary.groupby("layer")["l0"].rank(method="first").to_numpy() - 1
    size = summary.groupby("layer")["l0"].transform("size").to_numpy()
    return 0.5 * (rank / np.maximum(size - 1, 1) - 0.5) * (size > 1)


def _legend(figure: Figure, summary: pd.DataFrame, *, probe: bool = False) -> Legend:
    colours, markers = _styles(summary)
    handles = [Line2D([], [], color=c, marker="o", linestyle="none", label=a) for a, c in colours.items()]
    handles += [
        Line2D([], [], color="#555555", marker=m, linestyle="none", label=f"{width} latents")
        for width, m in markers.items()
    ]
    if probe:
        handles.append(Line2D([], [], color="grey", linestyle="--", label="linear probe"))
    return figure.legend(handles=handles, loc="upper right", fontsize=8)


def _short(sae: str) -> str:
    return sae.split("/", 1)[-1]
