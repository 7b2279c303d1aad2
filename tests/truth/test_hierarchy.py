"""Worlds in which SAEs are trained, and the truth about hand-made and trained SAEs in them."""

import pytest
import torch
from torch.nn.functional import normalize

from absorb_pl.errors import SaeNotFoundError, ShapeError
from absorb_pl.evaluators import SplitSettings, evaluate_activations
from absorb_pl.saes import load_sae
from absorb_pl.truth.hierarchy import HIERARCHIES, HierarchySettings, HierarchyWorld, hierarchy_edges, hierarchy_truth
from absorb_pl.truth.scoring import score_against_truth
from absorb_pl.truth.trained import list_trained_saes, trained_sae_path

SETTINGS = HierarchySettings(parents=4, children=3, unrelated=10, d_model=32, child_probability=0.5)


class Read:
    """An SAE with a latent per feature; a parent's latent is silent if a child in `absorbing` is there."""

    def __init__(self, world: HierarchyWorld, absorbing: list[int]) -> None:
        self.directions, self.absorbing, self.world = world.directions.clone(), absorbing, world
        rows = self.directions.clone()
        for child in absorbing:
            parent = (child - world.settings.parents) // world.settings.children
            rows[child] = self.directions[child] + self.directions[parent]
        self.norms = rows.norm(dim=1)
        self.W_dec = normalize(rows, dim=1)

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        sizes = (x @ self.directions.T).clamp(min=0)
        sizes[sizes < 0.05] = 0
        for child in self.absorbing:
            parent = (child - self.world.settings.parents) // self.world.settings.children
            sizes[sizes[:, child] > 0, parent] = 0
        return sizes * self.norms

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return latents @ self.W_dec


def test_samples_have_one_parent_at_most_and_children_of_it_alone():
    world = HierarchyWorld(SETTINGS)
    sizes, activations = world.sample(4_000, seed=3)
    assert torch.equal(activations, world.dictionary(sizes))
    there = sizes > 0
    assert int(there[:, :4].sum(dim=1).max()) == 1
    for parent in range(4):
        children = there[:, list(world.children_of(parent))]
        assert not children[~there[:, parent]].any()
        assert int(children.sum(dim=1).max()) == 1
    assert torch.equal(world.sample(50, seed=3)[0], world.sample(50, seed=3)[0])
    assert not torch.equal(world.sample(50, seed=3)[0], world.sample(50, seed=4)[0])


def test_labelled_samples_are_as_many_of_each_parent():
    sizes, activations, labels = HierarchyWorld(SETTINGS).labelled(30, seed=0)
    assert labels == [letter for letter in "abcd" for _ in range(30)]
    assert (sizes[torch.arange(120), torch.arange(120) // 30] > 0).all()
    assert len(activations) == 120
    with pytest.raises(ShapeError, match="parent_probability"):
        HierarchyWorld(HierarchySettings(parents=2, parent_probability=0.0)).labelled(5, seed=0)


def test_the_truth_of_a_hand_made_sae_is_which_children_absorb():
    world = HierarchyWorld(SETTINGS)
    absorbing = [world.children_of(0)[1], world.children_of(2)[0]]
    sizes, activations, labels = world.labelled(60, seed=1)
    truth = hierarchy_truth(world, Read(world, absorbing), sizes, activations)
    expected = (sizes[:, absorbing] > 0).any(dim=1)
    assert truth["row"].tolist() == list(range(240))
    assert truth["label"].tolist() == labels
    assert truth["is_absorbed"].tolist() == expected.tolist()
    assert truth["tracking_latent"].tolist() == [row // 60 for row in range(240)]
    # A child is about as large as its parent, so its latent writes that much of the parent's direction.
    assert truth.loc[expected.numpy(), "share"].min() > 0.5
    overlap = world.directions @ world.directions.T - torch.eye(len(world.directions))
    assert truth.loc[~expected.numpy(), "share"].max() <= 4 * float(overlap.abs().max())
    assert not hierarchy_truth(world, Read(world, []), sizes, activations)["is_absorbed"].any()


class Humming(Read):
    """Its latents of parents fire a little on every sample; one more fires on most samples of parent 0 and no others.

    That one's decoder row is nearer to a child.
    """

    def __init__(self, world: HierarchyWorld) -> None:
        super().__init__(world, [])
        row = 0.6 * world.directions[0] + 0.8 * world.directions[world.children_of(0)[0]]
        self.W_dec = torch.cat([self.W_dec, normalize(row[None], dim=1)])

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        sizes = super().encode(x)
        most = (sizes[:, :1] > sizes[:, :1].max() / 3).float()
        sizes[:, : self.world.settings.parents] += 0.01
        return torch.cat([sizes, most], dim=1)


def test_a_parent_is_tracked_by_the_latent_whose_activation_goes_with_its_size():
    world = HierarchyWorld(SETTINGS)
    sizes, activations, _ = world.labelled(60, seed=1)
    sae = Humming(world)
    fires = sae.encode(activations) != 0
    is_there = sizes[:, 0] > 0
    # By firing alone, the other latent tells the parent better.
    assert fires[:, 0].all()
    assert (fires[:, -1] == is_there).float().mean() > 0.9
    truth = hierarchy_truth(world, sae, sizes, activations)
    assert truth["tracking_latent"].tolist() == [row // 60 for row in range(240)]
    edges = hierarchy_edges(world, sae, sizes, activations)
    assert edges["tracking_latent"].tolist() == [parent for parent in range(4) for _ in range(3)]


def test_there_are_trained_saes_of_several_architectures_in_each_world():
    names = list_trained_saes()
    assert len(names) >= 24
    for world in HIERARCHIES:
        architectures = {name.split("/")[1].rsplit("-", 1)[0] for name in names if name.startswith(f"{world}/")}
        assert len(architectures) >= 4
    with pytest.raises(SaeNotFoundError, match="frequent-children/topk-2"):
        trained_sae_path("frequent-children/topk-4")


@pytest.mark.parametrize(
    ("name", "least", "most"), [("frequent-children/topk-2", 0.15, 0.3), ("rare-children/batchtopk-2.5", 0.0, 0.02)]
)
def test_trained_saes_absorb_as_much_as_the_documents_say(name: str, least: float, most: float):
    world = HierarchyWorld(HIERARCHIES[name.split("/")[0]])  # type: ignore[index]
    sizes, activations, _ = world.labelled(100, seed=5)
    truth = hierarchy_truth(world, load_sae(str(trained_sae_path(name))), sizes, activations)
    assert least <= truth["is_absorbed"].mean() <= most


@pytest.mark.parametrize("name", ["frequent-children/topk-2", "frequent-children/batchtopk-1.5"])
def test_aligned_main_latents_give_the_published_rate_back_what_the_walk_takes(name: str):
    """The walk by F1 takes absorbers for main latents; those do not point the way the first main latent does."""
    world, sae = HierarchyWorld(HIERARCHIES["frequent-children"]), load_sae(str(trained_sae_path(name)))
    sizes, activations, labels = world.labelled(100, seed=0)
    truth = hierarchy_truth(world, sae, sizes, activations)
    errors = {}
    for least in (None, 0.95):
        splits = SplitSettings(min_alignment=least)
        tables = evaluate_activations(sae, activations, labels, "saebench-0.6.0", splits=splits)
        scored = score_against_truth(tables, truth).iloc[0]
        errors[least] = scored["absorption_rate"] - scored["true_rate"]
    assert errors[None] < -0.1
    assert abs(errors[0.95]) <= 0.02
