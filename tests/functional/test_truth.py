"""What is true of absorption, and how `absorb-pl-1` measures it, against loops written out."""

import pytest
import torch

from absorb_pl.errors import NonFiniteError, ShapeError
from absorb_pl.functional.carried import (
    aligned_latents,
    carried_absorption,
    carried_share,
    of_other_classes,
    usual_part,
)
from absorb_pl.functional.k_sparse import tracking_ranks
from absorb_pl.functional.truth import true_absorption

WORDS, LATENTS, WIDTH = 40, 12, 7


@pytest.fixture
def drawn():
    draw = torch.Generator().manual_seed(3)
    activations = torch.rand(WORDS, LATENTS, generator=draw, dtype=torch.float64)
    activations *= torch.rand(WORDS, LATENTS, generator=draw) > 0.5
    decoder = torch.randn(LATENTS, WIDTH, generator=draw, dtype=torch.float64)
    carriers = torch.rand(WORDS, LATENTS, generator=draw) > 0.4
    return activations, decoder, decoder[0] * 3, 0.2 + torch.rand(WORDS, generator=draw).double(), carriers


@pytest.mark.parametrize("own", [[0], [0, 5]])
def test_truth_is_the_sum_over_carriers(drawn, own: list[int]):
    activations, decoder, direction, magnitude, carriers = drawn
    found = true_absorption(activations, decoder, direction, magnitude, own, carriers, least_share=0.5)
    for w in range(WORDS):
        carried = 0.0
        for j in range(LATENTS):
            if carriers[w, j] and j not in own:
                carried += float(activations[w, j]) * float(decoder[j] @ direction) / float(direction.norm())
        share = min(1.0, max(0.0, carried / float(magnitude[w])))
        assert found.share[w].item() == pytest.approx(share, abs=1e-12)
        silent = all(activations[w, j] == 0 for j in own)
        assert found.is_absorbed[w].item() == (silent and share >= 0.5)
    assert found.is_absorbed.any()


def test_truth_does_not_depend_on_units_or_on_the_length_of_the_direction(drawn):
    activations, decoder, direction, magnitude, carriers = drawn
    found = true_absorption(activations, decoder, direction, magnitude, [0], carriers)
    other = true_absorption(4 * activations, decoder, 9 * direction, 4 * magnitude, [0], carriers)
    torch.testing.assert_close(other.share, found.share, rtol=1e-12, atol=1e-12)
    assert other.is_absorbed.tolist() == found.is_absorbed.tolist()


def test_a_feature_without_size_is_refused(drawn):
    activations, decoder, direction, magnitude, carriers = drawn
    magnitude[4] = 0
    with pytest.raises(ShapeError, match="above zero"):
        true_absorption(activations, decoder, direction, magnitude, [0], carriers)


def test_shares_are_what_others_carry_of_what_is_missing():
    draw = torch.Generator().manual_seed(0)
    size, own, others = (torch.randn(200, generator=draw, dtype=torch.float64) for _ in range(3))
    share = carried_share(size, own, others)
    used = carried_share(size, own, others, torch.full((200,), 0.8))
    for w in range(200):
        p, m, a = size[w].item(), own[w].item(), others[w].item()
        assert share[w].item() == pytest.approx(min(1.0, max(0.0, min(a, p - m) / p)) if p > 0 else 0.0, abs=1e-12)
        # A float32 of 0.8 is 0.8 to 1e-8
        assert used[w].item() == pytest.approx(min(1.0, max(0.0, min(a, 0.8 * p - m) / p)) if p > 0 else 0.0, abs=1e-6)
    assert torch.equal(carried_share(5 * size, 5 * own, 5 * others).gt(0.5), share.gt(0.5))
    with pytest.raises(NonFiniteError):
        carried_share(size.log(), own, others)


def test_a_word_counts_if_its_own_latents_are_silent_and_others_carry_half():
    share, quiet = torch.tensor([0.49, 0.5, 1.0, 1.0]), torch.tensor([0.0, 0.0, 1e-9, 1e-7])
    assert carried_absorption(share, quiet).tolist() == [False, True, True, False]
    assert carried_absorption(share, quiet, least_share=0.9, silent=1e-6).tolist() == [False, False, True, True]


def test_the_usual_part_is_the_upper_quartile_where_own_latents_fire():
    own = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0, 9.0])
    size = torch.tensor([5.0, 5.0, 5.0, 5.0, 5.0, -1.0])
    fires = torch.tensor([0.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    assert usual_part(size, own, fires) == pytest.approx(3.25 / 5)
    assert usual_part(size, 10 * own, fires) == 1.0
    assert usual_part(size, own, 0 * fires) == 1.0


def test_latents_that_point_the_same_way_are_one_feature():
    decoder = torch.eye(4, 6)
    decoder[3] = torch.tensor([0.0, 4.0, 1.0, 0.0, 0.0, 0.0])  # cosine 4 / sqrt(17) = 0.970 with latent 1
    assert aligned_latents(decoder, 1) == [1, 3]
    assert aligned_latents(decoder, 1, 0.975) == [1]
    assert aligned_latents(decoder, 0, -1.0) == [0, 1, 2, 3]
    with pytest.raises(ShapeError):
        aligned_latents(decoder, 4)


def test_latents_of_other_classes_fire_mostly_on_one_of_them():
    fired = torch.tensor([[5, 0, 2, 0, 9], [4, 3, 1, 0, 10], [0, 3, 1, 0, 0]])
    assert of_other_classes(fired, fired.sum(dim=0), 0).tolist() == [False, False, False, False, True]
    assert of_other_classes(fired, fired.sum(dim=0), 2).tolist() == [True, False, False, False, True]


@pytest.mark.parametrize("silent", [0.0, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("least", [0.0, -0.5])
def test_the_tracking_latent_is_the_best_at_its_best_threshold(silent: float, least: float):
    """Also where most rows are silent, latents are negative or the same everywhere, and some are equally good."""
    draw = torch.Generator().manual_seed(5)
    activations = (torch.rand(5, 30, 7, generator=draw) + least).round(decimals=1)
    activations[torch.rand(5, 30, 7, generator=draw) < silent] = 0.0
    activations[:, :, 5] = activations[:, :, 2]
    y = torch.rand(30, 5, generator=draw) > 0.6
    rank, f1 = tracking_ranks(activations, y)
    for c in range(5):
        best = []
        for n in range(7):
            scores = activations[c, :, n]
            at = []
            for threshold in scores.unique():
                said = scores >= threshold
                hits = int((said & y[:, c]).sum())
                at.append(2 * hits / int(said.sum() + y[:, c].sum()))
            best.append(max(at))
        assert f1[c].item() == pytest.approx(max(best), abs=1e-12)
        assert rank[c].item() == best.index(max(best))
    activations[0, 3, 1] = float("nan")
    with pytest.raises(NonFiniteError):
        tracking_ranks(activations, y)
