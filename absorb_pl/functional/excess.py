"""How much a rate exceeds what it would be if latents pointed anywhere."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import t as student_t

from absorb_pl.errors import ShapeError
from absorb_pl.ranges import Fraction, InnerFraction, check_ranges


@dataclass(frozen=True)
class Excess:
    """A rate beside the rates of shuffled copies.

    Attributes:
        shuffled_mean: Mean rate of the copies.
        value: The rate less that.
        ci_low: Lower end of its interval.
        ci_high: Upper end.
        p_value: Probability of so high a rate, or a higher one, if the SAE were one more such copy.
    """

    shuffled_mean: float
    value: float
    ci_low: float
    ci_high: float
    p_value: float


def excess_over_shuffles(
    rate: Fraction, ci_low: Fraction, ci_high: Fraction, shuffled: Sequence[float], confidence: InnerFraction = 0.95
) -> Excess:
    """Compare a rate with those of copies of the SAE whose decoder rows were shuffled.

    The p-value is that of a permutation test, `(1 + #{shuffled ≥ rate}) / (1 + copies)` (Phipson and Smyth,
    Statistical Applications in Genetics and Molecular Biology 9, 2010), so 19 copies are the fewest that can give 0.05.
    The interval of the difference puts together the rate's own interval and Student's for the copies' mean, each side
    by its squares (Zou and Donner, Statistics in Medicine 27, 2008).

    Args:
        rate: The rate of the SAE.
        ci_low: Lower end of its interval.
        ci_high: Upper end.
        shuffled: Rates of the copies, two or more.
        confidence: Level of the intervals.

    Returns:
        The difference, with its interval and p-value.

    Raises:
        ShapeError: There are fewer than two copies.

    Example:
        >>> found = excess_over_shuffles(0.3, 0.25, 0.36, [0.02, 0.04] * 10)
        >>> round(found.value, 2), round(found.p_value, 3)
        (0.27, 0.048)
    """
    check_ranges(excess_over_shuffles, locals())
    copies = len(shuffled)
    if copies < 2:
        raise ShapeError(
            "shuffled", copies, expected="rates of two copies or more", remedy="Draw 19 or more, for a p-value of 0.05."
        )
    mean = sum(shuffled) / copies
    spread = math.sqrt(sum((value - mean) ** 2 for value in shuffled) / (copies - 1))
    reach = float(student_t.ppf(0.5 + confidence / 2, copies - 1)) * spread / math.sqrt(copies)
    return Excess(
        shuffled_mean=mean,
        value=rate - mean,
        ci_low=rate - mean - math.hypot(rate - ci_low, reach),
        ci_high=rate - mean + math.hypot(ci_high - rate, reach),
        p_value=(1 + sum(value >= rate for value in shuffled)) / (1 + copies),
    )
