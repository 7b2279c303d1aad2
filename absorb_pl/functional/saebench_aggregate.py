"""SAEBench's own summary of an SAE: means and standard deviations over letters, as its releases compute them."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from absorb_pl.ranges import Count, Fraction, check_ranges


@dataclass(frozen=True)
class SaeBenchAggregate:
    """The figures that SAEBench publishes for an SAE.

    Attributes:
        letters: Numbers of the letters that count, among those given.
        mean_absorption_fraction_score: Mean over letters of summed fraction ÷ probe true positives.
        mean_full_absorption_score: Mean over letters of fully absorbed words ÷ probe true positives.
        mean_num_split_features: Mean number of main latents.
        std_dev_absorption_fraction_score: Sample standard deviation over letters.
        std_dev_full_absorption_score: Sample standard deviation over letters.
        std_dev_num_split_features: Sample standard deviation over letters.
        reason: Why there are no figures; empty if there are.
    """

    letters: tuple[int, ...] = ()
    mean_absorption_fraction_score: float = 0.0
    mean_full_absorption_score: float = 0.0
    mean_num_split_features: float = 0.0
    std_dev_absorption_fraction_score: float = 0.0
    std_dev_full_absorption_score: float = 0.0
    std_dev_num_split_features: float = 0.0
    reason: str = ""


def saebench_aggregate(
    absorption_fractions: Sequence[float],
    full_rates: Sequence[float],
    num_main_latents: Sequence[int],
    num_true_positives: Sequence[int],
    probe_f1: Sequence[float],
    *,
    min_probe_f1: Fraction | None = 0.6,
    min_letters: Count = 20,
) -> SaeBenchAggregate:
    """Sum up letters as SAEBench does.

    Letters without probe true positives have no row in its tables and so never count. Version 0.6.0 leaves out letters
    whose probe has an F1 of at most `min_probe_f1`, and gives no result when fewer than `min_letters` are above it;
    version 0.3.2 averages all letters (`min_probe_f1=None`). `num_split_features` is the number of main latents, not
    that of further ones. Source: `run_eval` and `_aggregate_results_df` of SAEBench's absorption evaluation.

    Args:
        absorption_fractions: Of each letter, summed fraction ÷ probe true positives.
        full_rates: Of each letter, fully absorbed words ÷ probe true positives.
        num_main_latents: Of each letter.
        num_true_positives: Of each letter.
        probe_f1: F1 of each letter's linear probe.
        min_probe_f1: F1 that a letter's probe must exceed.
        min_letters: Least number of such letters.

    Returns:
        The figures, or the reason why there are none.

    Example:
        >>> found = saebench_aggregate([0.2, 0.4], [0.1, 0.1], [1, 2], [9, 9], [0.9, 0.8], min_letters=2)
        >>> round(found.mean_absorption_fraction_score, 3), round(found.std_dev_num_split_features, 3)
        (0.3, 0.707)
        >>> saebench_aggregate([0.2], [0.1], [1], [9], [0.5]).reason
        '0 letters with a probe F1 above 0.6, fewer than 20'
    """
    check_ranges(saebench_aggregate, locals())
    good = [number for number, f1 in enumerate(probe_f1) if min_probe_f1 is None or f1 > min_probe_f1]
    if min_probe_f1 is not None and len(good) < min_letters:
        return SaeBenchAggregate(
            reason=f"{len(good)} letters with a probe F1 above {min_probe_f1:g}, fewer than {min_letters}"
        )
    letters = tuple(number for number in good if num_true_positives[number] > 0)
    if len(letters) < 2:
        return SaeBenchAggregate(reason=f"{len(letters)} letters with probe true positives, fewer than 2")
    fractions, rates, splits = (
        [float(values[number]) for number in letters] for values in (absorption_fractions, full_rates, num_main_latents)
    )
    return SaeBenchAggregate(
        letters=letters,
        mean_absorption_fraction_score=statistics.mean(fractions),
        mean_full_absorption_score=statistics.mean(rates),
        mean_num_split_features=statistics.mean(splits),
        std_dev_absorption_fraction_score=statistics.stdev(fractions),
        std_dev_full_absorption_score=statistics.stdev(rates),
        std_dev_num_split_features=statistics.stdev(splits),
    )
