"""Cosine similarities between directions."""

import torch
from jaxtyping import Float
from torch import Tensor

from absorb_pl.functional.validation import require_finite

_PART_VALUES = 2**26


def unit_rows(x: Float[Tensor, "rows width"]) -> Float[Tensor, "rows width"]:
    """Scale each row to length one; a row of zeros stays zero.

    Args:
        x: Directions.

    Returns:
        Unit rows, in float32 or better.

    Example:
        >>> unit_rows(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        tensor([[0.6000, 0.8000],
                [0.0000, 0.0000]])
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    # Scaling by the largest entry first keeps the squares of very small or large rows in range.
    largest = x.abs().amax(dim=1, keepdim=True)
    x = x / torch.where(largest > 0, largest, 1)
    norm = x.norm(dim=1, keepdim=True)
    return x / torch.where(norm > 0, norm, 1)


def cosine_similarity_matrix(a: Float[Tensor, "n width"], b: Float[Tensor, "m width"]) -> Float[Tensor, "n m"]:
    """Cosine of every row of `a` with every row of `b`.

    Rows of `b` are taken some 2²⁶ values at a time, so that a wide SAE's weights are not copied whole.

    Args:
        a: Directions.
        b: Directions of the same width.

    Returns:
        Cosines in float32 or better; 0 if a row is all zeros (a dead latent, a class left out).

    Raises:
        NonFiniteError: A direction holds NaN or infinite values.

    Example:
        >>> cosine_similarity_matrix(torch.eye(2), torch.tensor([[2.0, 0.0], [0.0, 0.0]]))
        tensor([[1., 0.],
                [0., 0.]])
    """
    require_finite(a=a)
    a = unit_rows(a)
    return torch.cat([_cosines(a, part) for part in b.split(max(1, _PART_VALUES // max(1, b.shape[1])))], dim=1)


def _cosines(unit_a: Tensor, b: Tensor) -> Tensor:
    require_finite(b=b)
    b = unit_rows(b)
    dtype = torch.promote_types(unit_a.dtype, b.dtype)
    return unit_a.to(dtype) @ b.to(dtype).T
