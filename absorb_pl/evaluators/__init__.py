"""Evaluators: from probes and SAEs to verdicts, rates and the tables that hold them."""

from absorb_pl.evaluators.ablation import (
    ABLATION_COLUMNS,
    ESTIMATES,
    AblationEvaluation,
    AblationEvaluator,
    AblationSettings,
    agreement_table,
)
from absorb_pl.evaluators.absorption import RULE, AbsorptionEvaluator, AbsorptionInputs
from absorb_pl.evaluators.absorption_stage import AbsorptionStage
from absorb_pl.evaluators.calculator import (
    AbsorptionResult,
    FeatureAbsorptionCalculator,
    FeatureScore,
    SampledAbsorptionResults,
)
from absorb_pl.evaluators.callbacks import AbsorptionEvaluation, KSparseEvaluation, LatentEvaluation
from absorb_pl.evaluators.causal import CausalEvaluator, read_probe_weights
from absorb_pl.evaluators.children import children_table, held_out_children, with_children
from absorb_pl.evaluators.k_sparse_table import k_sparse_table, main_latents_by_label
from absorb_pl.evaluators.latent_table import latent_table
from absorb_pl.evaluators.probing_stages import (
    KSparseSettings,
    LinearProbeSettings,
    LinearProbeStage,
    ProbeData,
    SaeProbingStage,
    check_split,
)
from absorb_pl.evaluators.projection_stage import ProjectionStage
from absorb_pl.evaluators.projections import PROJECTION_COLUMNS, score_projections
from absorb_pl.evaluators.rate_tables import (
    FRACTION_COLUMNS,
    NO_WORDS,
    RateSettings,
    letters_table,
    sae_rates,
    summary_row,
)
from absorb_pl.evaluators.rules import (
    AbsorptionRule,
    Decisions,
    Evidence,
    Paper,
    PaperPublished,
    PaperPublishedLetters,
    PaperPublishedToken,
    PaperRule,
    SaeBench,
    SaeBench032,
    SaeBench060,
    SaeBenchRule,
    Threshold,
    check_rules_fit,
    configured_rules,
    known_rules,
    register_rule,
    rule_named,
    stored_scores,
    threshold_types,
)
from absorb_pl.evaluators.sae_probing import EvaluationRows, SaeProbing, SplitSettings, evaluate_sae
from absorb_pl.evaluators.sensitivity import SENSITIVITY_COLUMNS, sensitivity_table
from absorb_pl.evaluators.sources import SaeSource, distinct_saes, tell_equal_saes
from absorb_pl.evaluators.spelling_sweep import SWEEP_COLUMNS, SpellingSetting, SpellingSweep, SpellingSweepData
from absorb_pl.evaluators.verdicts import WORD_COLUMNS, judge_words, order_columns, rate_tables
from absorb_pl.evaluators.writers import PredictionTableWriter, write_table

__all__ = [
    "ABLATION_COLUMNS",
    "ESTIMATES",
    "FRACTION_COLUMNS",
    "NO_WORDS",
    "PROJECTION_COLUMNS",
    "RULE",
    "SENSITIVITY_COLUMNS",
    "SWEEP_COLUMNS",
    "WORD_COLUMNS",
    "AblationEvaluation",
    "AblationEvaluator",
    "AblationSettings",
    "AbsorptionEvaluation",
    "AbsorptionEvaluator",
    "AbsorptionInputs",
    "AbsorptionResult",
    "AbsorptionRule",
    "AbsorptionStage",
    "CausalEvaluator",
    "Decisions",
    "EvaluationRows",
    "Evidence",
    "FeatureAbsorptionCalculator",
    "FeatureScore",
    "KSparseEvaluation",
    "KSparseSettings",
    "LatentEvaluation",
    "LinearProbeSettings",
    "LinearProbeStage",
    "Paper",
    "PaperPublished",
    "PaperPublishedLetters",
    "PaperPublishedToken",
    "PaperRule",
    "PredictionTableWriter",
    "ProbeData",
    "ProjectionStage",
    "RateSettings",
    "SaeBench",
    "SaeBench032",
    "SaeBench060",
    "SaeBenchRule",
    "SaeProbing",
    "SaeProbingStage",
    "SaeSource",
    "SampledAbsorptionResults",
    "SpellingSetting",
    "SpellingSweep",
    "SpellingSweepData",
    "SplitSettings",
    "Threshold",
    "agreement_table",
    "check_rules_fit",
    "check_split",
    "children_table",
    "configured_rules",
    "distinct_saes",
    "evaluate_sae",
    "held_out_children",
    "judge_words",
    "k_sparse_table",
    "known_rules",
    "latent_table",
    "letters_table",
    "main_latents_by_label",
    "order_columns",
    "rate_tables",
    "read_probe_weights",
    "register_rule",
    "rule_named",
    "sae_rates",
    "score_projections",
    "sensitivity_table",
    "stored_scores",
    "summary_row",
    "tell_equal_saes",
    "threshold_types",
    "with_children",
    "write_table",
]
