"""SAEs that absorb, split and hedge as much as they are told to, made for a world of which everything is known."""

from dataclasses import dataclass, field, replace
from typing import Annotated

import pandas as pd
import torch
from jaxtyping import Bool
from sae_lens import JumpReLUSAE, JumpReLUSAEConfig
from torch import Tensor

from absorb_pl.functional.truth import true_absorption
from absorb_pl.ranges import Fraction, NotNegative, Range, Seed, check_ranges
from absorb_pl.saes.rows import encode_rows
from absorb_pl.truth.world import World

_THRESHOLD = 0.05
"""Size below which a latent is silent: far above the noise of a world, far below any feature."""
_THRESHOLD_IN_SUPERPOSITION = 0.4
"""The same where other features are read along with a latent's own."""
_PART = 0.25
"""Size of the direction that tells the parts of a split from each other, in sizes of the parent."""


@dataclass(frozen=True)
class PlantedAbsorption:
    """What an SAE does to the parent features.

    Attributes:
        rate: Share of each class's words whose parent is absorbed by the latents of the word's child.
        still_fires: Share of its size at which the parent's own latent still fires there; the child's latents carry the
            rest. 0 is full absorption.
        split: Share of each class's words whose parent has a second latent of its own; they are no absorption.
        hedging: How much of the mean direction of a class's children its parent's latent writes.
        shrinkage: Part of its size that every latent loses.
        seed: Seed that draws the words.
    """

    rate: Fraction = 0.3
    still_fires: Annotated[float | int, Range(0, 1, below=True)] = 0.0
    split: Fraction = 0.0
    hedging: NotNegative = 0.0
    shrinkage: Annotated[float | int, Range(0, 1, below=True)] = 0.0
    seed: Seed = 0

    def __post_init__(self) -> None:
        check_ranges(PlantedAbsorption, vars(self))


@dataclass(frozen=True)
class PlantedSae:
    """An SAE and what is true of it.

    Attributes:
        sae: The SAE.
        planted: The words whose parent the SAE gives to the child's latents.
        own_latents: The latents of each class's parent: one, and with a split two.
        truth: One row per word: `row, label, is_absorbed, share`, from `true_absorption` on what the SAE really does.
    """

    sae: JumpReLUSAE
    planted: Bool[Tensor, " words"]
    own_latents: list[list[int]]
    truth: pd.DataFrame = field(repr=False)


def planted_sae(world: World, absorption: PlantedAbsorption | None = None) -> tuple[World, PlantedSae]:
    """Make an SAE that absorbs as it is told.

    It has a latent for every feature. A parent's latent is kept silent through the encoder where its child absorbs: the
    encoder column subtracts as much as the child's size foretells, and the child's decoder row carries that much of the
    parent's direction. A split needs words that differ, so it adds a direction to the world that tells the parts apart.

    Args:
        world: The world.
        absorption: What the SAE does.

    Returns:
        The world, which differs from the given one only if there is a split, and the SAE.

    Example:
        >>> from absorb_pl.truth import WorldSettings, make_world
        >>> world = make_world(WorldSettings(classes=3, words_per_class=20, unrelated=0, unrelated_active=0))
        >>> _, made = planted_sae(world, PlantedAbsorption(rate=0.25))
        >>> made.truth.groupby("label")["is_absorbed"].mean().tolist()
        [0.25, 0.25, 0.25]
    """
    absorption = absorption or PlantedAbsorption()
    draw = torch.Generator().manual_seed(absorption.seed)
    absorbing = _drawn_children(world, absorption.rate, draw)
    in_split = torch.zeros(len(world.labels), dtype=torch.bool)
    if absorption.split:
        in_split = _drawn_words(world, absorption.split, draw, ~absorbing[world.children])
        world = _with_parts(world, in_split, draw)
    planted = absorbing[world.children]
    sae = _sae(world, absorption, absorbing)
    classes = len(world.class_names)
    parts = len(world.directions) - classes
    own = [[c, parts + c] if absorption.split else [c] for c in range(classes)]
    return world, PlantedSae(sae, planted, own, _truth(world, sae, own))


def _drawn_words(world: World, share: float, draw: torch.Generator, among: Tensor) -> Tensor:
    """Some of the words that are allowed, as many as the given share of each class's words."""
    chosen = torch.zeros(len(world.labels), dtype=torch.bool)
    for c in range(len(world.class_names)):
        own = (world.of_class(c) & among).nonzero().squeeze(1)
        count = min(len(own), round(share * int(world.of_class(c).sum())))
        chosen[own[torch.randperm(len(own), generator=draw)[:count]]] = True
    return chosen


