"""Figures of how much rates depend on the thresholds of a rule."""

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from absorb_pl.reports.layout import percent, place_panels
from absorb_pl.reports.style import MOST_LABELS, label_lines, label_width, line_styles

_WORDS = {
    "delta_threshold": "least lead over the second latent, in logits",
    "cos_threshold": "least cosine with the probe",
    "full_cos_threshold": "least cosine with the probe",
    "fraction_cos_threshold": "least cosine of absorbers with the probe",
    "proportion_threshold": "least share of the projection",
    "max_absorbers": "most absorbers per word",
}
_MEASURES = {"absorption_rate": "absorption rate", "absorption_fraction": "absorption fraction"}


def sensitivity_figure(sensitivity: pd.DataFrame, summary: pd.DataFrame) -> Figure:
    """Rates against each threshold of one rule, one line per SAE, named at its end; colours are architectures.

    The value used for the rule's own rates is marked by a dashed line. A panel is left out if a threshold moves no
    SAE's measure.

    Args:
        sensitivity: The rule's rows of a study's `sensitivity` table.
        summary: The study's `summary`, which gives the SAEs' sparsities.
    """
    panels = [
        (threshold, measure)
        for threshold in sensitivity["threshold"].unique()
        for measure in _MEASURES
        if _moves(sensitivity[sensitivity["threshold"] == threshold], measure)
    ]
    columns = max(1, min(3, len(panels)))
    rows = max(1, -(-len(panels) // columns))
    saes = summary.drop_duplicates("sae").sort_values(["architecture", "l0"]).set_index("sae")
    short = {name: str(name).split("/", 1)[-1] for name in saes.index}
    beside = label_width(list(short.values()))
    figure = Figure(figsize=((4.3 + beside) * columns, 3.5 * rows))
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    place_panels(figure, (rows, columns), right=beside, left=0.95, bottom=0.65, gaps=(0.95 + beside, 0.8))
    styles = line_styles({str(name): str(kind) for name, kind in saes["architecture"].items()})
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    for (threshold, measure), axis in zip(panels, axes, strict=False):
        here = sensitivity[sensitivity["threshold"] == threshold]
        ends = {}
        for sae, style in styles.items():
            line = here[(here["sae"] == sae) & here[measure].notna()]
            axis.plot(line["value"], line[measure], label=short[sae], **style)
            if len(line):
                ends[short[sae]] = (float(line["value"].iloc[-1]), float(line[measure].iloc[-1]))
        for value in here.loc[here["is_default"], "value"].unique():
            axis.axvline(value, color="grey", linestyle="--", linewidth=0.9)
        axis.set(xlabel=_axis_name(threshold), ylabel=f"{_MEASURES[measure]},\nmean over letters")
        axis.yaxis.set_major_formatter(percent)
        if (here["value"] % 1 == 0).all():
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set_ylim(bottom=0)
        if len(ends) <= MOST_LABELS:
            label_lines(axis, ends, {short[sae]: style["color"] for sae, style in styles.items()})
    if panels:
        figure.suptitle(f"Sensitivity to thresholds (rule {sensitivity['rule'].iloc[0]}; dashed: the value used)")
    else:
        axes[0].set_visible(False)
        figure.suptitle("No letter can be evaluated, or no threshold moves a rate")
    return figure


def _axis_name(threshold: str) -> str:
    return f"{_WORDS[threshold]}\n({threshold})" if threshold in _WORDS else threshold


def _moves(rows: pd.DataFrame, measure: str) -> bool:
    return bool((rows.groupby("sae")[measure].nunique() > 1).any())
