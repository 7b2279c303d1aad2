"""Agreement of scores against scipy and plain loops."""

import numpy as np
import pytest
import torch
from scipy import stats

from absorb_pl.errors import NonFiniteError
from absorb_pl.functional import score_agreement
from absorb_pl.functional.agreement import (
    mid_ranks,
    pearson_correlation,
    sign_agreement,
    spearman_correlation,
    top_agreement,
)


def pairs(seed, number, ties=False):
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(number, generator=generator)
    b = 0.7 * a + torch.randn(number, generator=generator)
    if ties:
        a, b = (a * 2).round(), (b * 2).round()
    return a, b, torch.randint(0, max(1, number // 4), (number,), generator=generator)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("number", [2, 3, 50, 1001])
def test_correlations_equal_scipy(number, ties):
    a, b, _ = pairs(number, number, ties)
    assert pearson_correlation(a, b) == pytest.approx(stats.pearsonr(a.double(), b.double()).statistic, abs=1e-12)
    assert spearman_correlation(a, b) == pytest.approx(stats.spearmanr(a.double(), b.double()).statistic, abs=1e-12)
    np.testing.assert_array_equal(mid_ranks(a), stats.rankdata(a.numpy()))


def test_correlations_do_not_care_for_scale_and_shift():
    a, b, _ = pairs(0, 40)
    expected = stats.pearsonr(a.double(), b.double()).statistic
    assert pearson_correlation(a.double() * 1e-200, b.double() * 1e200) == pytest.approx(expected, abs=1e-12)
    assert pearson_correlation(-a, b) == pytest.approx(-expected, abs=1e-12)
    assert spearman_correlation(a.exp(), b) == spearman_correlation(a, b)


def test_what_is_undefined_is_none():
    constant, other, none = torch.full((3,), 0.1), torch.tensor([1.0, 2.0, 3.0]), torch.empty(0)
    for correlation in (pearson_correlation, spearman_correlation):
        assert correlation(constant, other) is None
        assert correlation(other, constant) is None
        assert correlation(other[:1], other[:1]) is None
        assert correlation(none, none) is None
    found = score_agreement(none, none, torch.empty(0, dtype=torch.long))
    assert (found.num_pairs, found.sign, found.top, found.num_ranked_words) == (0, None, None, 0)
    assert top_agreement(other, constant, torch.tensor([5, 3, 4])) == (None, 0)


@pytest.mark.parametrize("ties", [False, True])
def test_signs_and_tops_equal_plain_loops(ties):
    estimates, effects, words = pairs(1, 200, ties)
    same_sign = [np.sign(x) == np.sign(y) for x, y in zip(estimates.tolist(), effects.tolist(), strict=True)]
    assert sign_agreement(estimates, effects) == pytest.approx(np.mean(same_sign))
    same_top = []
    for word in set(words.tolist()):
        mine = [i for i, other in enumerate(words.tolist()) if other == word]
        if len(mine) > 1:
            tops = [min(mine, key=lambda i: values[i].item()) for values in (estimates, effects)]
            same_top.append(tops[0] == tops[1])
    assert 0 < sum(same_top) < len(same_top) < len(set(words.tolist())) + 1
    share, number = top_agreement(estimates, effects, words * 7 - 3)
    assert (share, number) == (pytest.approx(np.mean(same_top)), len(same_top))
    shuffled = torch.randperm(len(words), generator=torch.Generator().manual_seed(0))
    if not ties:
        assert top_agreement(estimates[shuffled], effects[shuffled], words[shuffled]) == (share, number)


def test_perfect_estimates_agree_in_all():
    effects, _, words = pairs(2, 60)
    found = score_agreement(effects * 3, effects, words)
    assert (found.pearson, found.spearman) == (pytest.approx(1), pytest.approx(1))
    assert (found.sign, found.top, found.num_pairs) == (1.0, 1.0, 60)
    assert score_agreement(-effects, effects, words).sign == 0.0


def test_bad_input_is_named():
    a, b, words = pairs(3, 10)
    with pytest.raises(NonFiniteError, match="effects"):
        score_agreement(a, b * torch.nan, words)
    with pytest.raises(NonFiniteError, match="`a`"):
        spearman_correlation(a * torch.inf, b)
