"""Where panels stand in a figure, in inches, and how their ticks are labelled.

Matplotlib's own layouts measure every text before they draw a figure, which takes as long as drawing it.
"""

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.legend import Legend


def percent(value: float, _position: int | None = None) -> str:
    """A tick's label, with no more decimals than it needs.

    Args:
        value: A share.

    Example:
        >>> percent(0.35), percent(0.025)
        ('35%', '2.5%')
    """
    return f"{100 * value:.3g}%"


def place_panels(
    figure: Figure,
    shape: tuple[int, int],
    *,
    legend: Legend | None = None,
    left: float = 0.75,
    right: float = 0.1,
    top: float = 0.35,
    bottom: float = 0.5,
    gaps: tuple[float, float] = (0.25, 0.6),
) -> None:
    """Place a grid of panels, leaving what is asked for around and between them.

    Args:
        figure: The figure; its panels come from `subplots`.
        shape: Rows and columns of the grid.
        legend: A legend in the upper right corner, beside which the panels end.
        left: Inches for the labels of the first column.
        right: Inches beside the last column, or between it and the legend.
        top: Inches for titles.
        bottom: Inches for the labels below the last row.
        gaps: Inches between columns and between rows.

    Example:
        >>> figure = Figure(figsize=(5.0, 4.0))
        >>> panels = figure.subplots(1, 2)
        >>> place_panels(figure, (1, 2), left=1.0)
        >>> [round(5.0 * float(panel.get_position().x0), 6) for panel in panels]
        [1.0, 3.075]
    """
    width, height = figure.get_size_inches()
    end = width - right
    if legend is not None:
        extent = legend.get_window_extent(FigureCanvasAgg(figure).get_renderer())
        end -= extent.width / figure.dpi
    (rows, columns), (across, down) = shape, gaps
    panel_width = (end - left - (columns - 1) * across) / columns
    panel_height = (height - top - bottom - (rows - 1) * down) / rows
    figure.subplots_adjust(
        left=left / width,
        right=end / width,
        bottom=bottom / height,
        top=1 - top / height,
        wspace=across / panel_width,
        hspace=down / panel_height,
    )
