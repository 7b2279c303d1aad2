"""Percentile bootstrap intervals of absorption rates, resampling words within letters."""

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from jaxtyping import Float
from torch import Tensor

from absorb_pl.errors import ShapeError
from absorb_pl.ranges import Count, InnerFraction, Portion, Range, Resamples, Seed, check_ranges


def bootstrap_replicates(
    amounts: Float[Tensor, " words"], total: Count, *, resamples: Count, rng: np.random.Generator
) -> np.ndarray:
    """Mean of `total` outcomes, resampled with replacement.

    The population is `amounts` and `total − words` zeros. Outcomes of equal size are exchangeable, so drawing
    how often each size occurs (one multinomial draw a resample) is the bootstrap itself, without its index
    table.

    Args:
        amounts: Outcomes that may differ from zero.
        total: Number of outcomes, at least as many as `amounts`.
        resamples: Number of replicates.
        rng: Source of the draws.

    Returns:
        `resamples` means.

    Example:
        >>> import torch
        >>> bootstrap_replicates(torch.ones(4), 4, resamples=3, rng=np.random.default_rng(0))
        array([1., 1., 1.])
    """
    check_ranges(bootstrap_replicates, locals())
    outcomes = amounts.detach().cpu().double().numpy()
    sizes, counts = np.unique(outcomes, return_counts=True)
    share = np.append(counts, total - len(outcomes)) / total
    drawn = rng.multinomial(total, share, size=resamples)
    return drawn[:, :-1] @ sizes / total


def zero_count_bound(
    sizes: Sequence[Annotated[float | int, Range(0, above=True)]], confidence: InnerFraction = 0.95
) -> float:
    """Largest mean rate that still makes "nothing seen in any group" likely enough.

    With `nᵢ` words in group i and none absorbed, the bound is the largest mean of rates `pᵢ` with
    `Π (1 − pᵢ)^nᵢ ≥ (1 − confidence)/2`. For one group it is the exact (Clopper–Pearson) limit
    `1 − (α/2)^(1/n)`. The largest mean has `1 − pᵢ = min(1, c·nᵢ)`, with `c` found by bisection.

    Args:
        sizes: Words of each group, above zero; may be fractional for samples.
        confidence: Two-sided level.

    Returns:
        The bound, between 0 and 1.

    Example:
        >>> round(zero_count_bound([30]), 4)
        0.1157
    """
    check_ranges(zero_count_bound, locals())
    n = np.asarray(sizes, dtype=np.float64)
    budget = np.log(2 / (1 - confidence))
    if len(n) == 1:
        return float(-np.expm1(-budget / n[0]))
    low, high = -np.log(n.max()) - budget / n.min(), -np.log(n.min())
    for _ in range(200):
        middle = (low + high) / 2
        if (n * np.clip(-(middle + np.log(n)), 0, None)).sum() > budget:
            low = middle
        else:
            high = middle
    return float((1 - np.minimum(1.0, np.exp(high) * n)).mean())


def bootstrap_interval(
    amounts: Sequence[Float[Tensor, " _words"]],
    totals: Sequence[Count],
    portions: Sequence[Portion] | None = None,
    *,
    confidence: InnerFraction = 0.95,
    resamples: Resamples = 2000,
    seed: Seed = 0,
) -> tuple[float, float]:
    """Percentile interval of the mean over letters of absorbed words ÷ probe true positives.

    Each letter's probe true positives are resampled with replacement (Efron's percentile bootstrap,
    stratified by letter); a judged word weighs `1 / portion`, the others count 0. Where only a sample of the
    candidates was judged this treats the sampling as part of the draw, which errs on the wide side.

    A letter on which nothing (or everything) was absorbed has replicates that never vary, and a percentile
    interval would call it certain. So the interval is widened to what such letters allow by themselves: its
    upper end is at least the estimate plus the share of never-absorbed letters times their
    `zero_count_bound`, and at least the bound of all letters; its lower end likewise for always-absorbed
    ones. A letter all of whose words have one and the same fraction widens it both ways, by as much as it leaves to 1
    and to 0. For one letter without absorption this is the Clopper–Pearson interval `[0, 1 − 0.025^(1/n)]`.

    Args:
        amounts: Per letter, the absorbed amount (0 to 1) of each judged word.
        totals: Per letter, its probe true positives; at least one each.
        portions: Per letter, the share of candidates that was judged; 1 if not given.
        confidence: Level of the interval.
        resamples: Number of bootstrap replicates.
        seed: Seed of the draws.

    Returns:
        Lower and upper end.

    Raises:
        ShapeError: There is no letter, or not all is given for each.
        RangeError: A letter has no true positives, or a portion is outside (0, 1].

    Example:
        >>> import torch
        >>> low, high = bootstrap_interval([torch.ones(20)], [100])
        >>> 0.11 < low < 0.14, 0.26 < high < 0.30
        (True, True)
    """
    check_ranges(bootstrap_interval, locals())
    portions = [1.0] * len(totals) if portions is None else list(portions)
    if not totals or not len(amounts) == len(totals) == len(portions):
        raise ShapeError(
            "totals", list(totals), expected="a number for each of one or more letters", remedy="Pass one for each."
        )
    rng = np.random.default_rng(seed)
    rates = [
        float(amount.double().sum()) / portion / total
        for amount, total, portion in zip(amounts, totals, portions, strict=True)
    ]
    replicates = np.mean(
        [
            bootstrap_replicates(amount, total, resamples=resamples, rng=rng) / portion
            for amount, total, portion in zip(amounts, totals, portions, strict=True)
        ],
        axis=0,
    )
    tail = (1 - confidence) / 2
    low, high = np.quantile(replicates, [tail, 1 - tail])
    sizes = [total * portion for total, portion in zip(totals, portions, strict=True)]
    none = [size for size, rate in zip(sizes, rates, strict=True) if rate == 0]
    everything = [size for size, rate in zip(sizes, rates, strict=True) if rate >= 1]
    same = [
        (size, rate)
        for size, rate, amount, total in zip(sizes, rates, amounts, totals, strict=True)
        if 0 < rate < 1 and len(amount) == total and len(amount.unique()) == 1
    ]
    both = _slack([size for size, _ in same], len(sizes), confidence)
    estimate, bound = float(np.mean(rates)), zero_count_bound(sizes, confidence)
    above = _slack(none, len(sizes), confidence) + both * max((1 - rate for _, rate in same), default=0)
    below = _slack(everything, len(sizes), confidence) + both * max((rate for _, rate in same), default=0)
    high = max(float(high), bound, estimate + above)
    low = min(float(low), 1 - bound, estimate - below)
    return min(max(low, 0.0), 1.0), min(high, 1.0)


def _slack(sizes: Sequence[float | int], letters: int, confidence: float) -> float:
    return zero_count_bound(sizes, confidence) * len(sizes) / letters if sizes else 0.0
