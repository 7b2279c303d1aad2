"""Worlds in which SAEs are trained: features with finer features below them, by `sae_lens.synthetic`, and their truth.

Source: the hierarchies of SynthSAEBench (arXiv 2602.14687).
"""

from dataclasses import asdict, dataclass
from typing import Annotated, Literal

import pandas as pd
import torch
from jaxtyping import Float
from sae_lens.synthetic import ActivationGenerator, FeatureDictionary, HierarchyNode, hierarchy_modifier
from torch import Tensor

from absorb_pl.errors import ShapeError
from absorb_pl.functional.carried import aligned_latents
from absorb_pl.functional.similarity import cosine_similarity_matrix
from absorb_pl.functional.truth import edge_gap, true_absorption
from absorb_pl.ranges import Count, CountOrZero, Fraction, Range, Seed, check_ranges
from absorb_pl.saes.interface import SparseAutoencoder
from absorb_pl.saes.rows import encode_rows

HierarchyName = Literal["frequent-children", "rare-children", "superposition"]
"""The worlds that SAEs have been trained in."""

_MOST_SAMPLES = 200_000
"""Samples among which those with a parent are looked for."""
_NEAREST = 10
"""Latents nearest to a feature among which the one that tracks it is looked for."""


@dataclass(frozen=True)
class HierarchySettings:
    """What a world of features with finer features is like.

    Attributes:
        parents: Number of features that have finer ones; a sample has one of them.
        children: Finer features of each.
        child_probability: Probability that one of them is there, their parent being there; at most one is.
        parent_probability: Probability of each parent.
        unrelated: Number of other features.
        unrelated_probability: Probability of each.
        d_model: Width of the activations; directions are orthogonal if there is room.
        seed: Seed of the directions.
    """

    parents: Annotated[int, Range(2, 26)] = 12
    children: Count = 6
    child_probability: Fraction = 0.6
    parent_probability: Fraction = 0.08
    unrelated: CountOrZero = 60
    unrelated_probability: Fraction = 0.03
    d_model: Count = 192
    seed: Seed = 0

    def __post_init__(self) -> None:
        check_ranges(HierarchySettings, vars(self))

    @property
    def features(self) -> int:
        """Number of all features: parents, their children in order, and unrelated ones."""
        return self.parents * (1 + self.children) + self.unrelated


HIERARCHIES: dict[HierarchyName, HierarchySettings] = {
    "frequent-children": HierarchySettings(),
    "rare-children": HierarchySettings(children=12, child_probability=0.3),
    "superposition": HierarchySettings(d_model=64),
}
"""The worlds by name: finer features that are often there, many that seldom are, more features than dimensions."""


class HierarchyWorld:
    """A source of samples of which it is known what features they have.

    Args:
        settings: What the world is like.

    Example:
        >>> world = HierarchyWorld(HierarchySettings(parents=3, children=2, unrelated=4, d_model=16))
        >>> sizes, activations = world.sample(100, seed=1)
        >>> sizes.shape, activations.shape, bool(((sizes[:, :3] > 0).sum(dim=1) <= 1).all())
        (torch.Size([100, 13]), torch.Size([100, 16]), True)
    """

    def __init__(self, settings: HierarchySettings | None = None) -> None:
        self.settings = settings = settings or HierarchySettings()
        families = [
            HierarchyNode(
                parent,
                [HierarchyNode(child) for child in self.children_of(parent)],
                mutually_exclusive_children=settings.children > 1,
            )
            for parent in range(settings.parents)
        ]
        probabilities = torch.full((settings.features,), settings.unrelated_probability)
        probabilities[: settings.parents] = settings.parent_probability
        inner = slice(settings.parents, settings.parents * (1 + settings.children))
        probabilities[inner] = settings.child_probability / settings.children
        with torch.random.fork_rng():
            torch.manual_seed(settings.seed)
            self.dictionary = FeatureDictionary(settings.features, settings.d_model, seed=settings.seed)
        self.dictionary.requires_grad_(False)
        self.generator = ActivationGenerator(
            settings.features,
            probabilities,
            std_firing_magnitudes=0.1,
            modify_activations=hierarchy_modifier([HierarchyNode(None, families, mutually_exclusive_children=True)]),
        )

    @property
    def directions(self) -> Float[Tensor, "features d_model"]:
        """Unit direction of each feature."""
        return self.dictionary.feature_vectors.detach()

    def children_of(self, parent: int) -> range:
        """Numbers of a parent's finer features."""
        first = self.settings.parents + parent * self.settings.children
        return range(first, first + self.settings.children)

    @torch.no_grad()
    def sample(
        self, samples: Count, seed: Seed
    ) -> tuple[Float[Tensor, "rows features"], Float[Tensor, "rows d_model"]]:
        """Draw samples.

        Args:
            samples: How many.
            seed: Seed of the draw.

        Returns:
            Sizes of the features, and activations.
        """
        check_ranges(HierarchyWorld.sample, locals())
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            sizes = self.generator.sample(samples)
        return sizes, self.dictionary(sizes)

    def labelled(
        self, rows_per_parent: Count, seed: Seed
    ) -> tuple[Float[Tensor, "rows features"], Float[Tensor, "rows d_model"], list[str]]:
        """Draw samples that have a parent, as many of each, with the parent's letter as their label.

        Args:
            rows_per_parent: How many samples of each parent.
            seed: Seed of the draw.

        Returns:
            Sizes of the features, activations, and labels, in order of the parents.

        Raises:
            ShapeError: Parents are too rare to find that many.
        """
        check_ranges(HierarchyWorld.labelled, locals())
        wanted = rows_per_parent
        tries = min(_MOST_SAMPLES, int(4 * wanted / max(self.settings.parent_probability, 1e-6)) + 1_000)
        sizes, activations = self.sample(tries, seed)
        kept = [(sizes[:, parent] > 0).nonzero().squeeze(1)[:wanted] for parent in range(self.settings.parents)]
        if min(map(len, kept)) < wanted:
            raise ShapeError(
                "parent_probability",
                self.settings.parent_probability,
                expected=f"parents often enough to find {wanted} samples of each among {tries}",
                remedy="Ask for fewer samples, or for more frequent parents.",
            )
        rows = torch.cat(kept)
        letters = [chr(ord("a") + parent) for parent, own in enumerate(kept) for _ in own]
        return sizes[rows], activations[rows], letters


