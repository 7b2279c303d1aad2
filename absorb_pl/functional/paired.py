"""Comparing two SAEs on the same words: a test of flipped signs, and how many words a difference takes."""

from collections.abc import Sequence

import numpy as np
from scipy import stats

from absorb_pl.errors import ShapeError
from absorb_pl.ranges import Fraction, InnerFraction, Portion, Positive, Seed, check_ranges

_EXACT = 14
"""Differences up to which all signs are gone through; beyond, as many are drawn as `_DRAWS` says."""
_DRAWS = 20_000


def sign_flip_test(differences: Sequence[float], seed: Seed = 0) -> float:
    """Two-sided p-value of a mean difference over letters, if each could as well have the other sign.

    Zeros stay zeros whatever their sign. With up to 14 letters that differ all signs are gone through and the p-value
    is exact; beyond, 20 000 are drawn and the signs found are one of them (Phipson and Smyth, Statistical Applications
    in Genetics and Molecular Biology 9, 2010).

    Args:
        differences: Difference of the rates of each letter.
        seed: Seed of the draws.

    Returns:
        The p-value; 1 without differences.

    Raises:
        ShapeError: A difference is NaN or infinite.

    Example:
        >>> sign_flip_test([0.1, 0.2, 0.1, 0.3, 0.0])  # 2 of 16 signs are as extreme
        0.125
    """
    check_ranges(sign_flip_test, locals())
    values = np.asarray(differences, dtype=np.float64)
    if not np.isfinite(values).all():
        raise ShapeError(
            "differences", list(differences), expected="finite numbers", remedy="Leave out letters without a rate."
        )
    values = values[values != 0]
    if not len(values):
        return 1.0
    observed = abs(values.sum()) * (1 - 1e-12)
    if len(values) <= _EXACT:
        signs = 1 - 2 * ((np.arange(2 ** len(values))[:, None] >> np.arange(len(values))) & 1)
        return float((np.abs(signs @ values) >= observed).mean())
    signs = 1 - 2 * np.random.default_rng(seed).integers(0, 2, (_DRAWS, len(values)))
    return float((1 + (np.abs(signs @ values) >= observed).sum()) / (1 + _DRAWS))


def holm(p_values: Sequence[Fraction]) -> list[float]:
    """P-values for several comparisons at once, so that any false finding is as rare as the level says.

    Source: Holm, Scandinavian Journal of Statistics 6 (1979).

    Args:
        p_values: P-value of each comparison.

    Returns:
        Adjusted p-values, in the same order.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    check_ranges(holm, locals())
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda number: p_values[number])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted


def words_to_tell(
    difference: Portion,
    rate: Fraction,
    *,
    effect: Positive = 1.0,
    confidence: InnerFraction = 0.95,
    power: InnerFraction = 0.8,
) -> float:
    """Words per SAE that it takes to tell a difference of two rates.

    `(z₁ + z₂)² · 2p(1 − p) · e / Δ²`, with 7.84 for the first factor at 95 % and 80 %. Two SAEs that are judged on the
    same words need fewer, by as much as their verdicts agree.

    Args:
        difference: The difference Δ.
        rate: The rate p around which they are.
        effect: Design effect e of shared absorbers (`design_effect`).
        confidence: Two-sided level of the test.
        power: How often the difference should be found.

    Example:
        >>> round(words_to_tell(0.05, 0.1))
        565
    """
    check_ranges(words_to_tell, locals())
    return _factor(confidence, power) * 2 * rate * (1 - rate) * effect / difference**2


def smallest_difference(
    words: Positive,
    rate: Fraction,
    *,
    effect: Positive = 1.0,
    confidence: InnerFraction = 0.95,
    power: InnerFraction = 0.8,
) -> float:
    """The difference of two rates that so many words per SAE can tell: `words_to_tell` turned round.

    Args:
        words: Words per SAE.
        rate: The rate around which they are.
        effect: Design effect of shared absorbers.
        confidence: Two-sided level of the test.
        power: How often the difference should be found.

    Example:
        >>> round(smallest_difference(565, 0.1), 3)
        0.05
    """
    check_ranges(smallest_difference, locals())
    return float((_factor(confidence, power) * 2 * rate * (1 - rate) * effect / words) ** 0.5)


def _factor(confidence: float, power: float) -> float:
    return float(stats.norm.ppf((1 + confidence) / 2) + stats.norm.ppf(power)) ** 2
