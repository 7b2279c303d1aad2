"""The absorption rules, one a file: which words are candidates, what is stored of them, and what follows from it."""

from absorb_pl.evaluators.rules.base import (
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
from absorb_pl.evaluators.rules.paper import Paper, PaperRule
from absorb_pl.evaluators.rules.paper_variants import PaperPublished, PaperPublishedLetters, PaperPublishedToken
from absorb_pl.evaluators.rules.saebench import SaeBench, SaeBenchRule
from absorb_pl.evaluators.rules.saebench_0_3_2 import SaeBench032
from absorb_pl.evaluators.rules.saebench_0_6_0 import SaeBench060

__all__ = [
    "AbsorptionRule",
    "Decisions",
    "Evidence",
    "Paper",
    "PaperPublished",
    "PaperPublishedLetters",
    "PaperPublishedToken",
    "PaperRule",
    "SaeBench",
    "SaeBench032",
    "SaeBench060",
    "SaeBenchRule",
    "Threshold",
    "check_rules_fit",
    "configured_rules",
    "known_rules",
    "register_rule",
    "rule_named",
    "stored_scores",
    "threshold_types",
]
