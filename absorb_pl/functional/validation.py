"""Checks on tensors that come from outside: finite values, matching rows, both sides of a label present."""

from collections.abc import Sequence

import torch
from torch import Tensor

from absorb_pl.errors import LabelError, NonFiniteError, ShapeError


def require_finite(**tensors: Tensor) -> None:
    """Refuse tensors with NaN or infinite values.

    Args:
        tensors: Tensors of any shape, by the name to be told in the error.

    Raises:
        NonFiniteError: One of them holds NaN or ±inf.

    Example:
        >>> require_finite(x=torch.ones(3))
    """
    for name, tensor in tensors.items():
        finite = torch.isfinite(tensor)
        if not bool(finite.all()):
            bad = int((~finite).sum())
            raise NonFiniteError(
                name,
                f"{bad} of {tensor.numel()} values",
                expected="finite values",
                remedy="Look for overflow in half precision or for a failed run upstream.",
            )


def require_latents(name: str, latents: Sequence[int], num_latents: int) -> None:
    """Refuse latent ids outside `[0, num_latents)` and repeated ones.

    Args:
        name: Name of the argument, for the error.
        latents: Latent ids.
        num_latents: Width of the dictionary.

    Raises:
        ShapeError: An id is out of range or stands twice.

    Example:
        >>> require_latents("main_latents", [3, 1], 4)
    """
    if len(set(latents)) != len(latents) or any(not 0 <= latent < num_latents for latent in latents):
        raise ShapeError(
            name,
            list(latents),
            expected=f"distinct latent ids from 0 to {num_latents - 1}",
            remedy="Take the ids from the same SAE as the activations.",
        )


def require_two_sided(name: str, positives: Tensor, rows: int, names: Sequence[str] | None = None) -> None:
    """Refuse label columns that are all true or all false.

    Args:
        name: Name of the argument, for the error.
        positives: Number of positive rows of each column.
        rows: Number of rows.
        names: Names of the columns, for the error.

    Raises:
        LabelError: A column has no positive or no negative row.

    Example:
        >>> require_two_sided("y", torch.tensor([1, 2]), rows=3)
    """
    one_sided = ((positives == 0) | (positives == rows)).nonzero().flatten().tolist()
    if one_sided:
        raise LabelError(
            name,
            [names[i] if names else i for i in one_sided],
            expected="labels with at least one positive and one negative row each",
            remedy="Leave these classes out, or add rows of the missing side.",
        )
