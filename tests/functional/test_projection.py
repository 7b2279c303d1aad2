"""Absorber candidates against brute force, SAEBench's aggregate by hand, and intervals of equal fractions."""

import statistics

import pytest
import torch
from scipy import stats

from absorb_pl.functional import LetterOutcome, letter_rate, saebench_aggregate
from absorb_pl.functional.projection import may_absorb


def test_marked_latents_hold_the_largest_sums_for_every_least_cosine():
    generator = torch.Generator().manual_seed(0)
    for count in (1, 3, 5):
        cos = torch.randn(40, generator=generator).mul(4).round() / 10  # with ties
        projections = torch.randn(30, 40, generator=generator).clamp(min=0)
        marked = may_absorb(projections, cos, count)
        for least in torch.linspace(-1.5, 1.5, 31):
            for most in range(1, count + 1):
                every, kept = (
                    torch.where(cos >= least, p, 0).topk(most, dim=1).values.sum(dim=1)
                    for p in (projections, torch.where(marked, projections, 0))
                )
                assert torch.equal(every, kept)
        assert marked.sum() < (projections > 0).sum()


LETTERS = {
    "absorption_fractions": [0.4, 0.2, 0.9, 0.0, 0.6],
    "full_rates": [0.1, 0.3, 0.9, 0.0, 0.5],
    "num_main_latents": [1, 3, 9, 1, 2],
    "num_true_positives": [10, 10, 10, 0, 10],
    "probe_f1": [0.9, 0.7, 0.6, 0.95, 0.61],
}


def test_saebench_counts_letters_with_a_better_probe_and_words():
    found = saebench_aggregate(**LETTERS, min_letters=4)
    assert found.letters == (0, 1, 4)
    assert found.mean_absorption_fraction_score == pytest.approx(0.4)
    assert found.mean_full_absorption_score == pytest.approx(0.3)
    assert found.mean_num_split_features == pytest.approx(2.0)
    assert found.std_dev_absorption_fraction_score == pytest.approx(statistics.stdev([0.4, 0.2, 0.6]))
    assert found.std_dev_full_absorption_score == pytest.approx(0.2)
    assert found.std_dev_num_split_features == pytest.approx(1.0)


def test_the_older_release_counts_every_letter_with_words():
    found = saebench_aggregate(**LETTERS, min_probe_f1=None)
    assert found.letters == (0, 1, 2, 4)
    assert found.mean_full_absorption_score == pytest.approx(0.45)


def test_too_few_letters_are_said():
    assert saebench_aggregate(**LETTERS, min_letters=5).reason == "4 letters with a probe F1 above 0.6, fewer than 5"
    one = {name: values[:1] for name, values in LETTERS.items()}
    assert "fewer than 2" in saebench_aggregate(**one, min_letters=1).reason


def test_equal_fractions_do_not_make_an_interval_certain():
    rate = letter_rate(LetterOutcome(torch.full((20,), 0.4, dtype=torch.float64), 20))
    low, high = stats.gamma.ppf([0.025, 0.975], [64, 81], scale=[0.05**2 / 0.4, 0.05**2 / 0.45])
    assert (rate.ci_low, rate.ci_high) == pytest.approx((low, high))
