"""Figures of the ablation evaluator: cheap scores of latents against what ablating them does."""

import pandas as pd
from matplotlib.figure import Figure

from absorb_pl.evaluators.ablation import ESTIMATES, agreement_table

_TITLES = {"ig_score": "Integrated gradients", "attribution": "Attribution, negated"}


def ablation_figure(pairs: pd.DataFrame) -> Figure:
    """Estimates against true ablation effects, a row of panels an SAE and a panel a score, one dot a (word, latent).

    Attributions are negated, so that a perfect estimate lies on the dashed diagonal in every panel.

    Args:
        pairs: From an `AblationEvaluator`.
    """
    agreement = agreement_table(pairs)
    count = max(1, len(agreement))
    figure = Figure(figsize=(4.2 * len(ESTIMATES), 3.6 * count), layout="constrained")
    panels = figure.subplots(count, len(ESTIMATES), squeeze=False)
    for row, line in zip(agreement.to_dict("records"), panels, strict=False):
        here = pairs[pairs["sae"] == row["sae"]]
        line[0].set_ylabel(f"{str(row['sae']).split('/', 1)[-1]}\ntrue effect (logits)")
        for (column, sign), axis in zip(ESTIMATES.items(), line, strict=True):
            estimates, effects = sign * here[column], here["ablation_effect"]
            axis.scatter(estimates, effects, s=6, alpha=0.4, color="#0072B2", linewidths=0)
            ends = [min(estimates.min(), effects.min()), max(estimates.max(), effects.max())]
            axis.plot(ends, ends, color="grey", linestyle="--", linewidth=0.9)
            axis.set_title(f"{_TITLES[column]}: r = {_shown(row[f'{column}_pearson'])}", fontsize=9)
            axis.set_xlabel("estimated effect (logits)")
            axis.spines[["top", "right"]].set_visible(False)
    return figure


def _shown(value: float) -> str:
    return "undefined" if pd.isna(value) else f"{value:.2f}"
