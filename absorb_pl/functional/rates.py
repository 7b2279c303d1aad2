"""Absorption rates of letters and of a whole SAE, with their intervals and the reasons why there is none."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float, Int
from torch import Tensor

from absorb_pl.errors import ShapeError
from absorb_pl.functional.intervals import (
    clopper_pearson,
    combine_repeats,
    design_effect,
    gamma_interval,
    letter_variance,
)
from absorb_pl.functional.validation import require_finite
from absorb_pl.ranges import CountOrZero, Fraction, InnerFraction, Portion, check_ranges

LettersMode = Literal["counted", "published"]
"""What letters without candidate words count for: nothing absorbed (`counted`), or they are left out."""


NEVER_FIRES = "no latent of the SAE fires on any held-out word"
"""Why an SAE that is silent throughout has no rate."""


@dataclass(frozen=True)
class LetterOutcome:
    """What was found on the words of one letter (one class of a task).

    Attributes:
        amounts: Absorbed amount of each judged word: 0 or 1 for verdicts, a fraction for SAEBench's.
        num_true_positives: The class's words on which the linear probe is right.
        sample_portion: Judged words ÷ candidates.
        probe_f1: F1 of the linear probe on the class, if it should be held against a minimum.
        min_probe_f1: Least F1 at which the letter can be evaluated.
        sae_fires: Whether any latent of the SAE fires on any word; one that is silent throughout absorbs nothing and
            holds nothing, so it has no rate.
        absorbers: The latent that absorbs each absorbed word, if it is known.

    Raises:
        ShapeError: Amounts outside [0, 1], or more judged words than true positives.
        NonFiniteError: An amount is NaN or infinite.

    Example:
        >>> import torch
        >>> LetterOutcome(torch.tensor([1.0, 0.0]), num_true_positives=20, probe_f1=0.5).reason
        'probe F1 0.500 is below 0.6'
    """

    amounts: Float[Tensor, " words"]
    num_true_positives: CountOrZero
    sample_portion: Portion = 1.0
    probe_f1: float | None = None
    min_probe_f1: Fraction = 0.6
    sae_fires: bool = True
    absorbers: Int[Tensor, " absorbed"] | None = None

    def __post_init__(self) -> None:
        check_ranges(LetterOutcome, vars(self))
        require_finite(amounts=self.amounts)
        if bool(((self.amounts < 0) | (self.amounts > 1)).any()):
            raise ShapeError(
                "amounts", self.amounts.tolist()[:10], expected="values from 0 to 1", remedy="Pass verdicts."
            )
        if len(self.amounts) > self.num_true_positives:
            raise ShapeError(
                "amounts",
                f"{len(self.amounts)} judged words",
                expected=f"at most the {self.num_true_positives} probe true positives",
                remedy="Judge only words on which the linear probe is right.",
            )

    @property
    def reason(self) -> str:
        """Why the letter cannot be evaluated; empty if it can."""
        if not self.sae_fires:
            return NEVER_FIRES
        if self.num_true_positives == 0:
            return "no probe true positives"
        if self.probe_f1 is not None and not self.probe_f1 >= self.min_probe_f1:
            return f"probe F1 {self.probe_f1:.3f} is below {self.min_probe_f1:g}"
        return ""

    @property
    def num_absorbed(self) -> float:
        """Absorbed words, scaled up from the judged sample to all candidates."""
        return float(self.amounts.double().sum()) / self.sample_portion


@dataclass(frozen=True)
class Rate:
    """An absorption rate with its interval, or the reason why there is none.

    Attributes:
        value: The rate; `None` if not evaluable.
        ci_low: Lower end of the interval; `None` if not evaluable.
        ci_high: Upper end; `None` if not evaluable.
        num_words: Probe true positives the rate rests on.
        reason: Why it is not evaluable; empty if it is.
        se_words: Standard error from the words, each by itself; `None` if not evaluable.
        se_absorbers: From latents that absorb several words.
        se_sampling: From judging a sample of the candidates.
        se_selection: From the choice of words and seeds, if the rate is a mean over repeats.
        one_more: What one more absorbed word would add, mean over letters; `None` if not evaluable.

    Example:
        >>> Rate(None, None, None, 0, "no probe true positives").evaluable
        False
    """

    value: float | None
    ci_low: float | None
    ci_high: float | None
    num_words: int
    reason: str = ""
    se_words: float | None = None
    se_absorbers: float | None = None
    se_sampling: float | None = None
    se_selection: float | None = None
    one_more: float | None = None

    @property
    def variance(self) -> float:
        """The variance from all sources that are known; 0 if not evaluable."""
        sources = self.se_words, self.se_absorbers, self.se_sampling, self.se_selection
        return float(sum(source**2 for source in sources if source is not None))

    @property
    def evaluable(self) -> bool:
        """Whether there is a rate."""
        return self.value is not None


def letter_rate(letter: LetterOutcome, *, confidence: InnerFraction = 0.95) -> Rate:
    """Absorption rate of one letter: absorbed ÷ sample portion ÷ probe true positives.

    As the published `_aggregate_results_df` computes it (arXiv 2409.14507, section 5).

    Args:
        letter: The letter's outcome.
        confidence: Level of the interval.

    Returns:
        The rate; not evaluable without true positives or with a poor probe.

    Example:
        >>> import torch
        >>> outcome = LetterOutcome(torch.tensor([1.0, 0.0]), num_true_positives=10, sample_portion=0.5)
        >>> letter_rate(outcome).value
        0.2
    """
    check_ranges(letter_rate, locals())
    return _weighted_rate([letter], [1.0], letter.reason, confidence)


def sae_rate(
    letters: Sequence[LetterOutcome],
    *,
    mode: LettersMode = "counted",
    confidence: InnerFraction = 0.95,
    pooled: bool = False,
) -> Rate:
    """Absorption rate of an SAE: the mean over its evaluable letters, or over their words.

    A letter without candidate words absorbed nothing and counts as 0. The published aggregate never sees such
    letters, since its table has one row per judged word; `mode="published"` leaves them out as well.

    Args:
        letters: The letters' outcomes.
        mode: All evaluable letters (`"counted"`), or only those with judged words (`"published"`).
        confidence: Level of the interval.
        pooled: Weigh letters by their words, so that all words count the same.

    Returns:
        The rate; not evaluable if no letter is.

    Example:
        >>> import torch
        >>> a = LetterOutcome(torch.tensor([1.0]), num_true_positives=4)
        >>> b = LetterOutcome(torch.tensor([]), num_true_positives=6)
        >>> sae_rate([a, b]).value, sae_rate([a, b], mode="published").value, sae_rate([a, b], pooled=True).value
        (0.125, 0.25, 0.1)
    """
    check_ranges(sae_rate, locals())
    counted = [letter for letter in letters if not letter.reason]
    reason = "" if counted else "no evaluable label"
    if any(letter.reason == NEVER_FIRES for letter in letters):
        reason = NEVER_FIRES
    if mode == "published":
        counted = [letter for letter in counted if len(letter.amounts)]
        reason = reason or ("no label with candidate words" if not counted else "")
    sizes = [letter.num_true_positives if pooled else 1 for letter in counted]
    return _weighted_rate(counted, [size / sum(sizes) for size in sizes], reason, confidence)


def _weighted_rate(letters: Sequence[LetterOutcome], weights: Sequence[float], reason: str, confidence: float) -> Rate:
    words = sum(letter.num_true_positives for letter in letters)
    if reason:
        return Rate(None, None, None, words, reason)
    rate = sum(
        weight * letter.num_absorbed / letter.num_true_positives
        for weight, letter in zip(weights, letters, strict=True)
    )
    effect = design_effect([letter.absorbers for letter in letters if letter.absorbers is not None])
    parts = [
        letter_variance(letter.amounts, letter.num_true_positives, letter.sample_portion, effect) for letter in letters
    ]
    rate = sum(weight * part.rate for weight, part in zip(weights, parts, strict=True))
    variances = [
        sum(weight**2 * getattr(part, source) for weight, part in zip(weights, parts, strict=True))
        for source in ("words", "absorbers", "sampling")
    ]
    one_more = sum(weight * part.one_more for weight, part in zip(weights, parts, strict=True)) / len(letters)
    if len(letters) == 1 and effect == 1 and _counted_whole(letters[0]):
        low, high = clopper_pearson(round(letters[0].num_absorbed), words, confidence)
    else:
        low, high = gamma_interval(min(1.0, max(0.0, rate)), sum(variances), one_more, confidence)
    errors = (math.sqrt(variance) for variance in variances)
    return Rate(rate, low, high, words, "", *errors, one_more=one_more)


def repeated_rate(repeats: Sequence[Rate], *, confidence: InnerFraction = 0.95) -> Rate:
    """Mean of a rate over repeats with other splits and seeds, with an interval that holds what they add.

    The variance is that of `combine_repeats`; the interval is the gamma distribution's, widened by as much as
    Student's quantile exceeds the normal one.

    Args:
        repeats: The rate in each repeat.
        confidence: Level of the interval.

    Returns:
        The mean; not evaluable if a repeat is not, with its reason. Of a single repeat its own interval.

    Raises:
        ShapeError: There is no repeat.

    Example:
        >>> import torch
        >>> rates = [letter_rate(LetterOutcome(torch.ones(count), 40)) for count in (4, 8, 6)]
        >>> found = repeated_rate(rates)
        >>> round(found.value, 2), round(found.se_selection, 3), round(found.ci_low, 3), round(found.ci_high, 3)
        (0.15, 0.058, 0.024, 0.416)
    """
    check_ranges(repeated_rate, locals())
    if repeats and (bad := next((rate for rate in repeats if not rate.evaluable), None)):
        return bad
    values = [rate.value or 0.0 for rate in repeats]
    mean, variance, quantile = combine_repeats(values, [rate.variance for rate in repeats], confidence)
    if len(repeats) == 1:
        return repeats[0]
    within = sum(rate.variance for rate in repeats) / len(repeats)
    _, _, normal = combine_repeats([mean], [0.0], confidence)
    one_more = sum(rate.one_more or 0.0 for rate in repeats) / len(repeats)
    low, high = gamma_interval(mean, variance * (quantile / normal) ** 2, one_more, confidence)
    errors = [
        math.sqrt(sum((getattr(rate, name) or 0.0) ** 2 for rate in repeats) / len(repeats))
        for name in ("se_words", "se_absorbers", "se_sampling")
    ]
    return Rate(
        mean,
        low,
        high,
        round(sum(rate.num_words for rate in repeats) / len(repeats)),
        "",
        *errors,
        se_selection=math.sqrt(max(0.0, variance - within)),
        one_more=one_more,
    )


def _counted_whole(letter: LetterOutcome) -> bool:
    """Whether a letter's absorbed words were counted, none by a sample and none in part."""
    return letter.sample_portion == 1 and bool(((letter.amounts == 0) | (letter.amounts == 1)).all())
