import numpy as np
import pytest
import torch
from scipy import stats

from absorb_pl.errors import RangeError, ShapeError
from absorb_pl.functional import LetterOutcome, bootstrap_interval, letter_rate, sae_rate
from absorb_pl.functional.bootstrap import bootstrap_replicates, zero_count_bound


def outcome(absorbed, judged, total, **kwargs):
    return LetterOutcome(torch.cat([torch.ones(absorbed), torch.zeros(judged - absorbed)]), total, **kwargs)


def test_bootstrap_of_verdicts_has_the_binomial_quantiles():
    low, high = bootstrap_interval([torch.ones(30)], [200], resamples=200_000)
    exact = stats.binom(200, 30 / 200)
    assert low == pytest.approx(exact.ppf(0.025) / 200, abs=0.005)
    assert high == pytest.approx(exact.ppf(0.975) / 200, abs=0.005)


def test_bootstrap_of_fractions_has_the_closed_form_moments():
    amounts = torch.rand(60, generator=torch.Generator().manual_seed(0))
    replicates = bootstrap_replicates(amounts, 150, resamples=100_000, rng=np.random.default_rng(0))
    population = np.concatenate([amounts.double().numpy(), np.zeros(90)])
    assert replicates.mean() == pytest.approx(population.mean(), rel=2e-3)
    assert replicates.std() == pytest.approx(population.std() / np.sqrt(150), rel=2e-2)


def test_letters_are_resampled_apart():
    rates, totals = [0.1, 0.5, 0.9], [40, 60, 80]
    amounts = [torch.ones(round(r * n)) for r, n in zip(rates, totals, strict=True)]
    low, high = bootstrap_interval(amounts, totals, resamples=100_000)
    deviation = np.sqrt(sum(r * (1 - r) / n for r, n in zip(rates, totals, strict=True))) / 3
    assert (high - low) / 2 == pytest.approx(1.96 * deviation, rel=0.05)
    assert bootstrap_interval(amounts, totals, seed=7) == bootstrap_interval(amounts, totals, seed=7)


@pytest.mark.parametrize("n", [1, 8, 300])
def test_nothing_or_everything_absorbed_gives_the_exact_limit(n):
    limit = stats.beta.ppf(0.975, 1, n)
    assert zero_count_bound([n]) == pytest.approx(limit, rel=1e-9)
    assert bootstrap_interval([torch.zeros(0)], [n]) == pytest.approx((0.0, limit))
    assert bootstrap_interval([torch.ones(n)], [n]) == pytest.approx((1 - limit, 1.0))


def test_the_bound_of_many_letters_is_the_largest_mean_rate_not_excluded():
    assert zero_count_bound([50, 50, 50]) == pytest.approx(1 - 0.025 ** (1 / 150), rel=1e-9)
    bound = zero_count_bound([5, 80])
    p = np.linspace(0, 0.9999, 200_001)
    left = 0.025 / (1 - p) ** 5
    q = np.where(left <= 1, 1 - left ** (1 / 80), -1)
    assert bound == pytest.approx(((p + q) / 2)[q >= 0].max(), rel=1e-5)


def test_rates_divide_by_portion_and_true_positives():
    letter = outcome(30, 200, 400, sample_portion=0.8)
    rate = letter_rate(letter)
    assert rate.value == pytest.approx(30 / 0.8 / 400)
    assert rate.ci_low < rate.value < rate.ci_high
    assert rate.num_words == 400


def test_letters_without_candidates_count_as_zero_unless_published():
    letters = [outcome(5, 10, 20), outcome(0, 0, 30), outcome(0, 0, 0), outcome(9, 9, 10, probe_f1=0.59)]
    assert sae_rate(letters).value == pytest.approx((0.25 + 0.0) / 2)
    assert sae_rate(letters, mode="published").value == pytest.approx(0.25)
    assert [letter_rate(letter).reason for letter in letters] == [
        "",
        "",
        "no probe true positives",
        "probe F1 0.590 is below 0.6",
    ]
    nothing = sae_rate(letters[2:])
    assert (nothing.value, nothing.ci_low, nothing.evaluable) == (None, None, False)
    assert nothing.reason == "no evaluable label"
    assert sae_rate(letters[1:2], mode="published").reason == "no label with candidate words"


def test_a_poor_probe_with_nan_f1_is_not_evaluable():
    assert not letter_rate(outcome(1, 2, 3, probe_f1=float("nan"))).evaluable


def test_impossible_outcomes_are_refused():
    with pytest.raises(ShapeError):
        outcome(3, 4, 3)
    with pytest.raises(ShapeError):
        LetterOutcome(torch.tensor([1.5]), 3)
    with pytest.raises(RangeError, match="sample_portion"):
        outcome(1, 1, 3, sample_portion=0.0)
