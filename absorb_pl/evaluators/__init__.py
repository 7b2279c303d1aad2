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
from absorb_pl.evaluators.calculator import (
    AbsorptionResult,
    FeatureAbsorptionCalculator,
    FeatureScore,
    SampledAbsorptionResults,
)
from absorb_pl.evaluators.callbacks import AbsorptionEvaluation, KSparseEvaluation, LatentEvaluation
from absorb_pl.evaluators.causal import CausalEvaluator, read_probe_weights
from absorb_pl.evaluators.grading import HookFn, HookGenerator, Hooks, SpellingGrade, SpellingGrader
from absorb_pl.evaluators.k_sparse_table import k_sparse_table, main_latents_by_label
from absorb_pl.evaluators.latent_table import latent_table
from absorb_pl.evaluators.projections import PROJECTION_COLUMNS, score_projections
from absorb_pl.evaluators.sae_probing import EvaluationRows, SaeProbing, SplitSettings, evaluate_sae
from absorb_pl.evaluators.spelling_sweep import SWEEP_COLUMNS, SpellingSetting, SpellingSweep, SpellingSweepData
from absorb_pl.evaluators.writers import PredictionTableWriter, write_table

__all__ = [
    "ABLATION_COLUMNS",
    "ESTIMATES",
    "PROJECTION_COLUMNS",
    "RULE",
    "SWEEP_COLUMNS",
    "AblationEvaluation",
    "AblationEvaluator",
    "AblationSettings",
    "AbsorptionEvaluation",
    "AbsorptionEvaluator",
    "AbsorptionInputs",
    "AbsorptionResult",
    "CausalEvaluator",
    "EvaluationRows",
    "FeatureAbsorptionCalculator",
    "FeatureScore",
    "HookFn",
    "HookGenerator",
    "Hooks",
    "KSparseEvaluation",
    "LatentEvaluation",
    "PredictionTableWriter",
    "SaeProbing",
    "SampledAbsorptionResults",
    "SpellingGrade",
    "SpellingGrader",
    "SpellingSetting",
    "SpellingSweep",
    "SpellingSweepData",
    "SplitSettings",
    "agreement_table",
    "evaluate_sae",
    "k_sparse_table",
    "latent_table",
    "main_latents_by_label",
    "read_probe_weights",
    "score_projections",
    "write_table",
]
