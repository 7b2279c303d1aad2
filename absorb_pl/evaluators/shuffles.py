"""Rates of an SAE's shuffled copies: what a rule says when latents fire as they do but point elsewhere.

A copy fires exactly as the SAE does, so L0, k-sparse probes and main latents are the SAE's own, and many copies cost no
more than gathering evidence again.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import pandas as pd

from absorb_pl.errors import RangeError, RuleError
from absorb_pl.evaluators.evaluation import gather_from_rows
from absorb_pl.evaluators.sae_probing import EvaluationRows
from absorb_pl.functional.excess import excess_over_shuffles
from absorb_pl.ranges import Range
from absorb_pl.rules.evidence import Gradients
from absorb_pl.rules.judgement import rates_of_rule
from absorb_pl.rules.rates import RateSettings, sae_rates
from absorb_pl.rules.registry import rules_without_model
from absorb_pl.rules.rule import AbsorptionRule
from absorb_pl.saes.controls import control_sae
from absorb_pl.saes.interface import SparseAutoencoder
from absorb_pl.saes.scale import to_unit_norms, unwrapped_sae
from absorb_pl.schema import SHUFFLES, dtypes

Copies = Annotated[int, Range(0, 100_000)]
"""How many copies; none, or two and more."""
AMOUNTS = {
    "absorption_rate": ("ci_low", "ci_high"),
    "absorption_fraction": ("fraction_ci_low", "fraction_ci_high"),
}
"""What is held against shuffled copies, with the columns of its interval."""


def check_shuffles(copies: int, rules: Sequence[AbsorptionRule]) -> None:
    """Refuse a single copy, and rules none of which can judge copies.

    Args:
        copies: Number of copies.
        rules: The rules.

    Raises:
        RangeError: There is one copy.
        RuleError: All rules need gradients.
    """
    if copies == 1:
        raise RangeError("shuffles", 1, expected="0, or 2 and more", remedy="Take 19, for a p-value of 0.05.")
    if copies and all(rule.evidence is Gradients for rule in rules):
        raise RuleError(
            "shuffles",
            ", ".join(rule.name for rule in rules),
            expected="a rule that activations are enough for among the rules, as `shuffles` judges by those",
            remedy=f"Add one of {', '.join(rules_without_model())}, or leave `shuffles` out.",
        )


def shuffled_rates(
    sae: SparseAutoencoder,
    rows: EvaluationRows,
    letters: pd.DataFrame,
    rules: Sequence[AbsorptionRule],
    copies: int,
    rates: RateSettings | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Judge copies of an SAE whose decoder rows were shuffled (`control_sae`), by rules that need no model.

    Args:
        sae: The SAE.
        rows: The held-out words.
        letters: From `evaluate_sae`; its main latents are those of the copies too.
        rules: The rules; those that need gradients are left out.
        copies: Number of copies.
        rates: How rates are summed up.
        seed: Seed of the first copy; the others count up from it.

    Returns:
        One row per copy and rule: `rule, copy, absorption_rate, absorption_fraction`; missing where not evaluable.

    Raises:
        SaeArchitectureError: The SAE's decoder rows cannot be shuffled.
    """
    found = []
    for copy in range(copies):
        shuffled = to_unit_norms(control_sae(unwrapped_sae(sae), "shuffled_decoder", seed + copy), in_place=True)
        evidence: dict[Any, pd.DataFrame] = {}
        for rule in rules:
            if isinstance(rule.needs, Gradients):
                continue
            if rule.needs not in evidence:
                evidence[rule.needs] = gather_from_rows(shuffled, rows, letters, rule.needs)
            words = rule.judge(evidence[rule.needs])
            of_copy = sae_rates(rule.count_candidates(letters), words, rates_of_rule(rule, rates))
            found.append({"rule": rule.name, "copy": copy, **{amount: of_copy[amount] for amount in AMOUNTS}})
    return pd.DataFrame(found, columns=["rule", "copy", *AMOUNTS])


def shuffles_table(shuffled: pd.DataFrame, figures: Sequence[Mapping[str, Any]], confidence: float) -> pd.DataFrame:
    """Hold an SAE's rates against those of its shuffled copies.

    Args:
        shuffled: From `shuffled_rates`.
        figures: The SAE's rates by each rule, as in the summary.
        confidence: Level of the intervals; a rate exceeds its copies if its p-value is at most 1 less this.

    Returns:
        The columns of `absorb_pl.schema.SHUFFLES` but for the SAE's name, a row per rule and amount that has a rate.
    """
    found = []
    for row in figures:
        copies = shuffled[shuffled["rule"] == row["rule"]]
        for amount, (low, high) in AMOUNTS.items():
            values = copies[amount].dropna().tolist()
            if len(values) < 2 or pd.isna(row[amount]):
                continue
            excess = excess_over_shuffles(row[amount], row[low], row[high], values, confidence)
            found.append(
                {
                    "rule": row["rule"],
                    "amount": amount,
                    "value": row[amount],
                    "copies": len(values),
                    "shuffled_mean": excess.shuffled_mean,
                    "shuffled_rates": values,
                    "excess": excess.value,
                    "excess_ci_low": excess.ci_low,
                    "excess_ci_high": excess.ci_high,
                    "p_value": excess.p_value,
                    "exceeds": excess.p_value <= 1 - confidence + 1e-12,
                }
            )
    columns = {name: column for name, column in SHUFFLES.items() if name != "sae"}
    return pd.DataFrame(found, columns=list(columns)).astype(dtypes(columns))
