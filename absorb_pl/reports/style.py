"""How all figures look: colours, marks, lines and their labels, and the line that says what a figure is of."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import product
from typing import Any, cast

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D31")
"""Okabe and Ito's colours, which people with colour-blindness tell apart."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
"""Marks that say the same as colours once more."""
MOST_LABELS = 24
"""Lines of a panel that are named one by one; of more, none is."""

_DASHES = ("-", "--", ":", "-.")
_LABEL_POINTS = 6.5
_CAPTION_INCHES = 0.3
_RC = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titley": 1.0,  # a height given for titles spares matplotlib the search for one that clears the axes
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "absorb_pl",
}


@contextmanager
def house_style() -> Iterator[None]:
    """Draw and save figures in the style of all reports.

    Example:
        >>> with house_style():
        ...     axis = Figure().subplots()
        >>> axis.spines["top"].get_visible()
        False
    """
    with rc_context(cast(Any, _RC)):
        yield


def line_styles(kinds: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """A look for each of several lines: colours say their kinds, dashes and marks tell those of one kind apart.

    Args:
        kinds: Kind of each line, such as an SAE's architecture, by its name.

    Example:
        >>> looks = line_styles({"a": "topk", "b": "topk", "c": "standard"})
        >>> looks["a"]["color"] == looks["b"]["color"] != looks["c"]["color"]
        True
        >>> looks["a"]["linestyle"], looks["b"]["linestyle"]
        ('-', '--')
    """
    order = sorted(set(kinds.values()))
    looks = [(dashes, marker) for marker, dashes in product(MARKERS, _DASHES)]
    taken: dict[str, int] = {}
    styles = {}
    for name, kind in kinds.items():
        dashes, marker = looks[taken.setdefault(kind, 0) % len(looks)]
        taken[kind] += 1
        colour = COLOURS[order.index(kind) % len(COLOURS)]
        styles[name] = {"color": colour, "linestyle": dashes, "marker": marker, "markersize": 3, "linewidth": 1.1}
    return styles


def label_width(names: Sequence[str]) -> float:
    """Inches that labels at the ends of lines take, with the strokes that lead to them."""
    return 0.35 + 0.62 * _LABEL_POINTS / 72 * max((len(name) for name in names), default=0)


def label_lines(axis: Axes, ends: Mapping[str, tuple[float, float]], colours: Mapping[str, str]) -> None:
    """Write names beside the ends of lines, right of a panel that has its place and limits, none over another.

    Args:
        axis: The panel.
        ends: The last point of each line by its name.
        colours: Colour of each name.
    """
    height = axis.get_position().height * cast(Figure, axis.figure).get_size_inches()[1]
    gap = float(1.25 * _LABEL_POINTS / 72 / height)
    low, high = axis.get_ylim()
    order = sorted(ends, key=lambda name: ends[name][1])
    places = spread_out([float((ends[name][1] - low) / (high - low)) for name in order], gap)
    for name, place in zip(order, places, strict=True):
        axis.annotate(
            name,
            xy=ends[name],
            xytext=(1.06, place),
            textcoords="axes fraction",
            fontsize=_LABEL_POINTS,
            color=colours[name],
            va="center",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": colours[name],
                "linewidth": 0.5,
                "alpha": 0.6,
                "relpos": (0.0, 0.5),
            },
        )


def spread_out(places: Sequence[float], gap: float) -> list[float]:
    """Move ascending places apart by at least a gap, no further than that takes, and into 0 to 1 where they fit.

    Args:
        places: Places, ascending.
        gap: Least distance of two.

    Returns:
        Places of the same order.

    Example:
        >>> spread_out([0.5, 0.5, 1.0], gap=0.25)
        [0.375, 0.625, 1.0]
        >>> spread_out([0.0, 0.0], gap=0.25)
        [0.0, 0.25]
    """
    groups: list[tuple[float, int]] = []  # mean and number of places that stand side by side
    for place in places:
        groups.append((place, 1))
        while len(groups) > 1 and _overlap(groups[-2], groups[-1], gap):
            (one, few), (other, more) = groups[-2:]
            groups[-2:] = [((one * few + other * more) / (few + more), few + more)]
    found = [mean + (rank - (count - 1) / 2) * gap for mean, count in groups for rank in range(count)]
    for rank in range(len(found)):
        found[rank] = max(found[rank], found[rank - 1] + gap if rank else 0.0)
    for rank in reversed(range(len(found))):
        found[rank] = min(found[rank], found[rank + 1] - gap if rank + 1 < len(found) else max(1.0, gap * rank))
    return found


def _overlap(below: tuple[float, int], above: tuple[float, int], gap: float) -> bool:
    reach = gap * (below[1] + above[1]) / 2
    return above[0] - below[0] < reach


def add_caption(figure: Figure, caption: str) -> None:
    """Write below a figure what it is of; the figure grows by the room that takes.

    Args:
        figure: The figure.
        caption: One line.
    """
    width, height = figure.get_size_inches()
    grown = height + _CAPTION_INCHES
    for axis in figure.axes:
        box = axis.get_position()
        bottom, top = ((y * height + _CAPTION_INCHES) / grown for y in (box.y0, box.y1))
        axis.set_position((box.x0, bottom, box.width, top - bottom))
    figure.set_size_inches(width, grown)
    figure.text(0.01, 0.07 / grown, caption, fontsize=7, color="#555555")
