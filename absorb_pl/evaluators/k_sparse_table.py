"""The k-sparse evaluation as a table: how well the k best latents of a class tell it apart, for every k."""

import pandas as pd
from jaxtyping import Bool, Float, Int
from torch import Tensor

from absorb_pl.functional.metrics import binary_metrics, optimal_f1_threshold
from absorb_pl.functional.splits import main_latents
from absorb_pl.ranges import Count, Fraction, check_ranges

_METRICS = ("f1", "precision", "recall", "auroc")


def k_sparse_table(
    logits: Float[Tensor, "rows ks classes"],
    y: Bool[Tensor, "rows classes"],
    ks: tuple[int, ...],
    latent_ids: Int[Tensor, "classes ranks"],
    class_names: tuple[str, ...],
) -> pd.DataFrame:
    """Score the k-sparse probes on evaluation words (arXiv 2409.14507, section 4.1).

    Args:
        logits: Logits of the k-sparse probes.
        y: Which class each word is of.
        ks: Numbers of latents.
        latent_ids: Latents of each class, best first.
        class_names: Names of the classes.

    Returns:
        One row per class and k: `label, k, f1, precision, recall, auroc, best_f1, best_f1_threshold, latents`. Classes
        that do not occur among the words are left out.
    """
    columns, targets = logits.flatten(1), y.repeat(1, len(ks))
    scores = binary_metrics(columns, targets)
    threshold, best_f1 = optimal_f1_threshold(columns, targets)
    shape = (len(ks), len(class_names))
    grids = {name: getattr(scores, name).view(shape) for name in _METRICS}
    grids |= {"best_f1": best_f1.view(shape), "best_f1_threshold": threshold.view(shape)}
    occurs = y.any(dim=0).tolist()
    return pd.DataFrame(
        [
            {
                "label": name,
                "k": k,
                **{metric: float(grid[i, c]) for metric, grid in grids.items()},
                "latents": latent_ids[c, :k].tolist(),
            }
            for c, name in enumerate(class_names)
            if occurs[c]
            for i, k in enumerate(ks)
        ]
    )


def main_latents_by_label(table: pd.DataFrame, threshold: Fraction = 0.03, max_k: Count = 15) -> dict[str, list[int]]:
    """The main latents of every class of a k-sparse table, by the split rule.

    Args:
        table: From `k_sparse_table`.
        threshold: Gain in F1 that a further latent must exceed.
        max_k: Last k of the walk.
    """
    check_ranges(main_latents_by_label, locals())
    return {
        str(label): main_latents(rows["f1"].tolist(), rows["k"].tolist(), rows["latents"].iloc[-1], threshold, max_k)
        for label, rows in table.groupby("label", sort=False)
    }
