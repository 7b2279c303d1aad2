"""Feature splits: how many latents it takes to carry one feature."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from jaxtyping import Bool, Float, Int
from torch import Tensor

from absorb_pl.errors import NonFiniteError, ShapeError
from absorb_pl.functional.k_sparse import k_sparse_logits, solve_k_sparse
from absorb_pl.functional.metrics import f1_scores
from absorb_pl.ranges import Count, Fraction, Portion, Positive, check_ranges


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


class WalkedMains(NamedTuple):
    """The main latents of a class, with the k-sparse probe on them.

    Attributes:
        latents: The main latents, best first.
        weight: Weight of each.
        bias: Intercept of the probe.
    """

    latents: list[int]
    weight: Float[Tensor, " mains"]
    bias: Float[Tensor, ""]


def walked_main_latents(
    activations: Float[Tensor, "classes rows ranks"],
    y: Bool[Tensor, "rows classes"],
    latents_by_rank: Int[Tensor, "classes ranks"],
    threshold: Fraction = 0.03,
    max_k: Count = 15,
    *,
    l2: Positive = 1.0,
) -> list[WalkedMains]:
    """Find each class's main latents on the rows that its k-sparse probes are trained on.

    The same as `main_latents` of the F1 of all k-sparse probes; those that no walk reaches are not solved.

    Args:
        activations: Activations of each class's ranked latents.
        y: Labels; every class needs positives and negatives.
        latents_by_rank: Each class's latents, best first.
        threshold: Gain in F1 that a further latent must exceed.
        max_k: Last k of the walk.
        l2: Strength of the penalty of the probes, `1/C`.

    Returns:
        The main latents of each class, and the k-sparse probe on them.

    Raises:
        NonFiniteError: `activations` holds NaN or infinite values.
        LabelError: A class has no positive or no negative row.

    Example:
        >>> import torch
        >>> activations = torch.tensor([[[2.0, 0.0], [0.0, 3.0], [0.0, 0.0], [0.0, 0.0]]])
        >>> y = torch.tensor([[True], [True], [False], [False]])
        >>> walked_main_latents(activations, y, torch.tensor([[8, 5]]))[0].latents
        [8, 5]
    """
    check_ranges(walked_main_latents, locals())
    found: dict[int, WalkedMains] = {}
    walking, last = list(range(y.shape[1])), min(max_k, activations.shape[2])
    reach = min(2, last)
    while walking:
        ks = range(1, reach + 1)
        part, targets = activations[walking][:, :, :reach], y[:, walking]
        solution = solve_k_sparse(part, targets, ks, l2=l2)
        logits = k_sparse_logits(part.transpose(0, 1), solution.weight, solution.bias)
        f1 = f1_scores(logits.flatten(1), targets.repeat(1, reach)).view(reach, -1)
        for place, c in enumerate(walking):
            latents = main_latents(f1[:, place].tolist(), ks, latents_by_rank[c].tolist(), threshold, max_k)
            k = len(latents)
            found[c] = WalkedMains(latents, solution.weight[k - 1, place, :k], solution.bias[k - 1, place])
        walking = [c for c in walking if len(found[c].latents) == reach < last]
        reach = min(2 * reach, last)
    return [found[c] for c in range(len(found))]


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
