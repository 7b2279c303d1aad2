"""The optimum of the linear probes' regularised loss, all classes at once.

Shapes: r rows, c classes, d features (with the intercept's constant 1 as the last).
"""

from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Num
from torch import Tensor
from torch.nn.functional import softplus

from absorb_pl.errors import ConvergenceError
from absorb_pl.functional.line_search import halved_steps
from absorb_pl.functional.validation import require_finite, require_two_sided
from absorb_pl.ranges import Count, Positive, check_ranges

_LOOSEST = 0.05
"""How far from their solution the equations of a Newton step may stay, as a share of where they begin."""


@torch.no_grad()
def minimise_probe_loss(
    x: Float[Tensor, "rows features"],
    y: Num[Tensor, "rows classes"] | Bool[Tensor, "rows classes"],
    pos_weight: Float[Tensor, " classes"],
    *,
    weight_decay: Positive = 1e-4,
    tolerance: Positive = 1e-6,
    max_iterations: Count = 200,
) -> tuple[Float[Tensor, "classes features"], Float[Tensor, " classes"]]:
    """Minimise `probe_loss + weight_decay/2 · (‖W‖² + ‖b‖²)` to its one optimum.

    This is what Adam minimises in the published `train_multi_probe`: its `weight_decay` adds `weight_decay ·
    θ` to the gradient of weights and biases. The objective is strictly convex, so the result depends neither
    on a start nor on the order of rows. Solved by Newton's method with a line search, in float64; the equations of its
    steps by conjugate gradients, for all classes together, with the mean of their Hessians as preconditioner (Nocedal
    and Wright, Numerical Optimization, 2006, chapters 5 and 7).

    Args:
        x: Features.
        y: Labels, 0 or 1; every class with both.
        pos_weight: Weight of positive rows, see `positive_weights`.
        weight_decay: Strength of the penalty, above zero.
        tolerance: Largest Newton decrement `√(gᵀH⁻¹g)` of a class before the last step, whose square is about twice
            what the loss is above the optimum; the step takes it below a twentieth of that.
        max_iterations: Newton steps after which to give up.

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
        >>> bool(gradient.abs() < 1e-9), bool(bias.abs() < 1e-9)
        (True, True)
    """
    check_ranges(minimise_probe_loss, locals())
    require_finite(x=x)
    require_two_sided("y", y.sum(dim=0), len(y))
    problem = _Problem.of(x, y, pos_weight, weight_decay)
    theta_cd = torch.zeros(y.shape[1], problem.x_rd.shape[1], dtype=torch.float64, device=x.device)
    logits_rc = torch.zeros(y.shape, dtype=torch.float64, device=x.device)
    loss_c = problem.loss(logits_rc, theta_cd)
    factor_dd, steps_with_it, largest = None, 0, float("inf")
    for _ in range(max_iterations):
        gradient_cd, curvature_rc = problem.derivatives(logits_rc, theta_cd)
        # A new preconditioner takes as long as so many steps with the old one.
        if factor_dd is None or steps_with_it > theta_cd.shape[1] / (2 * len(theta_cd)):
            factor_dd = torch.linalg.cholesky(problem.mean_hessian(curvature_rc))
        accuracy = min(_LOOSEST, largest**0.5)
        step_cd, change_rc, steps_with_it = _newton_step(problem, gradient_cd, curvature_rc, factor_dd, accuracy)
        slope_c = (gradient_cd * step_cd).sum(dim=1)
        along = partial(problem.loss_along, logits_rc, theta_cd, change_rc, step_cd)
        length_c, loss_c = halved_steps(along, slope_c, loss_c)
        theta_cd = theta_cd + length_c[:, None] * step_cd
        logits_rc = logits_rc + change_rc * length_c
        largest = float(slope_c.abs().max().sqrt())
        if largest <= tolerance:
            return theta_cd[:, :-1], theta_cd[:, -1]
    raise ConvergenceError(
        "max_iterations",
        max_iterations,
        expected=f"enough for a Newton decrement of {tolerance:g} (it is {largest:.1e})",
        remedy="Allow more iterations, or use a larger `weight_decay`.",
    )


