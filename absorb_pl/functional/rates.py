"""Absorption rates of letters and of a whole SAE, with their intervals and the reasons why there is none."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from absorb_pl.errors import ShapeError
from absorb_pl.functional.bootstrap import bootstrap_interval
from absorb_pl.functional.validation import require_finite
from absorb_pl.ranges import CountOrZero, Fraction, InnerFraction, Portion, Resamples, Seed, check_ranges

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
        ci_low: Lower end of the bootstrap interval; `None` if not evaluable.
        ci_high: Upper end; `None` if not evaluable.
        num_words: Probe true positives the rate rests on.
        reason: Why it is not evaluable; empty if it is.

    Example:
        >>> Rate(None, None, None, 0, "no probe true positives").evaluable
        False
    """

    value: float | None
    ci_low: float | None
    ci_high: float | None
    num_words: int
    reason: str = ""

    @property
    def evaluable(self) -> bool:
        """Whether there is a rate."""
        return self.value is not None


def letter_rate(
    letter: LetterOutcome, *, confidence: InnerFraction = 0.95, resamples: Resamples = 2000, seed: Seed = 0
) -> Rate:
    """Absorption rate of one letter: absorbed ÷ sample portion ÷ probe true positives.

    As the published `_aggregate_results_df` computes it (arXiv 2409.14507, section 5).

    Args:
        letter: The letter's outcome.
        confidence: Level of the bootstrap interval.
        resamples: Bootstrap replicates.
        seed: Seed of the bootstrap.

    Returns:
        The rate; not evaluable without true positives or with a poor probe.

    Example:
        >>> import torch
        >>> outcome = LetterOutcome(torch.tensor([1.0, 0.0]), num_true_positives=10, sample_portion=0.5)
        >>> letter_rate(outcome).value
        0.2
    """
    check_ranges(letter_rate, locals())
    return _mean_rate([letter], letter.reason, confidence, resamples, seed)


def sae_rate(
    letters: Sequence[LetterOutcome],
    *,
    mode: LettersMode = "counted",
    confidence: InnerFraction = 0.95,
    resamples: Resamples = 2000,
    seed: Seed = 0,
) -> Rate:
    """Absorption rate of an SAE: the mean over its evaluable letters.

    A letter without candidate words absorbed nothing and counts as 0. The published aggregate never sees such
    letters, since its table has one row per judged word; `mode="published"` leaves them out as well.

    Args:
        letters: The letters' outcomes.
        mode: All evaluable letters (`"counted"`), or only those with judged words (`"published"`).
        confidence: Level of the bootstrap interval.
        resamples: Bootstrap replicates.
        seed: Seed of the bootstrap.

    Returns:
        The rate; not evaluable if no letter is.

    Example:
        >>> import torch
        >>> a = LetterOutcome(torch.tensor([1.0]), num_true_positives=4)
        >>> b = LetterOutcome(torch.tensor([]), num_true_positives=4)
        >>> sae_rate([a, b]).value, sae_rate([a, b], mode="published").value
        (0.125, 0.25)
    """
    check_ranges(sae_rate, locals())
    counted = [letter for letter in letters if not letter.reason]
    reason = "" if counted else "no evaluable label"
    if any(letter.reason == NEVER_FIRES for letter in letters):
        reason = NEVER_FIRES
    if mode == "published":
        counted = [letter for letter in counted if len(letter.amounts)]
        reason = reason or ("no label with candidate words" if not counted else "")
    return _mean_rate(counted, reason, confidence, resamples, seed)


def _mean_rate(letters: Sequence[LetterOutcome], reason: str, confidence: float, resamples: int, seed: int) -> Rate:
    words = sum(letter.num_true_positives for letter in letters)
    if reason:
        return Rate(None, None, None, words, reason)
    rates = [letter.num_absorbed / letter.num_true_positives for letter in letters]
    low, high = bootstrap_interval(
        [letter.amounts for letter in letters],
        [letter.num_true_positives for letter in letters],
        [letter.sample_portion for letter in letters],
        confidence=confidence,
        resamples=resamples,
        seed=seed,
    )
    return Rate(sum(rates) / len(rates), low, high, words)
