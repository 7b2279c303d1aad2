"""From evidence to all that a rule says of one SAE: verdicts, rates with their intervals, and how they depend on it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import pandas as pd

from absorb_pl.rules.rates import RateSettings, full_rate, letters_table, summary_row
from absorb_pl.rules.rule import AbsorptionRule
from absorb_pl.rules.sensitivity import sensitivity_table


@dataclass(frozen=True)
class Judgement:
    """What a rule says of one SAE.

    Attributes:
        words: Verdicts, one row per word, with the evidence they rest on.
        figures: The SAE's row of the summary.
        rule: The rule.
        evidence: What it judged.
        classes: The classes with their words, as the rule counts them.
        class_names: All classes of the task.
        rates: How rates are summed up.
    """

    words: pd.DataFrame
    figures: Mapping[str, Any]
    rule: AbsorptionRule
    evidence: pd.DataFrame
    classes: pd.DataFrame
    class_names: Sequence[str]
    rates: RateSettings

    @cached_property
    def letters(self) -> pd.DataFrame:
        """Rates, one row per class."""
        return letters_table(self.classes, self.words, self.rule.name, self.rates, self.class_names)

    @cached_property
    def sensitivity(self) -> pd.DataFrame:
        """Rates at other values of one threshold at a time."""
        return sensitivity_table(self.rule, self.evidence, self.letters, self.figures["letters"])


def rates_of_rule(rule: AbsorptionRule, rates: RateSettings | None = None) -> RateSettings:
    """How rates are summed up for a rule, which may say itself what classes without candidates count for.

    Args:
        rule: The rule.
        rates: How rates are summed up otherwise.
    """
    rates = rates or RateSettings()
    return replace(rates, letters=rule.letters or rates.letters)


def judge(
    rule: AbsorptionRule,
    evidence: pd.DataFrame,
    letters: pd.DataFrame,
    latents: pd.DataFrame,
    rates: RateSettings | None = None,
    class_names: Sequence[str] = (),
    one_main: pd.DataFrame | None = None,
) -> Judgement:
    """Apply a rule to the evidence on one SAE.

    Args:
        rule: The rule.
        evidence: One row per word, as `rule.needs` asks for.
        letters: From `evaluate_sae`.
        latents: From `latent_table`.
        rates: How rates are summed up.
        class_names: All classes of the task; those missing from `letters` get a row that says why.
        one_main: The same evidence with each class's first main latent alone, for the rate that would be without the
            others; there is none when None.

    Example:
        >>> from absorb_pl.rules import rule_named
        >>> evidence = pd.DataFrame({"row": [0, 1], "label": "a", "main_max": [0.0, 2.0]})
        >>> letters = pd.DataFrame({
        ...     "label": ["a"], "main_latents": [[3]], "num_splits": 0, "num_probe_true_positives": 2, "num_words": 2,
        ...     "probe_f1": 1.0, "probe_precision": 1.0, "probe_recall": 1.0, "main_latent_recall": 0.5})
        >>> latents = pd.DataFrame({"rank": [0], "f1": 0.5, "precision": 0.5, "recall": 0.5})
        >>> found = judge(rule_named("silent-mains")(), evidence, letters, latents)
        >>> found.words["is_absorption"].tolist(), found.figures["absorption_rate"]
        ([True, False], 0.5)
    """
    rates = rates_of_rule(rule, rates)
    words = rule.judge(evidence)
    letters = rule.count_candidates(letters)
    figures = {
        "rule": rule.name,
        "positive_token": getattr(rule.settings, "positive_token", None),
        "letters": rates.letters,
        **summary_row(letters, words, latents, rates),
        "rate_one_main": _rate_one_main(rule, letters, one_main, rates),
    }
    return Judgement(words, figures, rule, evidence, letters, class_names, rates)


def _rate_one_main(
    rule: AbsorptionRule, letters: pd.DataFrame, one_main: pd.DataFrame | None, rates: RateSettings
) -> float:
    if one_main is None:
        return float("nan")
    rate = full_rate(letters, rule.judge(one_main), rates)
    return float("nan") if rate.value is None else rate.value
