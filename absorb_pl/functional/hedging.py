"""Hedging: how much latents of a narrow SAE mix in of features that have no latent of their own.

Source: arXiv 2505.11756. An SAE is trained on, once as it is (the control) and once with new latents (extended). What
the old latents had mixed in of the new latents' features they can now leave to them, so their decoder rows move within
the space that the new rows span.
"""

from math import exp, lgamma
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from absorb_pl.errors import ShapeError
from absorb_pl.functional.similarity import unit_rows


class Hedging(NamedTuple):
    """What extending an SAE shows.

    Attributes:
        moved: Mean length of the part of old latents' movement that lies in the new latents' space; rows have unit
            norm.
        by_chance: What a space of random directions would hold of the same movements, on average.
        degree: `(moved − by_chance) / (1 − by_chance)`, 0 where that is negative: 0 is no hedging.
    """

    moved: float
    by_chance: float
    degree: float


def hedging_degree(control: Float[Tensor, "latents d_model"], extended: Float[Tensor, "all_latents width"]) -> Hedging:
    """How much an SAE had hedged, from its decoder after training on without and with new latents.

    Args:
        control: Decoder rows after training on without new latents.
        extended: Decoder rows after training on with them; the old latents come first.

    Returns:
        Movement, what chance would make of it, and the degree. The published code draws random spaces; here their mean
        is exact: the part of a vector in a random r-dimensional space of d dimensions has on average the length
        `Γ((r+1)/2) Γ(d/2) / (Γ(r/2) Γ((d+1)/2))` of the vector's.

    Raises:
        ShapeError: There are no new latents, or the widths differ.

    Example:
        >>> feature, other = torch.eye(3)[:1], torch.eye(3)[1:2]
        >>> hedging_degree(feature, torch.cat([feature, other])).degree
        0.0
        >>> mixed = feature + 0.75 * other
        >>> round(hedging_degree(mixed, torch.cat([feature, other])).moved, 3)
        0.6
    """
    old, width = control.shape
    if len(extended) <= old or extended.shape[1] != width:
        raise ShapeError(
            "extended",
            tuple(extended.shape),
            expected=f"more than {old} rows of {width} values",
            remedy="Give the decoder of the same SAE with new latents after the old ones.",
        )
    rows = unit_rows(extended.double())
    moved = rows[:old] - unit_rows(control.double())
    _, sizes, basis = torch.linalg.svd(rows[old:], full_matrices=False)
    basis = basis[sizes > sizes[0] * max(rows[old:].shape) * torch.finfo(torch.float64).eps]
    inside = float((moved @ basis.T).norm(dim=1).mean())
    by_chance = float(moved.norm(dim=1).mean()) * _mean_projection(len(basis), width)
    return Hedging(inside, by_chance, max(0.0, (inside - by_chance) / (1 - by_chance)))


def _mean_projection(rank: int, width: int) -> float:
    """Mean length of a unit vector's part in a random space."""
    if rank >= width:
        return 1.0
    return exp(lgamma((rank + 1) / 2) + lgamma(width / 2) - lgamma(rank / 2) - lgamma((width + 1) / 2))
