"""Feature splits: how many latents it takes to carry one feature."""

import math
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from absorb_pl.errors import NonFiniteError, ShapeError
from absorb_pl.ranges import Count, Fraction, Portion, check_ranges


def main_latents(
    f1_by_k: Sequence[float | int],
    ks: Sequence[int],
    latents_by_rank: Sequence[int],
    threshold: Fraction = 0.03,
    max_k: Count = 15,
) -> list[int]:
    """Find the latents that together carry a feature.

    Walks k = 1, 2, … up to `max_k` and keeps extending while F1 exceeds the best so far by more than
    `threshold`; the first k that does not ends the walk (arXiv 2409.14507, section 4.1; the published
    `add_feature_splits_to_auroc_f1_df`). The number of splits is the number of latents returned less one.

    Args:
        f1_by_k: F1 of the class's k-sparse probe for each of `ks`.
        ks: The ks; 1 must be among them, and the walk also ends where a k is missing.
        latents_by_rank: The class's latents, best first.
        threshold: Gain in F1 that a further latent must exceed.
        max_k: Last k of the walk.

    Returns:
        The main latents, best first; at least one.

    Raises:
        NonFiniteError: An F1 is NaN or infinite.
        ShapeError: `ks` and `f1_by_k` differ in length, 1 is missing, or there are fewer latents than needed.

    Example:
        >>> main_latents([0.6, 0.7, 0.72], ks=[1, 2, 3], latents_by_rank=[40, 7, 9])
        [40, 7]
    """
    check_ranges(main_latents, locals())
    if len(f1_by_k) != len(ks) or 1 not in ks:
        raise ShapeError(
            "ks", list(ks), expected=f"{len(f1_by_k)} ks, 1 among them", remedy="Probe with k = 1, 2, 3, …"
        )
    if not all(math.isfinite(f1) for f1 in f1_by_k):
        raise NonFiniteError("f1_by_k", list(f1_by_k), expected="finite F1", remedy="Leave out classes without words.")
    f1 = dict(zip(ks, f1_by_k, strict=True))
    best, kept = f1[1], 1
    while kept < max_k and kept + 1 in f1 and f1[kept + 1] > best + threshold:
        kept += 1
        best = f1[kept]
    if len(latents_by_rank) < kept:
        raise ShapeError(
            "latents_by_rank",
            len(latents_by_rank),
            expected=f"at least {kept} latents",
            remedy="Rank as many latents as the largest k.",
        )
    return [int(latent) for latent in latents_by_rank[:kept]]


def aligned_main_latents(
    main_latents: Sequence[int], probe_cos: Float[Tensor, " latents"], min_alignment: Portion
) -> list[int]:
    """Keep the first main latent, and the further ones that point the way it does.

    The walk by F1 takes any latent that helps to tell the class, an absorber of many words as well as a second latent
    of the feature; what tells them apart is where they point.

    Args:
        main_latents: From `main_latents`, best first.
        probe_cos: Cosine of each latent's decoder row with the class's probe.
        min_alignment: Least cosine of a further latent, as a share of the first's.

    Returns:
        The latents that are kept, in the same order.

    Example:
        >>> import torch
        >>> aligned_main_latents([2, 0, 1], torch.tensor([0.78, 0.3, 0.8]), min_alignment=0.95)
        [2, 0]
    """
    check_ranges(aligned_main_latents, locals())
    least = min_alignment * float(probe_cos[main_latents[0]])
    return [latent for place, latent in enumerate(main_latents) if not place or float(probe_cos[latent]) >= least]
