"""Tests of flipped signs and of many comparisons, against every sign and by simulation."""

from itertools import product

import numpy as np
import pytest
from scipy import stats

from absorb_pl.errors import RangeError, ShapeError
from absorb_pl.functional.paired import holm, sign_flip_test, smallest_difference, words_to_tell


@pytest.mark.parametrize("seed", range(5))
def test_the_p_value_is_the_share_of_signs_as_extreme(seed: int):
    values = np.random.default_rng(seed).normal(0.3, 1.0, 9).round(2)
    sums = [
        abs(sum(sign * value for sign, value in zip(signs, values, strict=True)))
        for signs in product((1, -1), repeat=9)
    ]
    expected = np.mean([total >= abs(values.sum()) - 1e-9 for total in sums])
    assert sign_flip_test([*values, 0.0, 0.0]) == pytest.approx(expected, abs=1e-12)
    assert sign_flip_test((-3 * values).tolist()) == pytest.approx(expected, abs=1e-12)


def test_many_letters_are_drawn_and_agree_with_the_paired_t_test():
    values = np.random.default_rng(0).normal(0.25, 1.0, 60)
    expected = stats.ttest_1samp(values, 0).pvalue
    # A share p of 20 000 draws is off by √(p / 20 000) at one standard error.
    assert sign_flip_test(values.tolist()) == pytest.approx(expected, abs=4 * (expected / 20_000) ** 0.5)
    assert sign_flip_test(values.tolist(), seed=1) == sign_flip_test(values.tolist(), seed=1)
    assert sign_flip_test([5.0] * 40) == pytest.approx(1 / 20_001)


def test_nothing_differs():
    assert sign_flip_test([]) == sign_flip_test([0.0] * 26) == 1.0
    with pytest.raises(ShapeError, match="differences"):
        sign_flip_test([0.1, float("nan")])


def test_it_rejects_as_often_as_it_says():
    """2 000 draws without a difference: 5 % within four standard errors, and never more by exactness."""
    rng = np.random.default_rng(1)
    found = [sign_flip_test(rng.normal(0, 1, 10).tolist()) <= 0.05 for _ in range(2_000)]
    assert np.mean(found) == pytest.approx(0.05, abs=4 * (0.05 * 0.95 / 2_000) ** 0.5)


def test_holm_is_the_step_down_of_bonferroni():
    rng = np.random.default_rng(2)
    p = rng.random(7) ** 3
    order = np.argsort(p)
    expected = np.minimum(1, np.maximum.accumulate((7 - np.arange(7)) * p[order]))
    found = np.array(holm(p.tolist()))
    assert found[order] == pytest.approx(expected)
    for bad in ([], [1.5]):
        with pytest.raises(RangeError):
            holm(bad)


def test_so_many_words_find_a_difference_as_often_as_they_say():
    """10 000 pairs of studies; three standard errors are 1.2 points."""
    rate, difference = 0.2, 0.06
    words = round(words_to_tell(difference, rate))
    assert words == round(7.84888 * 2 * 0.16 / 0.0036)
    rng = np.random.default_rng(3)
    low, high = rate - difference / 2, rate + difference / 2
    a, b = rng.binomial(words, low, 10_000) / words, rng.binomial(words, high, 10_000) / words
    error = np.sqrt((a * (1 - a) + b * (1 - b)) / words)
    assert np.mean(np.abs(a - b) > 1.96 * error) == pytest.approx(0.8, abs=0.012)
    assert smallest_difference(words, rate) == pytest.approx(difference, rel=1e-3)
    assert words_to_tell(difference, rate, effect=3.0) == pytest.approx(3 * words_to_tell(difference, rate))
