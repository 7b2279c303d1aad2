import math

import pytest
import torch

from absorb_pl.errors import LabelError, NonFiniteError, ShapeError
from absorb_pl.functional import SaeStatistics, cosine_similarity_matrix, main_latents, probe_loss, sample_candidates
from absorb_pl.functional.probe_loss import l1_penalty, learnable_classes, positive_weights
from absorb_pl.functional.splits import aligned_main_latents


def test_cosines_equal_torch_and_zero_rows_give_zero():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(4, 6, generator=generator), torch.randn(5, 6, generator=generator)
    expected = torch.nn.functional.cosine_similarity(a[:, None], b[None], dim=2)
    torch.testing.assert_close(cosine_similarity_matrix(a, b), expected)
    torch.testing.assert_close(cosine_similarity_matrix(a * 1e-30, b * 1e30), expected)
    a[2] = 0
    assert cosine_similarity_matrix(a, b)[2].tolist() == [0.0] * 5
    assert cosine_similarity_matrix(a.half(), b.half()).dtype == torch.float32


@pytest.mark.parametrize(
    ("f1", "expected"),
    [
        ([0.5, 0.52, 0.9], 1),
        ([0.5, 0.54, 0.58, 0.6, 0.9], 3),
        ([0.5, 0.6, 0.55, 0.9], 2),
        ([0.0, 0.0], 1),
        ([0.05 * k for k in range(1, 19)], 15),
    ],
)
def test_main_latents_extend_while_f1_jumps(f1, expected):
    ks = list(range(1, len(f1) + 1))
    assert main_latents(f1, ks, list(range(100, 120))) == list(range(100, 100 + expected))


@pytest.mark.parametrize(
    ("least", "expected"), [(1.0, [4, 2]), (0.95, [4, 2, 1]), (0.5, [4, 2, 1, 0]), (1e-6, [4, 2, 1, 0])]
)
def test_further_main_latents_point_the_way_the_first_does(least, expected):
    cosines = torch.tensor([0.5, 0.77, 0.8, -0.9, 0.8])
    assert aligned_main_latents([4, 2, 1, 0, 3], cosines, least) == expected
    assert aligned_main_latents([3], cosines, least) == [3]


def test_main_latents_stop_at_a_missing_k_and_refuse_nan():
    assert main_latents([0.1, 0.3, 0.9], [1, 2, 4], [7, 8, 9, 10]) == [7, 8]
    with pytest.raises(NonFiniteError):
        main_latents([0.1, math.nan], [1, 2], [0, 1])
    with pytest.raises(ShapeError):
        main_latents([0.1, 0.2], [2, 3], [0, 1, 2])


def test_probe_loss_equals_bce_of_the_counted_classes():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(50, 4, generator=generator)
    y = torch.randint(0, 3, (50,), generator=generator)
    targets = torch.nn.functional.one_hot(y, 4)
    mask = learnable_classes(targets.sum(dim=0), 50)
    assert mask.tolist() == [True, True, True, False]
    weights = positive_weights(targets.sum(dim=0), 50)
    p = torch.sigmoid(logits.double())
    n_pos = targets.sum(dim=0).double().clamp(min=1)
    terms = -(targets * (50 - n_pos) / n_pos * p.log() + (1 - targets) * (1 - p).log())
    assert probe_loss(logits, targets, weights, mask).item() == pytest.approx(terms[:, :3].mean().item())
    with pytest.raises(LabelError):
        learnable_classes(torch.tensor([0, 50]), 50)
    assert l1_penalty(torch.tensor([[-1.0, 2.0], [5.0, 5.0]]), torch.tensor([True, False])).item() == 3.0


def test_sampling_is_seeded_without_repeats_and_states_its_portion():
    rows = torch.arange(100, 350)
    first = sample_candidates(rows, 200, torch.Generator().manual_seed(3))
    again = sample_candidates(rows, 200, torch.Generator().manual_seed(3))
    assert first[1] == 0.8
    assert torch.equal(first[0], again[0])
    assert len(set(first[0].tolist())) == 200
    assert sample_candidates(rows[:0], 200, torch.Generator())[1] == 1.0


def test_sae_statistics_do_not_depend_on_chunks():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(97, 8, generator=generator) + 50
    latents = torch.randn(97, 12, generator=generator).clamp(min=0)
    latents[:, 4:7] = 0
    x_hat = x + 0.3 * torch.randn(97, 8, generator=generator)
    found = SaeStatistics.empty(8, 12)
    for a, b, c in zip(x.split(10), latents.split(10), x_hat.split(10), strict=True):
        found.update(a, b, c)
    expected = 1 - (x - x_hat).square().sum() / (x - x.mean(dim=0)).square().sum()
    assert found.explained_variance == pytest.approx(expected.item(), rel=1e-5)
    assert found.l0 == pytest.approx((latents > 0).sum(dim=1).double().mean().item())
    assert (found.num_dead, found.dead_fraction) == (3, 0.25)
    with pytest.raises(ShapeError):
        _ = SaeStatistics.empty(8, 12).l0
    with pytest.raises(NonFiniteError):
        found.update(x * torch.nan, latents, x_hat)