@torch.no_grad()
def hierarchy_truth(
    world: HierarchyWorld,
    sae: SparseAutoencoder,
    sizes: Float[Tensor, "rows features"],
    activations: Float[Tensor, "rows d_model"],
    *,
    min_alignment: Fraction = 0.95,
) -> pd.DataFrame:
    """What is true of every sample that has a parent, for a trained SAE.

    The latent that tracks a parent is, of the ten whose decoder rows are nearest to its direction, the one whose
    activation goes best with its size (the largest correlation, over samples with and without it). Latents whose
    decoder rows point as that one's does are a split of the parent. Any other latent belongs to the feature, parents
    aside, that its decoder row is nearest to; it carries a parent if that feature is one of the parent's and is there.

    Args:
        world: The world.
        sae: The SAE.
        sizes: Sizes of the features.
        activations: The activations.
        min_alignment: Least cosine of decoder rows that are a split.

    Returns:
        One row per sample with a parent: `row, label, is_absorbed, share, tracking_latent`, see `true_absorption`.
    """
    check_ranges(hierarchy_truth, locals())
    latents = encode_rows(sae, activations)
    decoder = sae.W_dec.detach().float()
    cosines = cosine_similarity_matrix(world.directions, decoder)
    parents = world.settings.parents
    nearest = cosines[parents:].argmax(dim=0) + parents
    found = []
    for parent in range(parents):
        rows = (sizes[:, parent] > 0).nonzero().squeeze(1)
        if not len(rows):
            continue
        tracking = _tracking(cosines[parent], latents, sizes[:, parent])
        own = aligned_latents(decoder, tracking, min_alignment)
        is_child = torch.zeros(world.settings.features, dtype=torch.bool)
        is_child[list(world.children_of(parent))] = True
        carriers = is_child[nearest] & (sizes[rows][:, nearest] > 0)
        truth = true_absorption(latents[rows], decoder, world.directions[parent], sizes[rows, parent], own, carriers)
        found.append(
            pd.DataFrame(
                {
                    "row": rows.tolist(),
                    "label": chr(ord("a") + parent),
                    "is_absorbed": truth.is_absorbed.tolist(),
                    "share": truth.share.tolist(),
                    "tracking_latent": tracking,
                }
            )
        )
    return pd.concat(found, ignore_index=True).sort_values("row", ignore_index=True)


@torch.no_grad()
def hierarchy_edges(
    world: HierarchyWorld,
    sae: SparseAutoencoder,
    sizes: Float[Tensor, "rows features"],
    activations: Float[Tensor, "rows d_model"],
) -> pd.DataFrame:
    """How much less each parent's tracking latent fires where a finer feature is there (`functional.truth.edge_gap`).

    Args:
        world: The world.
        sae: The SAE.
        sizes: Sizes of the features.
        activations: The activations.

    Returns:
        One row per parent and finer feature, with the columns of `absorb_pl.schema.EDGES` but for the SAE's name.
    """
    latents = encode_rows(sae, activations)
    cosines = cosine_similarity_matrix(world.directions[: world.settings.parents], sae.W_dec.detach().float())
    found = []
    for parent in range(world.settings.parents):
        there = sizes[:, parent] > 0
        tracking = _tracking(cosines[parent], latents, sizes[:, parent])
        for child in world.children_of(parent):
            edge = edge_gap(latents[:, tracking] != 0, there, sizes[:, child] > 0)
            found.append(
                {
                    "label": chr(ord("a") + parent),
                    "child": child,
                    "tracking_latent": tracking,
                    **asdict(edge),
                    "eligible": edge.eligible,
                    "gap": edge.gap,
                }
            )
    return pd.DataFrame(found)


def _tracking(cosines: Tensor, latents: Tensor, sizes: Tensor) -> int:
    near = cosines.topk(min(_NEAREST, len(cosines))).indices
    correlations = torch.corrcoef(torch.stack([sizes, *latents[:, near].T]).double())[0, 1:]
    return int(near[correlations.nan_to_num().argmax()])  # missing where a latent is the same on all samples
