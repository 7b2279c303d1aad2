"""Intervals against scipy, closed forms and simulations."""

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from absorb_pl.errors import RangeError, ShapeError
from absorb_pl.functional.intervals import (
    clopper_pearson,
    combine_repeats,
    design_effect,
    gamma_interval,
    letter_variance,
)

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("count", "total"), [(0, 1), (0, 30), (3, 30), (30, 30), (17, 200)])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_clopper_pearson_is_the_exact_test_turned_round(count: int, total: int, confidence: float):
    exact = stats.binomtest(count, total).proportion_ci(confidence, method="exact")
    assert clopper_pearson(count, total, confidence) == pytest.approx((exact.low, exact.high), rel=1e-9, abs=1e-12)


def test_more_than_all_is_refused():
    with pytest.raises(ShapeError, match="count"):
        clopper_pearson(4, 3)


def test_the_variance_is_that_of_the_draw():
    """Many letters drawn in two phases: candidates by chance, a sample of them judged."""
    rng = np.random.default_rng(0)
    total, share, absorbed, most = 80, 0.5, 0.3, 20
    rates, variances = [], []
    for _ in range(20_000):
        candidates = rng.binomial(total, share)
        judged = min(most, candidates)
        hits = rng.hypergeometric(hits_all := rng.binomial(candidates, absorbed), candidates - hits_all, judged)
        amounts = torch.cat([torch.ones(hits), torch.zeros(judged - hits)])
        found = letter_variance(amounts, total, judged / candidates)
        rates.append(found.rate)
        variances.append(found.words + found.sampling)
    # The variance of a variance of 20 000 draws: 1 % at one standard error.
    assert np.mean(variances) == pytest.approx(np.var(rates), rel=0.05)
    assert np.mean(rates) == pytest.approx(share * absorbed, abs=4 * np.std(rates) / math.sqrt(20_000))


def test_fractions_have_the_variance_of_their_mean():
    amounts = torch.rand(60, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = letter_variance(amounts, 150)
    population = np.concatenate([amounts.numpy(), np.zeros(90)])
    assert found.rate == pytest.approx(population.mean())
    assert found.words == pytest.approx(population.var(ddof=1) / 150)
    assert found.sampling == 0


def test_no_word_judged_is_a_rate_of_zero_with_one_more_word_to_come():
    found = letter_variance(torch.zeros(0), 40, effect=2.0)
    assert (found.rate, found.words, found.absorbers, found.sampling, found.one_more) == (0, 0, 0, 0, 0.05)


def test_the_design_effect_is_the_mean_size_of_a_word_s_cluster():
    absorbers = [torch.tensor([3, 3, 3, 3, 8]), torch.tensor([3]), torch.tensor([], dtype=torch.long)]
    sizes = [4, 4, 4, 4, 1, 1]
    assert design_effect(absorbers) == pytest.approx(np.mean(sizes))
    assert design_effect([]) == design_effect([torch.zeros(0, dtype=torch.long)]) == 1.0


def test_the_gamma_interval_of_a_poisson_count_is_the_exact_one():
    """With one weight and Poisson's variance Fay and Feuer's interval is Garwood's."""
    count, weight = 7, 0.01
    low, high = gamma_interval(count * weight, count * weight**2, weight)
    assert low == pytest.approx(weight * stats.chi2.ppf(0.025, 2 * count) / 2, rel=1e-9)
    assert high == pytest.approx(weight * stats.chi2.ppf(0.975, 2 * count + 2) / 2, rel=1e-9)


def test_intervals_are_mirrored_and_stay_within_bounds():
    low, high = gamma_interval(0.07, 0.0002, 0.004)
    assert gamma_interval(0.93, 0.0002, 0.004) == pytest.approx((1 - high, 1 - low), rel=1e-12)
    assert gamma_interval(0.0, 0.0, 0.01) == pytest.approx((0.0, -0.01 * math.log(0.025)))
    assert gamma_interval(0.5, 0.5, 0.5)[1] == 1.0
    with pytest.raises(RangeError, match="rate"):
        gamma_interval(1.2, 0.1, 0.1)


def test_repeats_are_combined_by_rubin_s_rules():
    rates, variances = [0.12, 0.18, 0.15, 0.11], [0.0004, 0.0006, 0.0005, 0.0004]
    mean, variance, quantile = combine_repeats(rates, variances)
    within, between = np.mean(variances), np.var(rates, ddof=1)
    assert mean == pytest.approx(np.mean(rates))
    assert variance == pytest.approx(within + 1.25 * between)
    freedom = 3 * (1 + within / (1.25 * between)) ** 2
    assert quantile == pytest.approx(stats.t.ppf(0.975, freedom))
    assert combine_repeats([0.2], [0.01]) == pytest.approx((0.2, 0.01, stats.norm.ppf(0.975)))
    assert combine_repeats([0.2, 0.2], [0.01, 0.01]) == pytest.approx((0.2, 0.01, stats.norm.ppf(0.975)))
    with pytest.raises(ShapeError, match="variances"):
        combine_repeats([0.1], [])


def simulation():
    spec = importlib.util.spec_from_file_location("check_intervals", ROOT / "scripts/check_intervals.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "name", ["0.02 in all letters", "the same, 6 to 80 words", "0.3, absorbers of 5", "50 of 150 candidates judged"]
)
def test_simulated_intervals_hold_the_truth(name: str):
    """300 draws: 95 % hold it in at least 91 % with a probability of 0.999."""
    check = simulation()
    found = check.simulate(check.settings()[name], 300, seed=1)
    assert found["coverage"] >= 0.91
    assert found["width"] <= 1.4 * found["oracle"]
