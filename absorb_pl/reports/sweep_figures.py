"""Figures of the spelling sweep."""

import pandas as pd
from matplotlib.figure import Figure


def spelling_figure(table: pd.DataFrame) -> Figure:
    """Heat maps of accuracy by word length and number of in-context examples, one panel per casing and separator.

    Args:
        table: From a `SpellingSweep`.
    """
    ways = table[["casing", "separator"]].drop_duplicates().to_dict("records")
    lengths, counts = (sorted(table[name].unique().tolist()) for name in ("word_length", "num_icl_examples"))
    figure = Figure(
        figsize=(max(1, len(ways)) * (0.5 * len(counts) + 1.6) + 1.2, 0.4 * len(lengths) + 1.8), layout="constrained"
    )
    panels = figure.subplots(1, max(1, len(ways)), squeeze=False, sharey=True)[0]
    for way, axis in zip(ways, panels, strict=False):
        here = table[(table["casing"] == way["casing"]) & (table["separator"] == way["separator"])]
        accuracy = here.set_index(["word_length", "num_icl_examples"])["accuracy"].unstack()
        accuracy = accuracy.reindex(index=lengths, columns=counts)
        image = axis.imshow(accuracy.to_numpy(float), vmin=0, vmax=1, cmap="viridis", aspect="auto", origin="lower")
        for row, column in zip(*accuracy.notna().to_numpy().nonzero(), strict=True):
            value = float(accuracy.iloc[row, column])
            colour = "white" if value < 0.6 else "black"
            axis.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color=colour)
        axis.set_facecolor("#dddddd")
        axis.set_xticks(range(len(counts)), [str(count) for count in counts])
        axis.set_yticks(range(len(lengths)), [str(length) for length in lengths])
        axis.set(title=f"{way['casing']} case, {way['separator']!r}", xlabel="ICL examples")
        axis.title.set_fontsize(9)
        if axis is panels[-1]:
            figure.colorbar(image, ax=list(panels), label="accuracy (grey: no words)")
    panels[0].set_ylabel("characters of the word")
    return figure