class _Problem(NamedTuple):
    """The loss of each class: `Σᵣ mass · log(1 + eᶻ) − pull · z + weight_decay/2 · ‖θ‖²`."""

    x_rd: Tensor
    mass_rc: Tensor
    pull_rc: Tensor
    weight_decay: float

    @classmethod
    def of(cls, x: Tensor, y: Tensor, pos_weight: Tensor, weight_decay: float) -> "_Problem":
        pull_rc = y.double() * pos_weight.double() / y.numel()
        mass_rc = pull_rc + (1 - y.double()) / y.numel()
        return cls(torch.cat([x, torch.ones_like(x[:, :1])], dim=1).double(), mass_rc, pull_rc, weight_decay)

    def loss(self, logits_rc: Tensor, theta_cd: Tensor) -> Tensor:
        of_rows = (self.mass_rc * softplus(logits_rc) - self.pull_rc * logits_rc).sum(dim=0)
        return of_rows + 0.5 * self.weight_decay * theta_cd.square().sum(dim=1)

    def loss_along(
        self, logits_rc: Tensor, theta_cd: Tensor, change_rc: Tensor, step_cd: Tensor, length_c: Tensor
    ) -> Tensor:
        """The loss at so much of each class's step."""
        return self.loss(logits_rc + change_rc * length_c, theta_cd + length_c[:, None] * step_cd)

    def derivatives(self, logits_rc: Tensor, theta_cd: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient, and second derivative by each logit."""
        share_rc = torch.sigmoid(logits_rc)
        gradient_cd = (self.mass_rc * share_rc - self.pull_rc).T @ self.x_rd + self.weight_decay * theta_cd
        return gradient_cd, self.mass_rc * share_rc * (1 - share_rc)

    def mean_hessian(self, curvature_rc: Tensor) -> Tensor:
        """Mean over classes of the second derivative."""
        hessian_dd = (self.x_rd * curvature_rc.mean(dim=1, keepdim=True)).T @ self.x_rd
        hessian_dd.diagonal().add_(self.weight_decay)
        return hessian_dd


def _newton_step(
    problem: _Problem, gradient_cd: Tensor, curvature_rc: Tensor, factor_dd: Tensor, accuracy: float
) -> tuple[Tensor, Tensor, int]:
    """Solve for each class's Newton step; gives how it changes the logits, and how many steps it took, too."""
    step_cd, change_rc, taken = torch.zeros_like(gradient_cd), torch.zeros_like(curvature_rc), 0
    residual_cd = -gradient_cd
    near_cd = torch.cholesky_solve(residual_cd.T, factor_dd).T
    along_cd, size_c = near_cd, (residual_cd * near_cd).sum(dim=1)
    enough_c = accuracy**2 * size_c
    while taken < gradient_cd.shape[1] and bool((size_c > enough_c).any()):
        taken += 1
        logits_rc = problem.x_rd @ along_cd.T
        product_cd = (curvature_rc * logits_rc).T @ problem.x_rd + problem.weight_decay * along_cd
        bend_c = (along_cd * product_cd).sum(dim=1)
        length_c = torch.where(bend_c > 0, size_c / bend_c, 0.0)  # 0 where the residual has come to be 0
        step_cd = step_cd + length_c[:, None] * along_cd
        change_rc = change_rc + logits_rc * length_c
        residual_cd = residual_cd - length_c[:, None] * product_cd
        near_cd = torch.cholesky_solve(residual_cd.T, factor_dd).T
        before_c, size_c = size_c, (residual_cd * near_cd).sum(dim=1)
        along_cd = near_cd + torch.where(before_c > 0, size_c / before_c, 0.0)[:, None] * along_cd
    return step_cd, change_rc, taken
