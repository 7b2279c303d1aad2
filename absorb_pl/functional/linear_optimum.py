"""The optimum of the linear probes' regularised loss, all classes at once.

Shapes: r rows, c classes, d features (with the intercept's constant 1 as the last).
"""

import torch
from jaxtyping import Bool, Float, Num
from torch import Tensor

from absorb_pl.errors import ConvergenceError
from absorb_pl.functional.probe_loss import probe_loss
from absorb_pl.functional.validation import require_finite, require_two_sided
from absorb_pl.ranges import Count, Positive, check_ranges

_HISTORY = 20


def minimise_probe_loss(
    x: Float[Tensor, "rows features"],
    y: Num[Tensor, "rows classes"] | Bool[Tensor, "rows classes"],
    pos_weight: Float[Tensor, " classes"],
    *,
    weight_decay: Positive = 1e-4,
    tolerance: Positive = 1e-6,
    max_iterations: Count = 2000,
) -> tuple[Float[Tensor, "classes features"], Float[Tensor, " classes"]]:
    """Minimise `probe_loss + weight_decay/2 · (‖W‖² + ‖b‖²)` to its one optimum.

    This is what Adam minimises in the published `train_multi_probe`: its `weight_decay` adds `weight_decay ·
    θ` to the gradient of weights and biases. The objective is strictly convex, so the result depends neither
    on a start nor on the order of rows. Solved by L-BFGS on all rows in coordinates where the objective's
    curvature is bounded by about the identity (Böhning's `XᵀX/4`, times the rows' mean weight of at most 2,
    factored once); float32 does the long way, float64 the last.

    Args:
        x: Features.
        y: Labels, 0 or 1; every class with both.
        pos_weight: Weight of positive rows, see `positive_weights`.
        weight_decay: Strength of the penalty, above zero.
        tolerance: Largest entry of the gradient at the solution, in those coordinates.
        max_iterations: L-BFGS iterations after which to give up.

    Returns:
        Weights and biases in float64.

    Raises:
        NonFiniteError: `x` holds NaN or infinite values.
        LabelError: A class has no positive or no negative row.
        RangeError: `weight_decay` is not above zero.
        ConvergenceError: The tolerance was not reached.

    Example:
        >>> x, y = torch.tensor([[-1.0], [1.0]]), torch.tensor([[0], [1]])
        >>> weight, bias = minimise_probe_loss(x, y, torch.ones(1), weight_decay=0.1)
        >>> gradient = -torch.sigmoid(-weight) + 0.1 * weight  # by symmetry, with bias 0
        >>> bool(gradient.abs() < 1e-5), bool(bias.abs() < 1e-5)
        (True, True)
    """
    check_ranges(minimise_probe_loss, locals())
    require_finite(x=x)
    require_two_sided("y", y.sum(dim=0), len(y))
    classes = y.shape[1]
    x_rd = torch.cat([x, torch.ones_like(x[:, :1])], dim=1).double()
    curvature_dd = x_rd.T @ x_rd * (0.5 / (len(x) * classes))
    curvature_dd.diagonal().add_(weight_decay)
    factor_dd = torch.linalg.cholesky(curvature_dd)
    scaled_rd = torch.linalg.solve_triangular(factor_dd, x_rd.T, upper=False).T
    theta_cd = torch.zeros(classes, x_rd.shape[1], dtype=torch.float32, device=x.device)
    largest = float("inf")
    for dtype, goal in ((torch.float32, 10 * tolerance), (torch.float64, tolerance)):
        theta_cd, largest = _descend(
            theta_cd.to(dtype),
            scaled_rd.to(dtype).contiguous(),
            y.to(dtype),
            pos_weight.to(dtype),
            factor_dd.to(dtype),
            weight_decay,
            goal,
            max_iterations,
        )
    if not largest <= 10 * tolerance:
        raise ConvergenceError(
            "max_iterations",
            max_iterations,
            expected=f"enough for a gradient of {tolerance:g} (it is {largest:.1e})",
            remedy="Allow more iterations, or use a larger `weight_decay`.",
        )
    solution_cd = torch.linalg.solve_triangular(factor_dd, theta_cd, upper=False, left=False)
    return solution_cd[:, :-1], solution_cd[:, -1]


def _descend(
    start_cd: Tensor,
    scaled_rd: Tensor,
    y_rc: Tensor,
    pos_weight_c: Tensor,
    factor_dd: Tensor,
    weight_decay: float,
    goal: float,
    max_iterations: int,
) -> tuple[Tensor, float]:
    """Run L-BFGS in scaled coordinates; the point reached and its gradient's largest entry."""
    theta_cd = start_cd.clone().requires_grad_()
    mask_c = torch.ones(len(theta_cd), dtype=torch.bool, device=theta_cd.device)
    optimizer = torch.optim.LBFGS(
        [theta_cd],
        max_iter=max_iterations,
        max_eval=2 * max_iterations,
        tolerance_grad=goal,
        tolerance_change=0.0,
        history_size=_HISTORY,
        line_search_fn="strong_wolfe",
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        natural_cd = torch.linalg.solve_triangular(factor_dd, theta_cd, upper=False, left=False)
        loss = probe_loss(scaled_rd @ theta_cd.T, y_rc, pos_weight_c, mask_c)
        loss = loss + 0.5 * weight_decay * natural_cd.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(objective)
        objective()
    gradient = theta_cd.grad
    assert gradient is not None
    return theta_cd.detach(), float(gradient.abs().max())