def _drawn_children(world: World, share: float, draw: torch.Generator) -> Tensor:
    """Children of each class that have the given share of its words."""
    absorbing = torch.zeros(len(world.children_of), dtype=torch.bool)
    for c in range(len(world.class_names)):
        own = world.children[world.of_class(c)]
        wanted, taken = round(share * len(own)), 0
        names, counts = own.unique(return_counts=True)
        for i in torch.randperm(len(names), generator=draw).tolist():
            if taken + int(counts[i]) <= wanted:
                absorbing[names[i]] = True
                taken += int(counts[i])
    return absorbing


def _with_parts(world: World, in_split: Bool[Tensor, " words"], draw: torch.Generator) -> World:
    """The world with a direction per class on which the words of the second part stand out."""
    classes, width = len(world.class_names), world.directions.shape[1]
    if world.settings.superposition > 1:
        parts = torch.nn.functional.normalize(torch.randn(classes, width, generator=draw, dtype=torch.float64), dim=1)
        old, activations, mean = world.directions, world.activations, world.mean
    else:
        parts = torch.eye(width + classes, dtype=torch.float64)[width:]
        old, activations, mean = (
            torch.nn.functional.pad(each, (0, classes)) for each in (world.directions, world.activations, world.mean)
        )
    number = world.classes
    size = torch.zeros(len(number), classes, dtype=torch.float64)
    rows = in_split.nonzero().squeeze(1)
    size[rows, number[rows]] = _PART * world.sizes[rows, number[rows]]
    return replace(
        world,
        activations=(activations + size @ parts).float(),
        directions=torch.cat([old, parts]),
        sizes=torch.cat([world.sizes, size], dim=1),
        mean=mean,
    )


def _sae(world: World, absorption: PlantedAbsorption, absorbing: Bool[Tensor, " children"]) -> JumpReLUSAE:
    classes = len(world.class_names)
    readers = world.directions  # orthogonal, or as good as it gets
    encoder, decoder = readers.clone(), readers.clone()
    parent_of = torch.zeros(len(world.children_of), dtype=torch.long)
    parent_of[world.children] = world.classes
    parts = world.children_of.shape[1]
    strength = world.settings.child_strength / parts**0.5
    carried = 1 - absorption.still_fires
    for child in absorbing.nonzero().squeeze(1).tolist():
        parent = int(parent_of[child])
        for latent in world.children_of[child].tolist():
            # each of the child's features has the same part of the parent to carry
            encoder[parent] -= carried / (strength * parts) * readers[latent]
            decoder[latent] += carried / (strength * parts) * world.directions[parent]
    for c in range(classes):
        if absorption.hedging:
            finer = world.children_of[parent_of == c].flatten()
            decoder[c] += absorption.hedging * torch.nn.functional.normalize(world.directions[finer].mean(dim=0), dim=0)
        if absorption.split:
            part = len(world.directions) - classes + c
            # The part's direction foretells the parent's whole size, as the second latent writes both.
            encoder[c] -= readers[part] / _PART
            encoder[part] = readers[part] / _PART
            decoder[part] = world.directions[c] + _PART * world.directions[part]
    threshold = torch.full((len(decoder),), _THRESHOLD, dtype=torch.float64)
    if world.settings.superposition > 1:
        threshold[:] = _THRESHOLD_IN_SUPERPOSITION
    elif absorption.split:
        # A part is read four times enlarged, and the noise with it.
        threshold[:classes] = threshold[-classes:] = 3 * _THRESHOLD
    norms = decoder.norm(dim=1)
    features, width = world.directions.shape
    made = JumpReLUSAE(JumpReLUSAEConfig(d_in=width, d_sae=features, apply_b_dec_to_input=True))
    kept = 1 - absorption.shrinkage
    state = {
        "W_enc": (encoder * norms[:, None] * kept).T,
        "b_enc": torch.zeros(features, dtype=torch.float64),
        "threshold": threshold * norms * kept,
        "W_dec": decoder / norms[:, None],
        "b_dec": world.mean,
    }
    made.load_state_dict({name: value.float().contiguous() for name, value in state.items()})
    return made.requires_grad_(False).eval()


@torch.no_grad()
def _truth(world: World, sae: JumpReLUSAE, own: list[list[int]]) -> pd.DataFrame:
    latents = encode_rows(sae, world.activations)
    carriers = torch.zeros(len(latents), latents.shape[1], dtype=torch.bool)
    carriers.scatter_(1, world.children_of[world.children], True)
    absorbed, share = torch.zeros(len(latents), dtype=torch.bool), torch.zeros(len(latents), dtype=torch.float64)
    for c in range(len(world.class_names)):
        words = world.of_class(c)
        found = true_absorption(
            latents[words], sae.W_dec, world.directions[c], world.sizes[words, c], own[c], carriers[words]
        )
        absorbed[words], share[words] = found.is_absorbed, found.share
    return pd.DataFrame(
        {
            "row": range(len(latents)),
            "label": world.labels,
            "is_absorbed": absorbed.tolist(),
            "share": share.tolist(),
        }
    )
