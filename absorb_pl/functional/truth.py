"""What is true of absorption when the feature itself is known: its direction, and its size at every word.

Shapes: w words of one class, l latents, d d_model.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from absorb_pl.errors import ShapeError
from absorb_pl.functional.absorption import SILENT
from absorb_pl.functional.similarity import unit_rows
from absorb_pl.functional.validation import require_finite, require_latents
from absorb_pl.ranges import Fraction, Positive, check_ranges


@dataclass(frozen=True)
class TrueAbsorption:
    """What is true of each word.

    Attributes:
        is_absorbed: The feature's own latents are silent, and others carry at least half of it.
        share: The part of the feature that other latents carry, from 0 to 1.
    """

    is_absorbed: Bool[Tensor, " words"]
    share: Float[Tensor, " words"]


def true_absorption(
    activations: Float[Tensor, "words latents"],
    decoder: Float[Tensor, "latents d_model"],
    direction: Float[Tensor, " d_model"],
    magnitude: Float[Tensor, " words"],
    own_latents: Sequence[int],
    carriers: Bool[Tensor, "words latents"],
    *,
    least_share: Fraction = 0.5,
    silent: Positive = SILENT,
) -> TrueAbsorption:
    """Tell on which words a known feature was absorbed, and how much of it.

    A word is absorbed when the latents that track the feature are silent and the latents of the word's finer features
    carry it: `Σ aⱼ·⟨dⱼ, p⟩` over them is at least half of the feature's own size, `p` being its unit direction. The
    share is that sum over the size, cut to [0, 1]. Several latents that track one feature are a split, and what they
    carry is not absorbed.

    Args:
        activations: Latents at the words, all of which have the feature.
        decoder: Decoder rows, as they are.
        direction: Direction of the feature, of any length.
        magnitude: Its size at each word, in units of the activations; above zero.
        own_latents: The latents that track it.
        carriers: The latents of each word's finer features.
        least_share: Share from which a word counts.
        silent: Summed size of activation below which its own latents count as silent.

    Returns:
        Verdict and share of each word.

    Raises:
        NonFiniteError: Something is NaN or infinite.
        ShapeError: A latent is out of range or stands twice, or a magnitude is not above zero.

    Example:
        >>> activations = torch.tensor([[0.0, 2.0], [2.0, 1.0]])  # the feature's own latent, and a finer one's
        >>> decoder = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
        >>> carriers = torch.tensor([[False, True], [False, True]])
        >>> found = true_absorption(activations, decoder, decoder[0], torch.tensor([1.5, 2.6]), [0], carriers)
        >>> found.is_absorbed.tolist(), [round(share, 2) for share in found.share.tolist()]
        ([True, False], [0.8, 0.23])
    """
    check_ranges(true_absorption, locals())
    require_finite(activations=activations, decoder=decoder, direction=direction, magnitude=magnitude)
    require_latents("own_latents", own_latents, activations.shape[1])
    if bool((magnitude <= 0).any()):
        raise ShapeError(
            "magnitude",
            float(magnitude.min()),
            expected="sizes above zero",
            remedy="Leave out words without the feature.",
        )
    along = decoder.double() @ unit_rows(direction[None].double())[0]
    counted = carriers.clone()
    counted[:, list(own_latents)] = False
    carried = torch.where(counted, activations.double() * along, 0.0).sum(dim=1)
    share = (carried / magnitude.double()).clamp(0.0, 1.0)
    quiet = activations[:, list(own_latents)].double().abs().sum(dim=1) < silent
    return TrueAbsorption(quiet & (share >= least_share), share)


@dataclass(frozen=True)
class EdgeGap:
    """How much less a parent's latent fires where one of its finer features is there as well.

    Source: the signed gap that users of SAELens proposed (its issue 729). It is a diagnostic beside the true rate: a
    gap says that the parent's latent is silent, and not who carries the parent.

    Attributes:
        rows_on: Samples with both features.
        fired_on: Those on which the parent's latent fires.
        rows_off: Samples with the parent alone.
        fired_off: Those on which the parent's latent fires.
    """

    rows_on: int
    fired_on: int
    rows_off: int
    fired_off: int

    @property
    def eligible(self) -> bool:
        """Whether there are samples of both kinds."""
        return self.rows_on > 0 and self.rows_off > 0

    @property
    def gap(self) -> float:
        """Recall without the finer feature less recall with it; NaN, and never 0, where one of them is unknown."""
        return self.fired_off / self.rows_off - self.fired_on / self.rows_on if self.eligible else float("nan")


def edge_gap(
    fires: Bool[Tensor, " samples"], parent: Bool[Tensor, " samples"], child: Bool[Tensor, " samples"]
) -> EdgeGap:
    """Count how often a parent's latent fires with and without one of its finer features.

    Args:
        fires: Where the latent fires.
        parent: Where the parent is there.
        child: Where the finer feature is there.

    Returns:
        The counts, with the gap of the two recalls.

    Example:
        >>> there = torch.ones(4, dtype=torch.bool)
        >>> found = edge_gap(torch.tensor([True, True, False, False]), there, torch.tensor([False, False, True, True]))
        >>> found.gap
        1.0
    """
    on, off = parent & child, parent & ~child
    return EdgeGap(int(on.sum()), int((fires & on).sum()), int(off.sum()), int((fires & off).sum()))
