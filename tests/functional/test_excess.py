"""Rates held against shuffled copies."""

import math

import numpy as np
import pytest
from scipy import stats

from absorb_pl.errors import RangeError, ShapeError
from absorb_pl.functional.excess import excess_over_shuffles


def test_p_values_are_even_if_the_sae_is_one_of_its_copies():
    """Each of 20 values taken for the SAE in turn: every multiple of 1/20 comes once, so p ≤ 0.05 in 5 %."""
    values = np.random.default_rng(0).random(20).tolist()
    found = [excess_over_shuffles(v, v, v, values[:i] + values[i + 1 :]).p_value for i, v in enumerate(values)]
    assert sorted(found) == pytest.approx([k / 20 for k in range(1, 21)])


def test_equal_copies_count_as_high_as_the_rate():
    assert excess_over_shuffles(0.0, 0.0, 0.01, [0.0] * 19).p_value == 1.0
    assert excess_over_shuffles(0.2, 0.1, 0.3, [0.2, *[0.0] * 18]).p_value == pytest.approx(0.1)


def test_the_interval_is_that_of_a_difference_of_two_means():
    """With a symmetric interval of normal size, Student's reach and the rate's own add up in squares."""
    copies = [0.02, 0.05, 0.03, 0.01, 0.04]
    own = stats.t.interval(0.9, 4, loc=np.mean(copies), scale=stats.sem(copies))
    found = excess_over_shuffles(0.4, 0.33, 0.5, copies, confidence=0.9)
    reach = (own[1] - own[0]) / 2
    assert found.shuffled_mean == pytest.approx(np.mean(copies))
    assert found.value == pytest.approx(0.4 - np.mean(copies))
    assert found.value - found.ci_low == pytest.approx(math.sqrt(0.07**2 + reach**2))
    assert found.ci_high - found.value == pytest.approx(math.sqrt(0.1**2 + reach**2))


def test_intervals_hold_the_true_excess():
    """2 000 simulated SAEs of 800 words at 10 %, each beside 19 copies spread by 1 point around 3 %."""
    generator = np.random.default_rng(1)
    held = 0
    for _ in range(2_000):
        rate = generator.binomial(800, 0.1) / 800
        reach = stats.norm.ppf(0.975) * math.sqrt(rate * (1 - rate) / 800)
        copies = generator.normal(0.03, 0.01, 19).tolist()
        found = excess_over_shuffles(rate, rate - reach, rate + reach, copies)
        held += found.ci_low <= 0.07 <= found.ci_high
    assert stats.binom.ppf(1e-4, 2_000, 0.95) <= held <= stats.binom.ppf(1 - 1e-4, 2_000, 0.97)


def test_too_few_copies_are_refused():
    with pytest.raises(ShapeError, match="two copies or more"):
        excess_over_shuffles(0.1, 0.0, 0.2, [0.1])
    with pytest.raises(RangeError, match="rate"):
        excess_over_shuffles(1.1, 0.0, 0.2, [0.1, 0.2])
