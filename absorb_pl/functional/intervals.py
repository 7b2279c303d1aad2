"""Intervals of absorption rates: what is known to move a rate when it is measured on other words.

Three sources are told apart. *Words*: had other words of each letter been held out, others would be absorbed. *Shared
absorbers*: words that one latent absorbs stand or fall together, so they count as fewer. *Sampling*: where only a
part of the candidates was judged. What the choice of probes and main latents adds is not among them; repeats with
other splits show it (`combine_repeats`).

Source: Fay and Feuer, "Confidence intervals for directly standardized rates: a method based on the gamma
distribution", Statistics in Medicine 16 (1997), with the variance of binomial counts in place of Poisson's, and with
the mean weight of one more word in place of the largest (Tiwari, Clegg and Zou, Statistical Methods in Medical
Research 15, 2006); Clopper and Pearson, Biometrika 26 (1934); Cochran, Sampling Techniques (1977), chapter 12, for
two-phase samples; Kish, Survey Sampling (1965), for the design effect.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Float, Int
from scipy import stats
from torch import Tensor

from absorb_pl.errors import ShapeError
from absorb_pl.functional.validation import require_finite
from absorb_pl.ranges import Count, CountOrZero, Fraction, InnerFraction, NotNegative, Portion, Range, check_ranges

AtLeastOne = Annotated[float | int, Range(1, 10**6)]


@dataclass(frozen=True)
class LetterVariance:
    """The variance of one letter's rate, by source.

    Attributes:
        rate: The rate.
        words: Variance from the words, each by itself.
        absorbers: What is added because one latent absorbs several of them.
        sampling: Variance from judging a sample of the candidates.
        one_more: What one more absorber would add to the rate.
    """

    rate: float
    words: float
    absorbers: float
    sampling: float
    one_more: float


def letter_variance(
    amounts: Float[Tensor, " words"], total: Count, portion: Portion = 1.0, effect: AtLeastOne = 1.0
) -> LetterVariance:
    """Variance of absorbed amount ÷ portion ÷ total, for one letter.

    With `n` words, of which a share `c` are candidates, `m` of them judged with mean `h` and variance `s²`, the rate
    `ch` has the variance `(c(s² + h²) − (ch)²) / (n − 1)` from the words and `c²s²(1/m − 1/(cn))` from the sample;
    for verdicts the sum is `h²c(1 − c)/n + c²h(1 − h)/m` but for that −1. With a design effect `e` words count as
    `n/e`.

    Args:
        amounts: Absorbed amount of each judged word, 0 to 1.
        total: Words that the rate is over.
        portion: Judged words ÷ candidates.
        effect: From `design_effect`.

    Returns:
        The rate and its variances.

    Raises:
        NonFiniteError: An amount is NaN or infinite.

    Example:
        >>> found = letter_variance(torch.tensor([1.0, 1.0, 0.0, 0.0]), total=10)
        >>> round(found.rate, 3), round(found.words, 4), found.sampling, found.one_more
        (0.2, 0.0178, 0.0, 0.1)
    """
    check_ranges(letter_variance, locals())
    require_finite(amounts=amounts)
    judged, one_more = len(amounts), effect / (total * portion)
    if not judged:
        return LetterVariance(0.0, 0.0, 0.0, 0.0, one_more)
    y = amounts.double()
    mean = float(y.mean())
    spread = max(0.0, float((y**2).mean()) - mean**2)
    candidates = judged / portion
    share = candidates / total
    rate = share * mean
    of_one = max(0.0, share * (spread + mean**2) - rate**2)
    words = of_one / _free(total)
    sampling = share**2 * spread * max(0.0, 1 / judged - 1 / candidates)
    return LetterVariance(rate, words, of_one / _free(total / effect) - words, sampling, one_more)


def _free(count: float | int) -> float:
    """One less than a number of words, and at least half of it."""
    return float(max(count - 1, count / 2))


def design_effect(absorbers: Sequence[Int[Tensor, " _absorbed"]]) -> float:
    """How many words stand or fall together when one latent absorbs several, as an absorbed word sees it.

    With `k` words of one letter absorbed by one latent this is `Σk² / Σk` over latents and letters: 1 if every word
    has an absorber of its own. It multiplies the variance from the words (Kish's design effect of full correlation
    within clusters).

    Args:
        absorbers: Per letter, the latent that absorbs each absorbed word.

    Returns:
        The factor, at least 1.

    Example:
        >>> design_effect([torch.tensor([7, 7, 7]), torch.tensor([4])])
        2.5
    """
    sizes = torch.cat([each.unique(return_counts=True)[1] for each in absorbers]) if absorbers else torch.zeros(0)
    return float((sizes**2).sum() / sizes.sum()) if int(sizes.sum()) else 1.0


def clopper_pearson(count: CountOrZero, total: Count, confidence: InnerFraction = 0.95) -> tuple[float, float]:
    """Exact interval of a share.

    Args:
        count: How many.
        total: Of how many.
        confidence: Two-sided level.

    Returns:
        Lower and upper end.

    Raises:
        ShapeError: `count` is above `total`.

    Example:
        >>> [round(end, 4) for end in clopper_pearson(0, 30)]
        [0.0, 0.1157]
    """
    check_ranges(clopper_pearson, locals())
    if count > total:
        raise ShapeError("count", count, expected=f"at most {total}", remedy="Pass the total of the same words.")
    tail = (1 - confidence) / 2
    low = float(stats.beta.ppf(tail, count, total - count + 1)) if count else 0.0
    high = float(stats.beta.ppf(1 - tail, count + 1, total - count)) if count < total else 1.0
    return low, high


def gamma_interval(
    rate: Fraction, variance: NotNegative, one_more: NotNegative, confidence: InnerFraction = 0.95
) -> tuple[float, float]:
    """Interval of a weighted sum of counts, by gamma distributions with its mean and variance.

    The lower end is a quantile of the gamma distribution with the rate's mean and variance, the upper end one of that
    with one more absorbed word. A rate above one half is looked at from its other side, so that the interval of what is
    not absorbed is that of what is, mirrored. Amounts that are all the same have the variance of one word, not none.

    Args:
        rate: The rate.
        variance: Its variance.
        one_more: What one more absorbed word would add, mean over letters.
        confidence: Two-sided level.

    Returns:
        Lower and upper end, from 0 to 1.

    Example:
        >>> [round(end, 4) for end in gamma_interval(0.1, 0.0009, 0.01)]
        [0.0501, 0.1801]
        >>> [round(end, 4) for end in gamma_interval(0.9, 0.0009, 0.01)]
        [0.8199, 0.9499]
    """
    check_ranges(gamma_interval, locals())
    if rate > 0.5:
        low, high = gamma_interval(1 - rate, variance, one_more, confidence)
        return 1 - high, 1 - low
    tail = (1 - confidence) / 2
    low = _gamma_quantile(tail, rate, variance or one_more**2)
    high = _gamma_quantile(1 - tail, rate + one_more, variance + one_more**2)
    return max(0.0, low), min(1.0, high)


def _gamma_quantile(level: float, mean: float, variance: float) -> float:
    return float(stats.gamma.ppf(level, mean**2 / variance, scale=variance / mean)) if mean and variance else mean


def combine_repeats(
    rates: Sequence[float], variances: Sequence[float], confidence: InnerFraction = 0.95
) -> tuple[float, float, float]:
    """Mean over repeats with other splits, with its total variance.

    With `U` the mean variance within repeats and `B` the variance between them, the total is `T = U + (1 + 1/R)B`,
    and the interval's quantile is Student's with `(R − 1)(1 + U / ((1 + 1/R)B))²` degrees of freedom (Rubin, Multiple
    Imputation for Nonresponse in Surveys, 1987, chapter 3).

    Args:
        rates: Rate of each repeat.
        variances: Its variance within the repeat.
        confidence: Two-sided level.

    Returns:
        The mean, its total variance, and by how many standard deviations the interval reaches to either side.

    Raises:
        ShapeError: There is none, or not one variance for each.

    Example:
        >>> mean, variance, quantile = combine_repeats([0.1, 0.2, 0.15], [0.001, 0.001, 0.001])
        >>> round(mean, 3), round(variance, 5), round(quantile, 2)
        (0.15, 0.00433, 2.99)
    """
    check_ranges(combine_repeats, locals())
    repeats = len(rates)
    if not repeats or len(variances) != repeats:
        raise ShapeError(
            "variances",
            list(variances),
            expected=f"a variance for each of {repeats} rates",
            remedy="Pass one for each.",
        )
    mean, within = sum(rates) / repeats, sum(variances) / repeats
    normal = float(stats.norm.ppf((1 + confidence) / 2))
    if repeats == 1:
        return mean, within, normal
    between = (1 + 1 / repeats) * sum((rate - mean) ** 2 for rate in rates) / (repeats - 1)
    if not between:
        return mean, within, normal
    freedom = (repeats - 1) * (1 + within / between) ** 2
    return (
        mean,
        within + between,
        float(stats.t.ppf((1 + confidence) / 2, freedom)) if math.isfinite(freedom) else normal,
    )
