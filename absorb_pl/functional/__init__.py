"""The mathematics on tensors alone: no model, no files, no training loop.

Every number that a study reports is defined here, with its formula and source.
"""

from absorb_pl.functional.absorption import (
    SILENT,
    gradient_scores,
    most_negative_latents,
    paper_candidates,
    paper_conditions,
    paper_decisions,
    sample_candidates,
    written_cosines,
)
from absorb_pl.functional.agreement import score_agreement
from absorb_pl.functional.answer_metric import letter_metric
from absorb_pl.functional.hedging import hedging_degree
from absorb_pl.functional.k_sparse import DEFAULT_KS, k_sparse_logits, rank_latents, solve_k_sparse
from absorb_pl.functional.latents import LATENT_DECISION_THRESHOLD, latent_scores, top_latents_by_encoder
from absorb_pl.functional.linear_optimum import minimise_probe_loss
from absorb_pl.functional.metrics import auroc, binary_metrics, optimal_f1_threshold
from absorb_pl.functional.probe_loss import probe_loss
from absorb_pl.functional.projection import probe_projection, projection_scores
from absorb_pl.functional.rates import LetterOutcome, Rate, letter_rate, sae_rate
from absorb_pl.functional.sae_stats import SaeStatistics
from absorb_pl.functional.saebench import (
    fraction_by_absorbers,
    fraction_by_all,
    full_absorption,
    full_absorption_conditions,
)
from absorb_pl.functional.saebench_aggregate import saebench_aggregate
from absorb_pl.functional.similarity import cosine_similarity_matrix
from absorb_pl.functional.splits import main_latents

__all__ = [
    "DEFAULT_KS",
    "LATENT_DECISION_THRESHOLD",
    "SILENT",
    "LetterOutcome",
    "Rate",
    "SaeStatistics",
    "auroc",
    "binary_metrics",
    "cosine_similarity_matrix",
    "fraction_by_absorbers",
    "fraction_by_all",
    "full_absorption",
    "full_absorption_conditions",
    "gradient_scores",
    "hedging_degree",
    "k_sparse_logits",
    "latent_scores",
    "letter_metric",
    "letter_rate",
    "main_latents",
    "minimise_probe_loss",
    "most_negative_latents",
    "optimal_f1_threshold",
    "paper_candidates",
    "paper_conditions",
    "paper_decisions",
    "probe_loss",
    "probe_projection",
    "projection_scores",
    "rank_latents",
    "sae_rate",
    "saebench_aggregate",
    "sample_candidates",
    "score_agreement",
    "solve_k_sparse",
    "top_latents_by_encoder",
    "written_cosines",
]
