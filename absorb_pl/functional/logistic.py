"""Many small logistic regressions solved to their optimum at once.

Shapes: p problems, r rows, f features (g = f + 1 with the intercept).
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import softplus

from absorb_pl.errors import ConvergenceError
from absorb_pl.functional.line_search import halved_steps
from absorb_pl.functional.validation import require_finite, require_two_sided
from absorb_pl.ranges import Count, Positive, check_ranges


def balanced_row_weights(y: Bool[Tensor, "problems rows"]) -> Float[Tensor, "problems rows"]:
    """Weights that give both classes of a problem the same total.

    A row weighs `rows / (2 · rows of its class)`, scikit-learn's `class_weight="balanced"`.

    Args:
        y: Labels, each problem with at least one positive and one negative row.

    Returns:
        Weights in float64; every problem's sum to `rows`.

    Example:
        >>> balanced_row_weights(torch.tensor([[True, False, False, False]]))
        tensor([[2.0000, 0.6667, 0.6667, 0.6667]], dtype=torch.float64)
    """
    rows = y.shape[1]
    positives = y.sum(dim=1, keepdim=True).double()
    return torch.where(y, rows / (2 * positives), rows / (2 * (rows - positives)))


def solve_logistic_regressions(
    x: Float[Tensor, "problems rows features"],
    y: Bool[Tensor, "problems rows"],
    *,
    l2: Positive = 1.0,
    balanced: bool = True,
    tolerance: Positive = 1e-6,
    max_iterations: Count = 200,
) -> tuple[Float[Tensor, "problems features"], Float[Tensor, " problems"]]:
    """Solve independent L2-regularised logistic regressions to their optimum.

    Minimises, for every problem, `Σᵢ cᵢ · log(1 + exp(−sᵢ(w·xᵢ + b))) + l2/2 · ‖w‖²` with `s = ±1` the label,
    the intercept `b` unpenalised and `c` one or `balanced_row_weights`. This is the objective of
    scikit-learn's `LogisticRegression(C=1/l2, class_weight="balanced")`, by which Gurnee et al. and the
    paper's k-sparse probes (arXiv 2409.14507, section 4.1; `train_k_sparse_probes`) are fitted; here it is
    solved by Newton's method with a line search, in float64, so separable data and constant, zero or repeated
    features converge too.

    Args:
        x: Features.
        y: Labels.
        l2: Strength of the penalty, `1/C`; above zero.
        balanced: Weight the rows so that both classes count the same.
        tolerance: Largest Newton decrement `√(gᵀH⁻¹g)` before the last step. It bounds the error of the weights
            before that step by `tolerance / √l2`; the step about squares it.
        max_iterations: Newton steps after which to give up.

    Returns:
        Weights and intercepts in float64.

    Raises:
        NonFiniteError: `x` holds NaN or infinite values.
        LabelError: A problem has no positive or no negative row.
        ConvergenceError: A problem did not reach `tolerance`.

    Example:
        >>> x = torch.tensor([[[0.0], [1.0], [2.0], [3.0]]])
        >>> weight, bias = solve_logistic_regressions(x, torch.tensor([[False, False, True, True]]))
        >>> (-bias / weight[:, 0]).round(decimals=6)  # the decision point, by symmetry 1.5
        tensor([1.5000], dtype=torch.float64)
    """
    check_ranges(solve_logistic_regressions, locals())
    require_finite(x=x)
    require_two_sided("y", y.sum(dim=1), y.shape[1])
    row_weight = balanced_row_weights(y) if balanced else torch.ones_like(y, dtype=torch.float64)
    theta = newton_logistic(x.double(), y, row_weight, l2=l2, tolerance=tolerance, max_iterations=max_iterations)
    return theta[:, :-1], theta[:, -1]


def newton_logistic(
    x: Float[Tensor, "problems rows features"],
    y: Bool[Tensor, "problems rows"],
    row_weight: Float[Tensor, "problems rows"],
    *,
    l2: Positive,
    start: Float[Tensor, "problems features_and_bias"] | None = None,
    tolerance: Positive = 1e-6,
    max_iterations: Count = 200,
) -> Float[Tensor, "problems features_and_bias"]:
    """Minimise weighted L2-regularised logistic losses from a given start.

    The objective is that of `solve_logistic_regressions` with any non-negative row weights, so a row can
    stand for several identical ones. Problems leave the batch as they converge.

    Args:
        x: Features in float64.
        y: Labels.
        row_weight: Weight of each row.
        l2: Strength of the penalty on all but the last coefficient.
        start: Coefficients with the intercept last; zeros if not given.
        tolerance: Largest Newton decrement before the last step.
        max_iterations: Newton steps after which to give up.

    Returns:
        Coefficients with the intercept last.

    Raises:
        RangeError: `l2` is not above zero.
        ConvergenceError: A problem did not reach `tolerance`.

    Example:
        >>> x = torch.tensor([[[0.0], [1.0]]], dtype=torch.float64)
        >>> newton_logistic(x, torch.tensor([[False, True]]), torch.ones(1, 2).double(), l2=1e-3).sign()
        tensor([[ 1., -1.]], dtype=torch.float64)
    """
    check_ranges(newton_logistic, locals())
    problems, _, features = x.shape
    x_prg = torch.cat([x, torch.ones_like(x[:, :, :1])], dim=2)
    sign_pr = y.double() * 2 - 1
    weight_pr = row_weight.double()
    penalty_g = torch.full((features + 1,), l2, dtype=torch.float64, device=x.device)
    penalty_g[-1] = 0.0
    result = torch.zeros(problems, features + 1, dtype=torch.float64, device=x.device)
    theta_pg = result.clone() if start is None else start.double().clone()
    active = torch.arange(problems, device=x.device)
    loss_p: Tensor | None = None
    for _ in range(max_iterations):
        margin_pr = sign_pr * torch.bmm(x_prg, theta_pg[:, :, None]).squeeze(2)
        wrong_pr = torch.sigmoid(-margin_pr)
        pull_pr = weight_pr * sign_pr * wrong_pr
        gradient_pg = penalty_g * theta_pg - torch.bmm(pull_pr[:, None, :], x_prg).squeeze(1)
        curvature_pr = weight_pr * wrong_pr * (1 - wrong_pr)
        hessian_pgg = torch.bmm((x_prg * curvature_pr[:, :, None]).transpose(1, 2), x_prg)
        # The ridge keeps the unpenalised intercept's row invertible where every row is already certain.
        ridge_p = 1e-12 * weight_pr.sum(dim=1).clamp(min=1.0)
        hessian_pgg.diagonal(dim1=1, dim2=2).add_(penalty_g + ridge_p[:, None])
        factor_pgg, _ = torch.linalg.cholesky_ex(hessian_pgg)
        step_pg = -torch.cholesky_solve(gradient_pg[:, :, None], factor_pgg).squeeze(2)
        slope_p = (gradient_pg * step_pg).sum(dim=1)
        theta_pg, loss_p = _line_search(
            theta_pg, step_pg, slope_p, margin_pr, sign_pr, x_prg, weight_pr, penalty_g, loss_p
        )
        done = slope_p.abs().sqrt() <= tolerance
        if bool(done.any()):
            result[active[done]] = theta_pg[done]
            keep = ~done
            if not bool(keep.any()):
                return result
            active, theta_pg, loss_p = active[keep], theta_pg[keep], loss_p[keep]
            x_prg, sign_pr, weight_pr = x_prg[keep], sign_pr[keep], weight_pr[keep]
    raise ConvergenceError(
        "max_iterations",
        max_iterations,
        expected=f"enough Newton steps for problems {active.tolist()[:10]}",
        remedy="Allow more iterations, or scale the features towards one.",
    )


def _line_search(
    theta_pg: Tensor,
    step_pg: Tensor,
    slope_p: Tensor,
    margin_pr: Tensor,
    sign_pr: Tensor,
    x_prg: Tensor,
    weight_pr: Tensor,
    penalty_g: Tensor,
    before_p: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Halve each problem's Newton step until the loss falls enough (Armijo's rule); gives the loss there, too."""
    change_pr = sign_pr * torch.bmm(x_prg, step_pg[:, :, None]).squeeze(2)

    def objective(length_p: Tensor) -> Tensor:
        moved_pg = theta_pg + length_p[:, None] * step_pg
        loss_p = (weight_pr * softplus(-(margin_pr + length_p[:, None] * change_pr))).sum(dim=1)
        return loss_p + 0.5 * (penalty_g * moved_pg.square()).sum(dim=1)

    if before_p is None:
        before_p = objective(torch.zeros_like(slope_p))
    length_p, loss_p = halved_steps(objective, slope_p, before_p)
    return theta_pg + length_p[:, None] * step_pg, loss_p
