"""How far to go along Newton steps of many problems at once."""

from collections.abc import Callable

import torch
from torch import Tensor

_ARMIJO = 1e-4
_MAX_HALVINGS = 40


def halved_steps(objective: Callable[[Tensor], Tensor], slope_p: Tensor, before_p: Tensor) -> tuple[Tensor, Tensor]:
    """Halve each problem's step until its loss falls enough (Armijo's rule).

    Args:
        objective: Each problem's loss at so much of its step.
        slope_p: Derivative of each loss along its step.
        before_p: Each loss before the step.

    Returns:
        How much of each step to take, and the losses there.

    Example:
        >>> length, loss = halved_steps(lambda part: (1 - 4 * part).square(), torch.tensor([-8.0]), torch.ones(1))
        >>> length, loss
        (tensor([0.2500]), tensor([0.]))
    """
    length_p = torch.ones_like(slope_p)
    # Close to the optimum the fall is below rounding; the allowance lets full Newton steps finish the job.
    allowed_p = before_p + 1e-13 * (1 + before_p.abs())
    loss_p = objective(length_p)
    for _ in range(_MAX_HALVINGS):
        short = loss_p > allowed_p + _ARMIJO * length_p * slope_p
        if not bool(short.any()):
            break
        length_p = torch.where(short, length_p / 2, length_p)
        loss_p = objective(length_p)
    return length_p, loss_p
