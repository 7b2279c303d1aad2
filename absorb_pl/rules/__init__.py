"""The absorption rules, one a file, and what follows from them: verdicts, rates, sensitivity."""

from absorb_pl.rules.base import (
    AbsorptionRule,
    Decisions,
    Evidence,
    Threshold,
    check_rules_fit,
    configured_rules,
    known_rules,
    register_rule,
    rule_named,
    stored_scores,
    threshold_types,
)
from absorb_pl.rules.children import children_table, with_children
from absorb_pl.rules.paper import Paper, PaperRule
from absorb_pl.rules.paper_variants import PaperPublished, PaperPublishedLetters, PaperPublishedToken
from absorb_pl.rules.rate_tables import FRACTION_COLUMNS, NO_WORDS, RateSettings, letters_table, sae_rates, summary_row
from absorb_pl.rules.saebench import SaeBench, SaeBenchRule
from absorb_pl.rules.saebench_0_3_2 import SaeBench032
from absorb_pl.rules.saebench_0_6_0 import SaeBench060
from absorb_pl.rules.sensitivity import SENSITIVITY_COLUMNS, sensitivity_table
from absorb_pl.rules.verdicts import WORD_COLUMNS, judge_words, order_columns, rate_tables

__all__ = [
    "FRACTION_COLUMNS",
    "NO_WORDS",
    "SENSITIVITY_COLUMNS",
    "WORD_COLUMNS",
    "AbsorptionRule",
    "Decisions",
    "Evidence",
    "Paper",
    "PaperPublished",
    "PaperPublishedLetters",
    "PaperPublishedToken",
    "PaperRule",
    "RateSettings",
    "SaeBench",
    "SaeBench032",
    "SaeBench060",
    "SaeBenchRule",
    "Threshold",
    "check_rules_fit",
    "children_table",
    "configured_rules",
    "judge_words",
    "known_rules",
    "letters_table",
    "order_columns",
    "rate_tables",
    "register_rule",
    "rule_named",
    "sae_rates",
    "sensitivity_table",
    "stored_scores",
    "summary_row",
    "threshold_types",
    "with_children",
]
