"""Ranking probes of several folds, trained together, are those that each fold would get alone."""

from typing import Any

import pytest
import torch
from torch.nn.functional import one_hot

from absorb_pl.evaluators.training import train_fold_ranking
from absorb_pl.functional.probe_loss import l1_penalty, l1_penalty_of_folds, loss_of_folds, probe_loss
from absorb_pl.probes.fold_ranking import FoldRanking
from absorb_pl.probes.k_sparse import SaeProbe
from absorb_pl.probes.settings import KSparseSettings
from absorb_pl.truth import PlantedAbsorption, WorldSettings, make_world, planted_sae

SETTINGS = KSparseSettings(ks=(1, 2), max_epochs=20)


@pytest.fixture(scope="module")
def planted() -> Any:
    world, made = planted_sae(
        make_world(WorldSettings(classes=3, words_per_class=30, unrelated=10, unrelated_active=3)),
        PlantedAbsorption(0.2),
    )
    held_out = torch.randint(0, 4, (90,), generator=torch.Generator().manual_seed(3))
    return made.sae, world.activations, one_hot(world.classes, 3), held_out


def test_the_loss_is_the_sum_of_the_folds_own_losses():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(30, 4, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    y = (torch.rand(30, 3, generator=generator) < 0.4).long()
    weight, mask = torch.rand(4, 3, generator=generator, dtype=torch.float64) * 5, torch.ones(4, 3, dtype=torch.bool)
    mask[2, 1] = mask[0, 0] = False
    trained_on = torch.rand(30, 4, generator=generator) < 0.7
    trained_on[:, 3] = False
    found = loss_of_folds(logits, y, weight, mask, trained_on)
    alone = sum(probe_loss(logits[t, f], y[t], weight[f], mask[f]) for f, t in enumerate(trained_on.T[:3]))
    torch.testing.assert_close(found, alone, rtol=1e-12, atol=0)
    for one, other in zip(torch.autograd.grad(found, logits), torch.autograd.grad(alone, logits), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-15)


def test_the_penalty_is_the_sum_of_the_folds_own_penalties():
    weight = torch.randn(4, 3, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mask = torch.tensor([[True, False, True], [True, True, True], [False, False, True], [True, True, False]])
    alone = sum(l1_penalty(own, kept) for own, kept in zip(weight, mask, strict=True))
    torch.testing.assert_close(l1_penalty_of_folds(weight, mask), alone, rtol=1e-12, atol=0)


def test_each_fold_takes_the_step_that_it_takes_alone(planted: Any):
    """At the same weights each fold's gradient is that of its own probe, and Adam steps weight by weight."""
    sae, x, y, held_out = planted
    batch = {"x": x, "y": y, "index": torch.arange(len(x))}
    together = FoldRanking(sae, 3, held_out, SETTINGS, torch.arange(len(sae.W_dec))).double()
    together.count_labels(y)
    weight = torch.randn(12, len(sae.W_dec), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        together.fc.weight.copy_(weight)
    together.training_loss(batch).backward()
    assert together.fc.weight.grad is not None
    for fold, gradient in enumerate(together.fc.weight.grad.unflatten(0, (4, 3))):
        rows = (held_out != fold).nonzero().squeeze(1)
        alone = SaeProbe(sae, 3, ks=[1], l1_decay=SETTINGS.l1_decay).double()
        alone.count_labels(y[rows])
        with torch.no_grad():
            alone.fc.weight.copy_(weight.unflatten(0, (4, 3))[fold])
        alone.training_loss({name: values[rows] for name, values in batch.items()}).backward()
        torch.testing.assert_close(gradient, alone.fc.weight.grad, rtol=1e-10, atol=1e-13)
    assert together.weight.shape == (4, 3, len(sae.W_dec))


def test_rows_that_a_fold_holds_out_change_nothing_of_its_probe(planted: Any):
    sae, x, y, held_out = planted
    before = train_fold_ranking(sae, x, y, held_out, SETTINGS, seed=0)
    other, labels = x.clone(), y.clone()
    own = held_out == 1
    other[own], labels[own] = x[own].flip(0), y[own].flip(0)
    after = train_fold_ranking(sae, other, labels, held_out, SETTINGS, seed=0)
    torch.testing.assert_close(after.weight[1], before.weight[1], rtol=1e-5, atol=1e-6)
    assert (after.weight[0] - before.weight[0]).abs().max() > 1e-2


def test_latents_that_fire_on_no_row_take_no_part(planted: Any):
    sae, x, y, held_out = planted
    rare = (sae.encode(x) != 0).sum(dim=0).argsort()[:5]
    kept = ~(sae.encode(x)[:, rare] != 0).any(dim=1)
    x, y, held_out = x[kept], y[kept], held_out[kept]
    firing = (sae.encode(x) != 0).any(dim=0).nonzero().squeeze(1)
    silent = [latent for latent in range(len(sae.W_dec)) if latent not in firing.tolist()]
    assert silent
    whole = train_fold_ranking(sae, x, y, held_out, SETTINGS, seed=0)
    kept = train_fold_ranking(sae, x, y, held_out, SETTINGS, seed=0, firing=firing)
    torch.testing.assert_close(kept.weight, whole.weight, rtol=1e-4, atol=1e-5)
    assert bool((kept.weight[:, :, silent] == 0).all())


def test_a_class_that_a_fold_holds_out_whole_is_left_out_there(planted: Any):
    sae, x, y, held_out = planted
    held_out = torch.where(y[:, 2] == 1, 0, held_out)
    found = train_fold_ranking(sae, x, y, held_out, SETTINGS, seed=0)
    assert isinstance(found, FoldRanking)
    assert found.learnable.tolist() == [[True, True, False], *[[True] * 3] * 3]
    assert bool((found.weight[0, 2] == 0).all())
    assert bool(found.weight.isfinite().all())
