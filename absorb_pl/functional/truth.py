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
