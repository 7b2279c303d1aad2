"""Planted absorption on a language model's own residual stream, for rules that ask the model."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from absorb_pl.errors import ShapeError
from absorb_pl.functional.similarity import unit_rows
from absorb_pl.ranges import Fraction, Seed, check_ranges


@dataclass
class StreamSae:
    """An SAE of known words: a latent per class along the linear probe, and one per word with the rest of it.

    A word's latents are found by its activation, so that nothing but the words it was made for fires them. Where a word
    is absorbed its class's latent is silent and the word's own latent writes the whole activation, the class's part
    with it; reconstructions are exact either way.

    Attributes:
        W_dec: Unit decoder rows, classes first, then words.
        hook_name: Hook that it reads.
        activations: The words' activations.
        latents: Latents of each word.
        is_absorbed: Which words are absorbed.
    """

    W_dec: Float[Tensor, "latents d_model"]
    hook_name: str
    activations: Float[Tensor, "words d_model"]
    latents: Float[Tensor, "words latents"]
    is_absorbed: Bool[Tensor, " words"]

    def encode(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... latents"]:
        """Latents of the word whose activation is nearest, or none if none is near."""
        rows = x.reshape(-1, x.shape[-1])
        distance, nearest = torch.cdist(rows, self.activations).min(dim=1)
        near = distance < _NEAR * rows.norm(dim=1)
        found = torch.where(near[:, None], self.latents[nearest], 0.0)
        return found.reshape(*x.shape[:-1], self.latents.shape[1])

    def decode(self, latents: Float[Tensor, "... latents"]) -> Float[Tensor, "... d_model"]:
        """Sum of the latents' decoder rows."""
        return latents @ self.W_dec


_NEAR = 1e-2
"""Distance, in sizes of an activation, up to which it is taken for the word's own."""


def planted_on_stream(
    activations: Float[Tensor, "words d_model"],
    classes: Int[Tensor, " words"],
    probe_weight: Float[Tensor, "classes d_model"],
    hook_name: str,
    rate: Fraction = 0.3,
    seed: Seed = 0,
) -> StreamSae:
    """Make an SAE of a model's words that absorbs a share of each class.

    Args:
        activations: Residual activations at the words.
        classes: Class of each word.
        probe_weight: Weights of the linear probe of each class.
        hook_name: Hook of the activations.
        rate: Share of each class's words that are absorbed; words without their class's direction cannot be.
        seed: Seed that draws them.

    Raises:
        ShapeError: Two words have the same activation.

    Example:
        >>> x = torch.tensor([[2.0, 1.0], [3.0, -1.0], [-1.0, 2.0], [-2.0, 0.5]])
        >>> sae = planted_on_stream(x, torch.tensor([0, 0, 1, 1]), torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), "hook", 0.5)
        >>> torch.allclose(sae.decode(sae.encode(x)), x), int(sae.is_absorbed.sum())
        (True, 2)
    """
    check_ranges(planted_on_stream, locals())
    if len(activations.unique(dim=0)) < len(activations):
        raise ShapeError(
            "activations",
            f"{len(activations)} rows, {len(activations.unique(dim=0))} distinct ones",
            expected="a distinct activation for each word",
            remedy="Leave out words that stand twice.",
        )
    units = unit_rows(probe_weight)
    draw = torch.Generator().manual_seed(seed)
    absorbed = torch.zeros(len(classes), dtype=torch.bool)
    for c in range(len(units)):
        own = (classes == c).nonzero().squeeze(1)
        absorbed[own[torch.randperm(len(own), generator=draw)[: round(rate * len(own))]]] = True
    size = (activations * units[classes]).sum(dim=1)
    absorbed &= size > 0  # what is not there cannot be absorbed
    of_class = torch.where(absorbed | (size <= 0), 0.0, size)
    rest = activations - of_class[:, None] * units[classes]
    words = torch.arange(len(classes))
    latents = torch.zeros(len(classes), len(units) + len(classes))
    latents[words, classes] = of_class
    latents[words, len(units) + words] = rest.norm(dim=1)
    return StreamSae(torch.cat([units, unit_rows(rest)]), hook_name, activations, latents, absorbed)
