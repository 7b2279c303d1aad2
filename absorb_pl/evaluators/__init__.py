"""Evaluators: from probes and SAEs to verdicts, rates and the tables that hold them."""

from absorb_pl.evaluators.absorption import AbsorptionEvaluator, AbsorptionInputs, PaperRule
from absorb_pl.evaluators.calculator import (
    AbsorptionResult,
    FeatureAbsorptionCalculator,
    FeatureScore,
    SampledAbsorptionResults,
)
from absorb_pl.evaluators.k_sparse_table import k_sparse_logits, k_sparse_table, main_latents_by_label
from absorb_pl.evaluators.latent_table import latent_table
from absorb_pl.evaluators.rate_tables import RateSettings, letters_table, summary_row
from absorb_pl.evaluators.writers import PredictionTableWriter, write_table

__all__ = [
    "AbsorptionEvaluator",
    "AbsorptionInputs",
    "AbsorptionResult",
    "FeatureAbsorptionCalculator",
    "FeatureScore",
    "PaperRule",
    "PredictionTableWriter",
    "RateSettings",
    "SampledAbsorptionResults",
    "k_sparse_logits",
    "k_sparse_table",
    "latent_table",
    "letters_table",
    "main_latents_by_label",
    "summary_row",
    "write_table",
]
