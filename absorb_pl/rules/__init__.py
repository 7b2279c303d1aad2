"""The absorption rules, and all that follows from them: verdicts, rates, sensitivity."""

from absorb_pl.rules.evidence import Carried, Gradients, Projections
from absorb_pl.rules.judgement import Judgement, judge
from absorb_pl.rules.paper import (
    PaperPublishedLettersRule,
    PaperPublishedRule,
    PaperPublishedTokenRule,
    PaperRule,
    PaperSettings,
)
from absorb_pl.rules.rates import RateSettings
from absorb_pl.rules.registry import configured_rules, known_rules, register_rule, rule_named
from absorb_pl.rules.rule import AbsorptionRule, Decisions
from absorb_pl.rules.saebench import SaeBench032Rule, SaeBench060Rule, SaeBenchRule, SaeBenchSettings
from absorb_pl.rules.silent_mains import SilentMainsRule, SilentMainsSettings

from absorb_pl.rules.absorb_pl_1 import AbsorbPl1Rule, AbsorbPl1Settings  # isort: skip

__all__ = [
    "AbsorbPl1Rule",
    "AbsorbPl1Settings",
    "AbsorptionRule",
    "Carried",
    "Decisions",
    "Gradients",
    "Judgement",
    "PaperPublishedLettersRule",
    "PaperPublishedRule",
    "PaperPublishedTokenRule",
    "PaperRule",
    "PaperSettings",
    "Projections",
    "RateSettings",
    "SaeBench032Rule",
    "SaeBench060Rule",
    "SaeBenchRule",
    "SaeBenchSettings",
    "SilentMainsRule",
    "SilentMainsSettings",
    "configured_rules",
    "judge",
    "known_rules",
    "register_rule",
    "rule_named",
]
