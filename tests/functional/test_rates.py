import pytest
import torch
from scipy import stats

from absorb_pl.errors import RangeError, ShapeError
from absorb_pl.functional import LetterOutcome, letter_rate, sae_rate


def outcome(absorbed, judged, total, **kwargs):
    return LetterOutcome(torch.cat([torch.ones(absorbed), torch.zeros(judged - absorbed)]), total, **kwargs)


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


def test_one_letter_has_the_exact_interval():
    rate = letter_rate(outcome(7, 30, 50))
    exact = stats.binomtest(7, 50).proportion_ci(method="exact")
    assert (rate.ci_low, rate.ci_high) == pytest.approx((exact.low, exact.high), rel=1e-9)
    assert rate.se_words == pytest.approx((0.14 * 0.86 / 49) ** 0.5)
    assert (rate.se_absorbers, rate.se_sampling) == (0.0, 0.0)


def test_pooled_rates_weigh_letters_by_their_words():
    letters = [outcome(5, 10, 20), outcome(30, 60, 180), outcome(1, 1, 1, probe_f1=0.1)]
    pooled = sae_rate(letters, pooled=True)
    assert pooled.value == pytest.approx(35 / 200)
    assert pooled.num_words == 200
    assert pooled.ci_low < pooled.value < pooled.ci_high
    whole = letter_rate(outcome(35, 70, 200))
    assert (pooled.ci_low, pooled.ci_high) == pytest.approx((whole.ci_low, whole.ci_high), abs=0.01)


def test_shared_absorbers_widen_the_interval_by_the_design_effect():
    def letters(size: int) -> list[LetterOutcome]:
        return [outcome(6, 12, 40, absorbers=torch.arange(6) // size) for _ in range(20)]

    alone, together = sae_rate(letters(1)), sae_rate(letters(3))
    assert together.value == alone.value
    assert alone.se_absorbers == 0
    of_one = 0.15 * 0.85
    assert alone.se_words == pytest.approx((of_one / 39 / 20) ** 0.5)
    assert together.se_words == pytest.approx(alone.se_words)
    assert together.se_words**2 + together.se_absorbers**2 == pytest.approx(of_one / (40 / 3 - 1) / 20)
    assert together.ci_high - together.ci_low > 1.5 * (alone.ci_high - alone.ci_low)
    assert together.ci_low > 0


def test_the_interval_does_not_depend_on_the_order_of_letters_or_words():
    letters = [outcome(count, 20, 30, absorbers=torch.arange(count) // 2) for count in (0, 3, 11, 20)]
    first, turned = sae_rate(letters), sae_rate(letters[::-1])
    assert (turned.ci_low, turned.ci_high) == pytest.approx((first.ci_low, first.ci_high), rel=1e-12)
    mixed = [LetterOutcome(each.amounts.flip(0), 30, absorbers=each.absorbers.flip(0) + 5) for each in letters]
    again = sae_rate(mixed)
    assert (again.ci_low, again.ci_high) == pytest.approx((first.ci_low, first.ci_high), rel=1e-12)
