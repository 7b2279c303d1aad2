"""Ranking probes that train side by side end as each does alone, to the last bit."""

from dataclasses import replace
from typing import Any

import pandas as pd
import pytest
import torch

from absorb_pl.evaluators.training import train_sae_probes
from absorb_pl.functional.probe_loss import l1_penalty, probe_loss
from absorb_pl.probes import SaeProbe, fitting
from absorb_pl.probes.base import MISSING_LOGIT
from absorb_pl.probes.settings import KSparseSettings

SETTINGS = KSparseSettings(ks=(1, 2, 5), max_epochs=12, batch_size=64)
NAMES = ("a", "b", "c", "absent")


class RandomSae(torch.nn.Module):
    """A ReLU SAE with tied weights, of which more or fewer latents fire."""

    def __init__(self, width: int, threshold: float, seed: int) -> None:
        super().__init__()
        rows = torch.randn(width, 10, generator=torch.Generator().manual_seed(seed))
        self.W_dec = torch.nn.Parameter(torch.nn.functional.normalize(rows, dim=1))
        self.threshold = threshold

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x @ self.W_dec.T - self.threshold)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return latents @ self.W_dec


@pytest.fixture(scope="module")
def saes() -> list[RandomSae]:
    """Many latents fire, few do, hardly any does, and all do."""
    return [RandomSae(40, 0.5, 1), RandomSae(300, 2.5, 2), RandomSae(90, 3.2, 3), RandomSae(25, -99.0, 4)]


@pytest.fixture(scope="module")
def rows() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (310,), generator=generator)
    centres = torch.randn(3, 10, generator=generator)
    x = 2 * centres[labels] + torch.randn(310, 10, generator=generator)
    return x, torch.nn.functional.one_hot(labels, len(NAMES))


def assert_equal(found: tuple[SaeProbe, pd.DataFrame], expected: tuple[SaeProbe, pd.DataFrame]) -> None:
    (probe, curve), (other, other_curve) = found, expected
    for (name, tensor), value in zip(probe.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(tensor, value), name
    pd.testing.assert_frame_equal(curve, other_curve, check_exact=True)


@pytest.mark.parametrize("whole_epoch_values", [fitting.WHOLE_EPOCH_VALUES, 0])
def test_company_changes_nothing(saes: Any, rows: Any, monkeypatch: pytest.MonkeyPatch, whole_epoch_values: int):
    monkeypatch.setattr(fitting, "WHOLE_EPOCH_VALUES", whole_epoch_values)
    alone = [train_sae_probes([sae], *rows, SETTINGS, NAMES, seed=3)[0] for sae in saes]
    together = train_sae_probes(saes, *rows, SETTINGS, NAMES, seed=3)
    reverse = train_sae_probes(saes[::-1], *rows, SETTINGS, NAMES, seed=3)[::-1]
    for found, other, expected in zip(together, reverse, alone, strict=True):
        assert_equal(found, expected)
        assert_equal(other, expected)
        assert len(found[1]) == SETTINGS.max_epochs
        assert found[0].missing_classes == ["absent"]
    assert not torch.equal(together[0][0].latent_ids[:, :1], together[3][0].latent_ids[:, :1])


def test_one_alone_is_what_its_own_fit_gives(saes: Any, rows: Any):
    [(found, curve)] = train_sae_probes(saes[:1], *rows, SETTINGS, NAMES, seed=3)
    probe = SaeProbe(saes[0], len(NAMES), SETTINGS.ks, SETTINGS.l1_decay, class_names=NAMES)
    torch.manual_seed(3)
    expected = fitting.fit_probe(probe, rows[0], rows[1], SETTINGS.max_epochs, SETTINGS.batch_size)
    assert_equal((found, curve), (probe, expected))


def test_other_ks_on_the_same_ranking_are_those_of_a_fit_with_them(saes: Any, rows: Any):
    few = KSparseSettings(ks=(1, 6), max_epochs=12, batch_size=64)
    [(probe, _)] = train_sae_probes(saes[:1], *rows, few, NAMES, seed=3)
    [(expected, _)] = train_sae_probes(saes[:1], *rows, replace(few, ks=(1, 2, 6)), NAMES, seed=3)
    found = probe.with_ks([1, 2, 6], *rows)
    assert found.ks == (1, 2, 6)
    assert torch.equal(found.latent_ids, expected.latent_ids)
    torch.testing.assert_close(found.weight, expected.weight, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found(rows[0]), expected(rows[0]), rtol=1e-5, atol=1e-5)


def test_further_ks_of_some_classes_are_those_of_all(saes: Any, rows: Any):
    few = KSparseSettings(ks=(1, 2), max_epochs=12, batch_size=64)
    [(probe, _)] = train_sae_probes(saes[:1], *rows, few, NAMES, seed=3)
    whole = probe.with_ks([1, 2, 4], *rows)
    asked = torch.tensor([name == NAMES[1] for name in NAMES])
    some = probe.with_ks([1, 2, 4], *rows, asked)
    torch.testing.assert_close(some.weight[:, asked], whole.weight[:, asked], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(some.weight[:2], whole.weight[:2], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(some.bias[:2], whole.bias[:2], rtol=1e-6, atol=1e-6)
    assert (some.bias[2, ~asked] == MISSING_LOGIT).all()
    assert (some.weight[2, ~asked] == 0).all()
    for found in (some, whole):
        assert torch.equal(found.tracking, probe.tracking)
        assert torch.equal(found.tracking_f1, probe.tracking_f1)


def test_a_second_solution_forgets_classes_that_it_does_not_know(saes: Any, rows: Any):
    few = KSparseSettings(ks=(1, 2), max_epochs=4, batch_size=64)
    [(probe, _)] = train_sae_probes(saes[:1], *rows, few, NAMES, seed=3)
    known = probe.bias[0] != MISSING_LOGIT
    probe.class_mask[0] = False
    probe._rank_and_solve([{"x": rows[0], "y": rows[1]}])
    assert known[0]
    assert (probe.bias[:, 0] == MISSING_LOGIT).all()
    assert (probe.weight[:, 0] == 0).all()
    assert (probe.bias[0] != MISSING_LOGIT).sum() == known.sum() - 1


def test_tracking_latents_do_not_depend_on_the_ks(saes: Any, rows: Any):
    found = []
    for ks in ((1,), (1, 2, 6)):
        settings = KSparseSettings(ks=ks, max_epochs=12, batch_size=64)
        [(probe, _)] = train_sae_probes(saes[:1], *rows, settings, NAMES, seed=3)
        found.append((probe.tracking, probe.tracking_f1))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
    assert not torch.equal(found[0][0], probe.latent_ids[:, 0])  # they are not simply the first by rank


def test_all_classes_without_a_mask_are_all_classes_with_one():
    generator = torch.Generator().manual_seed(0)
    logits, weight = torch.randn(9, 4, generator=generator), torch.randn(4, 7, generator=generator)
    y, pos_weight = (torch.rand(9, 4, generator=generator) < 0.4).int(), torch.rand(4, generator=generator)
    mask = torch.ones(4, dtype=torch.bool)
    assert torch.equal(probe_loss(logits, y, pos_weight, None), probe_loss(logits, y, pos_weight, mask))
    assert torch.equal(l1_penalty(weight, None), l1_penalty(weight, mask))
