"""How well cheap scores of latents (attribution, integrated gradients) foretell the true effects of ablation.

Scores come a pair, (word, latent). Both sides must look the same way: ablation effects are negative where a latent
helps the metric, as integrated-gradient scores towards zero are; attributions (gradient × activation) are positive
there, for they ask how important a latent is and not what is lost without it, and so have to be negated first.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from absorb_pl.functional.validation import require_finite


@dataclass(frozen=True)
class Agreement:
    """Agreement of estimates with true effects.

    Attributes:
        num_pairs: Number of (word, latent) pairs.
        pearson: Linear correlation over all pairs; None if it is undefined.
        spearman: The same of ranks; None if it is undefined.
        sign: Share of pairs whose estimate and effect have the same sign; None without pairs.
        top: Share of words whose most negative latent is the same by estimate and by effect; None without a word
            to rank.
        num_ranked_words: Number of such words, those with two or more latents.
    """

    num_pairs: int
    pearson: float | None
    spearman: float | None
    sign: float | None
    top: float | None
    num_ranked_words: int


def score_agreement(
    estimates: Float[Tensor, " pairs"], effects: Float[Tensor, " pairs"], words: Int[Tensor, " pairs"]
) -> Agreement:
    """All measures of agreement at once.

    Args:
        estimates: Cheap score of each pair, negative where the latent helps.
        effects: True effect of removing the latent.
        words: Which word each pair is of; any numbers.

    Raises:
        NonFiniteError: A value is NaN or infinite.

    Example:
        >>> estimates, effects = torch.tensor([-3.0, -1.0, 0.5, -2.0]), torch.tensor([-4.0, -1.0, 1.0, 2.0])
        >>> found = score_agreement(estimates, effects, torch.tensor([0, 0, 1, 1]))
        >>> found.sign, found.top, found.num_ranked_words
        (0.75, 0.5, 2)
    """
    top, num_ranked = top_agreement(estimates, effects, words)
    return Agreement(
        num_pairs=len(estimates),
        pearson=pearson_correlation(estimates, effects),
        spearman=spearman_correlation(estimates, effects),
        sign=sign_agreement(estimates, effects),
        top=top,
        num_ranked_words=num_ranked,
    )


def pearson_correlation(a: Float[Tensor, " pairs"], b: Float[Tensor, " pairs"]) -> float | None:
    """`Σ (a − ā)(b − b̄) / √(Σ (a − ā)² · Σ (b − b̄)²)`, in float64.

    Args:
        a: Values.
        b: Values of the same pairs.

    Returns:
        The correlation, or None if it is undefined: fewer than two pairs, or all values of a side equal.

    Raises:
        NonFiniteError: A value is NaN or infinite.

    Example:
        >>> pearson_correlation(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 4.0, 6.0]))
        1.0
        >>> pearson_correlation(torch.tensor([1.0, 2.0]), torch.tensor([5.0, 5.0])) is None
        True
    """
    require_finite(a=a, b=b)
    if len(a) < 2 or bool((a == a[0]).all()) or bool((b == b[0]).all()):
        return None
    # Scaling by the largest value first keeps the squares of very small or large ones in range.
    a, b = (x.double() / x.double().abs().max() for x in (a, b))
    a, b = a - a.mean(), b - b.mean()
    return float(((a / a.norm()) @ (b / b.norm())).clamp(-1, 1))


def spearman_correlation(a: Float[Tensor, " pairs"], b: Float[Tensor, " pairs"]) -> float | None:
    """Pearson's correlation of mid-ranks.

    Args:
        a: Values.
        b: Values of the same pairs.

    Returns:
        The correlation, or None if it is undefined: fewer than two pairs, or all values of a side equal.

    Raises:
        NonFiniteError: A value is NaN or infinite.

    Example:
        >>> spearman_correlation(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 10.0, 100.0]))
        1.0
    """
    require_finite(a=a, b=b)
    return pearson_correlation(mid_ranks(a), mid_ranks(b))


def mid_ranks(values: Float[Tensor, " values"]) -> Float[Tensor, " values"]:
    """Ranks from 1, equal values sharing the mean of their places.

    Args:
        values: Values.

    Returns:
        Ranks in float64.

    Example:
        >>> mid_ranks(torch.tensor([5.0, 1.0, 5.0]))
        tensor([2.5000, 1.0000, 2.5000], dtype=torch.float64)
    """
    _, place, counts = values.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts.double() - 1) / 2)[place]


def sign_agreement(estimates: Float[Tensor, " pairs"], effects: Float[Tensor, " pairs"]) -> float | None:
    """Share of pairs whose estimate and effect have the same sign; 0 agrees with 0 only.

    Args:
        estimates: Cheap score of each pair.
        effects: True effect of each pair.

    Returns:
        The share, or None without pairs.

    Raises:
        NonFiniteError: A value is NaN or infinite.

    Example:
        >>> sign_agreement(torch.tensor([-1.0, 2.0]), torch.tensor([-3.0, -0.1]))
        0.5
    """
    require_finite(estimates=estimates, effects=effects)
    if len(estimates) == 0:
        return None
    return float((estimates.sign() == effects.sign()).double().mean())


def top_agreement(
    estimates: Float[Tensor, " pairs"], effects: Float[Tensor, " pairs"], words: Int[Tensor, " pairs"]
) -> tuple[float | None, int]:
    """Share of words whose most negative pair is the same by estimate and by effect.

    Words with a single pair are left out, for they cannot disagree. Of equal values the first pair counts.

    Args:
        estimates: Cheap score of each pair.
        effects: True effect of each pair.
        words: Which word each pair is of; any numbers.

    Returns:
        The share, or None without words of two or more pairs; and the number of such words.

    Raises:
        NonFiniteError: A value is NaN or infinite.

    Example:
        >>> top_agreement(torch.tensor([-3.0, -1.0, 0.5]), torch.tensor([-4.0, 1.0, 1.0]), torch.tensor([7, 7, 8]))
        (1.0, 1)
    """
    require_finite(estimates=estimates, effects=effects)
    _, word, counts = words.unique(return_inverse=True, return_counts=True)
    ranked = counts > 1
    num_ranked = int(ranked.sum())
    if num_ranked == 0:
        return None, 0
    same = _lowest_of_words(estimates, word, len(counts)) == _lowest_of_words(effects, word, len(counts))
    return float(same[ranked].double().mean()), num_ranked


def _lowest_of_words(values: Tensor, word: Tensor, num_words: int) -> Tensor:
    """Number of the first pair with the lowest value of each word."""
    order = values.argsort(stable=True)
    order = order[word[order].argsort(stable=True)]
    starts = torch.bincount(word, minlength=num_words).cumsum(0).roll(1)
    starts[0] = 0
    return order[starts]
