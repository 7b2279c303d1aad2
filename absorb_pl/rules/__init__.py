"""The absorption rules, and all that follows from them: verdicts, rates, sensitivity."""

from absorb_pl.rules.evidence import Evidence, Gradients, Projections, stored_scores
from absorb_pl.rules.judgement import Judgement, judge
from absorb_pl.rules.paper import (
    PaperPublishedLettersRule,
    PaperPublishedRule,
    PaperPublishedTokenRule,
    PaperRule,
    PaperSettings,
)
from absorb_pl.rules.rates import RateSettings, letters_table, sae_rates, summary_row
from absorb_pl.rules.registry import RuleChoice, configured_rules, known_rules, register_rule, rule_named
from absorb_pl.rules.rule import AbsorptionRule, Decisions
from absorb_pl.rules.saebench import SaeBench032Rule, SaeBench060Rule, SaeBenchRule, SaeBenchSettings
from absorb_pl.rules.silent_mains import SilentMainsRule, SilentMainsSettings

__all__ = [
    "AbsorptionRule",
    "Decisions",
    "Evidence",
    "Gradients",
    "Judgement",
    "PaperPublishedLettersRule",
    "PaperPublishedRule",
    "PaperPublishedTokenRule",
    "PaperRule",
    "PaperSettings",
    "Projections",
    "RateSettings",
    "RuleChoice",
    "SaeBench032Rule",
    "SaeBench060Rule",
    "SaeBenchRule",
    "SaeBenchSettings",
    "SilentMainsRule",
    "SilentMainsSettings",
    "configured_rules",
    "judge",
    "known_rules",
    "letters_table",
    "register_rule",
    "rule_named",
    "sae_rates",
    "stored_scores",
    "summary_row",
]
