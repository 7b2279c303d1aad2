"""The plots of the experiments: a point per SAE against L0 or layer, coloured by width."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from absorb_pl.data.drafts import writing_to
from absorb_pl.experiments.common import humanify_sae_width
from absorb_pl.experiments.runs import Results

_DPI = 150
_SPREAD = 0.6
_MANY_LAYERS = 20


def points_of(results: Results, value: Callable[[pd.DataFrame], float]) -> pd.DataFrame:
    """One row per SAE with what the plots place it by.

    Args:
        results: Frames by layer.
        value: What is drawn of a frame.

    Returns:
        `layer, sae_l0, sae_width, value`; values may be missing.
    """
    rows = [
        {"layer": layer, "sae_l0": info.l0, "sae_width": info.width, "value": value(frame)}
        for layer, found in results.items()
        for frame, info in found
    ]
    return pd.DataFrame(rows, columns=["layer", "sae_l0", "sae_width", "value"])


def mean_over_letters(results: Results, column: str) -> pd.DataFrame:
    """Mean of a column over the letters of each SAE, as `points_of` gives it.

    Args:
        results: Frames with one row per letter, by layer.
        column: The column.
    """
    return points_of(results, lambda frame: frame[column].mean())


def vs_l0_figure(points: pd.DataFrame, title: str, label: str) -> Figure:
    """A figure against L0.

    Args:
        points: From `points_of`.
        title: Its title.
        label: What the vertical axis shows.
    """
    figure, axis, points = _figure(points, title, label, "L0")
    for width, rows in points.groupby("sae_width"):
        axis.plot(rows["sae_l0"], rows["value"], **_style(points, width))
    _legend(figure, axis)
    return figure


def vs_layer_figure(points: pd.DataFrame, title: str, label: str, probe: pd.DataFrame | None = None) -> Figure:
    """A figure against layers, the SAEs of a layer side by side from the sparsest to the densest.

    Args:
        points: From `points_of`.
        title: Its title.
        label: What the vertical axis shows.
        probe: The linear probe's own values, drawn as a line.
    """
    figure, axis, points = _figure(points, title, label, "Layer")
    layers = sorted(points["layer"].unique().tolist())
    place = points["layer"].map(layers.index) + _beside(points)
    for width, rows in points.assign(place=place).groupby("sae_width"):
        axis.plot(rows["place"], rows["value"], **_style(points, width))
    if probe is not None:
        means = probe.groupby("layer")["value"].mean().loc[layers]
        axis.plot(range(len(layers)), means, color="grey", marker="o", markersize=3, linewidth=1, label="linear probe")
    every = 2 if len(layers) > _MANY_LAYERS else 1
    axis.set_xticks(range(0, len(layers), every), [str(layer) for layer in layers[::every]])
    axis.set_xlim(-0.6, len(layers) - 0.4)
    _legend(figure, axis)
    return figure


def metric_name(metric: str) -> str:
    """A metric as titles write it.

    Args:
        metric: Its name in tables.

    Example:
        >>> metric_name("f1"), metric_name("recall")
        ('F1', 'recall')
    """
    return "F1" if metric == "f1" else metric


def save_plot(figure: Figure, folder: Path | str, name: str) -> Figure:
    """Write a figure as `NAME.pdf` and `NAME.png`.

    Args:
        figure: The figure.
        folder: Where to.
        name: Name of the files.

    Returns:
        The figure.

    Raises:
        OutputFolderError: The folder cannot be written.
    """
    folder = Path(folder)
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for kind in ("pdf", "png"):
            part = folder / f".{name}.{kind}.part"
            figure.savefig(part, format=kind, dpi=_DPI)
            part.replace(folder / f"{name}.{kind}")
    return figure


def _figure(points: pd.DataFrame, title: str, label: str, below: str) -> tuple[Figure, Axes, pd.DataFrame]:
    """A figure with one empty panel, and the points to draw; it says how many have no value."""
    drawn = points.dropna(ignore_index=True)
    missing = len(points) - len(drawn)
    figure = Figure(figsize=(5.2, 3.2), layout="constrained")
    axis = figure.subplots()
    axis.set(title=title, xlabel=f"{below} (not drawn: {missing} without a value)" if missing else below, ylabel=label)
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    return figure, axis, drawn


def _style(points: pd.DataFrame, width: Any) -> dict[str, Any]:
    widths = sorted(points["sae_width"].unique())
    shade = widths.index(width) / max(1, len(widths) - 1)
    style = {"linestyle": "none", "marker": "o", "markersize": 4, "clip_on": False}
    return {**style, "color": colormaps["viridis"](0.85 * shade), "label": humanify_sae_width(int(width))}


def _beside(points: pd.DataFrame) -> np.ndarray:
    """Sideways places of the SAEs of a layer, by L0."""
    by_layer = points.groupby("layer")["sae_l0"]
    rank, size = by_layer.rank(method="first").to_numpy(), by_layer.transform("size").to_numpy()
    return _SPREAD * ((rank - 0.5) / size - 0.5)


def _legend(figure: Figure, axis: Axes) -> None:
    if axis.get_legend_handles_labels()[0]:
        figure.legend(title="SAE width", title_fontsize="small", loc="outside right upper", frameon=False)
