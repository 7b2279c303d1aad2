"""Evaluators: what SAEs make of words, gathered in predict loops, callbacks and function calls."""

from absorb_pl.evaluators.ablation import AblationEvaluation, AblationEvaluator, AblationSettings, agreement_table
from absorb_pl.evaluators.absorption import AbsorptionEvaluator, AbsorptionInputs
from absorb_pl.evaluators.activations import evaluate_activations
from absorb_pl.evaluators.calculator import (
    AbsorptionResult,
    FeatureAbsorptionCalculator,
    FeatureScore,
    SampledAbsorptionResults,
)
from absorb_pl.evaluators.callbacks import Evaluate
from absorb_pl.evaluators.causal import read_probe_weights
from absorb_pl.evaluators.grading import HookFn, HookGenerator, Hooks, SpellingGrade, SpellingGrader
from absorb_pl.evaluators.k_sparse_table import k_sparse_table
from absorb_pl.evaluators.latent_table import latent_table
from absorb_pl.evaluators.sae_probing import EvaluationRows, SaeProbing, SplitSettings, evaluate_sae
from absorb_pl.evaluators.spelling_sweep import SpellingSetting, SpellingSweep, SpellingSweepData
from absorb_pl.evaluators.writers import PredictionTableWriter, VerdictWriter

__all__ = [
    "AblationEvaluation",
    "AblationEvaluator",
    "AblationSettings",
    "AbsorptionEvaluator",
    "AbsorptionInputs",
    "AbsorptionResult",
    "Evaluate",
    "EvaluationRows",
    "FeatureAbsorptionCalculator",
    "FeatureScore",
    "HookFn",
    "HookGenerator",
    "Hooks",
    "PredictionTableWriter",
    "SaeProbing",
    "SampledAbsorptionResults",
    "SpellingGrade",
    "SpellingGrader",
    "SpellingSetting",
    "SpellingSweep",
    "SpellingSweepData",
    "SplitSettings",
    "VerdictWriter",
    "agreement_table",
    "evaluate_activations",
    "evaluate_sae",
    "k_sparse_table",
    "latent_table",
    "read_probe_weights",
]
