"""k-sparse probes: for every class, the logistic regression on its k best latents, for many k.

Shapes: c classes, r rows, n ranks (the best latents of a class, in order).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from absorb_pl.errors import ShapeError
from absorb_pl.functional.logistic import balanced_row_weights, newton_logistic
from absorb_pl.functional.metrics import optimal_f1_threshold
from absorb_pl.functional.validation import require_finite, require_two_sided
from absorb_pl.ranges import Count, Positive, check_ranges

DEFAULT_KS = (*range(1, 16), 20, 50)
"""Latents of the k-sparse probes where no others are asked for."""
_CHUNK_VALUES = 2**25


class KSparseSolution(NamedTuple):
    """Solved k-sparse probes.

    Attributes:
        weight: Coefficient of each ranked latent; zero from rank k on.
        bias: Intercepts.
    """

    weight: Float[Tensor, "ks classes ranks"]
    bias: Float[Tensor, "ks classes"]


def check_ks(ks: Sequence[int], num_latents: int) -> tuple[int, ...]:
    """Sort the numbers of latents to probe with and refuse impossible ones.

    Args:
        ks: Numbers of latents.
        num_latents: How many latents there are.

    Returns:
        The distinct ks, ascending.

    Raises:
        ShapeError: A k is below one or above `num_latents`, or there is none.

    Example:
        >>> check_ks([5, 1, 1], num_latents=8)
        (1, 5)
    """
    distinct = tuple(sorted(set(ks)))
    if not distinct or distinct[0] < 1 or distinct[-1] > num_latents:
        raise ShapeError(
            "ks",
            list(ks),
            expected=f"whole numbers from 1 to {num_latents}",
            remedy="Leave out the ks that the SAE's width does not allow.",
        )
    return distinct


def rank_latents(weight: Float[Tensor, "classes latents"], count: Count) -> Int[Tensor, "classes ranks"]:
    """Order each class's latents by signed probe weight, largest first, and keep the first `count`.

    Signed, not absolute: the published `train_k_sparse_probes` wants latents that speak for the class. Ties
    go to the lower latent id, so the order does not depend on the device.

    Args:
        weight: Weights of the L1-regularised probe.
        count: Latents to keep.

    Returns:
        Latent ids.

    Raises:
        NonFiniteError: A weight is NaN or infinite, as after training with too large a learning rate.

    Example:
        >>> rank_latents(torch.tensor([[0.0, 2.0, -3.0, 2.0]]), 3)
        tensor([[1, 3, 0]])
    """
    check_ranges(rank_latents, locals())
    require_finite(weight=weight)
    return weight.sort(dim=1, descending=True, stable=True).indices[:, :count]


def tracking_ranks(
    activations: Float[Tensor, "classes rows ranks"], y: Bool[Tensor, "rows classes"]
) -> tuple[Int[Tensor, " classes"], Float[Tensor, " classes"]]:
    """Find the latent that tells each class best by itself, at its best threshold.

    Args:
        activations: Activations of each class's ranked latents.
        y: Labels.

    Returns:
        Its rank, the lower one of equally good latents, and its F1.

    Raises:
        NonFiniteError: `activations` holds NaN or infinite values.

    Example:
        >>> activations = torch.tensor([[[9.0, 1.0], [0.0, 1.0], [9.0, 0.0]]])
        >>> tracking_ranks(activations, torch.tensor([[True], [True], [False]]))
        (tensor([1]), tensor([1.], dtype=torch.float64))
    """
    require_finite(activations=activations)
    classes, rows, ranks = activations.shape
    positives = y.sum(dim=0)[:, None].double()
    # At any threshold above a latent's least activation, no more rows are said to be of the class than exceed that one.
    above = activations > activations.amin(dim=1, keepdim=True)
    said, hits = above.sum(dim=1), (above & y.T[:, :, None]).sum(dim=1)
    at_all = (2 * positives / (positives + rows)).expand(classes, ranks)
    at_least = torch.maximum(2 * hits / (said + positives), at_all)
    at_most = torch.maximum(2 * hits / (hits + positives), at_all)
    may_be_best = at_most >= at_least.amax(dim=1, keepdim=True)
    targets = y[:, may_be_best.nonzero()[:, 0]]
    f1 = torch.full_like(at_least, -1.0)
    f1[may_be_best] = optimal_f1_threshold(activations.transpose(1, 2)[may_be_best].T, targets)[1]
    best = f1.amax(dim=1)
    return (f1 == best[:, None]).int().argmax(dim=1), best


def solve_k_sparse(
    activations: Float[Tensor, "classes rows ranks"],
    y: Bool[Tensor, "rows classes"],
    ks: Sequence[int] = DEFAULT_KS,
    *,
    l2: Positive = 1.0,
    balanced: bool = True,
    tolerance: Positive = 1e-6,
) -> KSparseSolution:
    """Fit the logistic regression of every class and k on the class's first k latents.

    Each of the `classes · ks` problems is that of `solve_logistic_regressions`, solved to its optimum; one k
    is solved for all classes at once, starting from the solution of the k before it. Most rows are zero on a
    class's first k latents and differ only in their label, so they are counted rather than carried: rows are
    sorted by the first latent that fires, and all-zero rows beyond the longest class become one weighted row
    for each label. This is exact.

    Args:
        activations: Activations of each class's ranked latents.
        y: Labels; every class needs positives and negatives.
        ks: Numbers of latents.
        l2: Strength of the penalty, `1/C`.
        balanced: Weight the rows so that both classes count the same.
        tolerance: As in `solve_logistic_regressions`.

    Returns:
        Weights and intercepts in float64, ks ascending.

    Raises:
        NonFiniteError: `activations` holds NaN or infinite values.
        LabelError: A class has no positive or no negative row.
        ShapeError: A k is above the number of ranks.

    Example:
        >>> activations = torch.tensor([[[2.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]])
        >>> y = torch.tensor([[True], [True], [False], [False]])
        >>> solution = solve_k_sparse(activations, y, ks=[1, 2])
        >>> solution.weight.shape, solution.weight[0, 0, 1].item()
        (torch.Size([2, 1, 2]), 0.0)
    """
    check_ranges(solve_k_sparse, locals())
    require_finite(activations=activations)
    ks = check_ks(ks, activations.shape[2])
    classes, rows, ranks = activations.shape
    require_two_sided("y", y.sum(dim=0), rows)
    chunk = max(1, _CHUNK_VALUES // max(1, rows * ks[-1]))
    weight = torch.zeros(len(ks), classes, ranks, dtype=torch.float64, device=activations.device)
    bias = torch.zeros(len(ks), classes, dtype=torch.float64, device=activations.device)
    for first in range(0, classes, chunk):
        part = slice(first, first + chunk)
        solved = _solve_classes(activations[part], y.T[part], ks, l2, balanced, tolerance)
        for i, theta in enumerate(solved):
            weight[i, part, : theta.shape[1] - 1] = theta[:, :-1]
            bias[i, part] = theta[:, -1]
    return KSparseSolution(weight, bias)


def k_sparse_logits(
    activations: Float[Tensor, "rows classes ranks"],
    weight: Float[Tensor, "ks classes ranks"],
    bias: Float[Tensor, "ks classes"],
) -> Float[Tensor, "rows ks classes"]:
    """Logits of the k-sparse probes of all classes and ks, as one product.

    Args:
        activations: Activations of each class's ranked latents.
        weight: Coefficients, zero from rank k on.
        bias: Intercepts.

    Returns:
        Above zero where the first k latents tell the class.

    Example:
        >>> k_sparse_logits(torch.ones(1, 1, 2), torch.tensor([[[2.0, 0.0]]]), torch.tensor([[-1.0]]))
        tensor([[[1.]]])
    """
    return torch.einsum("rcn,kcn->rkc", activations.to(weight.dtype), weight) + bias


def _solve_classes(
    activations_crn: Tensor, y_cr: Tensor, ks: tuple[int, ...], l2: float, balanced: bool, tolerance: float
) -> list[Tensor]:
    """Solve all ks for a few classes; coefficients `[classes, k + 1]` for each k."""
    row_weight_cr = balanced_row_weights(y_cr) if balanced else torch.ones_like(y_cr, dtype=torch.float64)
    fires_crn = activations_crn[:, :, : ks[-1]] != 0
    first_cr = torch.where(fires_crn.any(dim=2), fires_crn.int().argmax(dim=2), ks[-1])
    first_cr, order_cr = first_cr.sort(dim=1, stable=True)
    longest = int((first_cr < ks[-1]).sum(dim=1).max())
    x_crn = activations_crn[:, :, : ks[-1]].gather(1, order_cr[:, :longest, None].expand(-1, -1, ks[-1]))
    # Two rows of zeros stand first, for all rows of each label on which none of the first k latents fires.
    x_crn = torch.cat([x_crn.new_zeros(len(y_cr), 2, ks[-1]), x_crn], dim=1).double()
    y_cr = y_cr.gather(1, order_cr)
    row_weight_cr = row_weight_cr.gather(1, order_cr)
    label = torch.tensor([True, False], device=y_cr.device).expand(len(y_cr), 2)
    solved: list[Tensor] = []
    theta = torch.zeros(len(y_cr), 1, dtype=torch.float64, device=y_cr.device)
    for k in ks:
        carried = int((first_cr < k).sum(dim=1).max())
        rest = row_weight_cr[:, carried:]
        rest_y = y_cr[:, carried:]
        counted = torch.stack([(rest * rest_y).sum(dim=1), (rest * ~rest_y).sum(dim=1)], dim=1)
        start = torch.cat([theta[:, :-1], theta.new_zeros(len(theta), k + 1 - theta.shape[1])], dim=1)
        theta = newton_logistic(
            x_crn[:, : 2 + carried, :k],
            torch.cat([label, y_cr[:, :carried]], dim=1),
            torch.cat([counted, row_weight_cr[:, :carried]], dim=1),
            l2=l2,
            start=torch.cat([start, theta[:, -1:]], dim=1),
            tolerance=tolerance,
        )
        solved.append(theta)
    return solved
