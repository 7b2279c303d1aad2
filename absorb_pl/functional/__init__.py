"""The mathematics on tensors alone: no model, no files, no training loop.

Every number that a study reports is defined here, with its formula and source.
"""

from absorb_pl.functional.absorption import (
    SILENT,
    GradientScores,
    gradient_scores,
    most_negative_latents,
    paper_candidates,
    paper_decisions,
    sample_candidates,
    written_cosines,
)
from absorb_pl.functional.agreement import (
    Agreement,
    mid_ranks,
    pearson_correlation,
    score_agreement,
    sign_agreement,
    spearman_correlation,
    top_agreement,
)
from absorb_pl.functional.answer_metric import letter_metric
from absorb_pl.functional.bootstrap import bootstrap_interval, bootstrap_replicates, zero_count_bound
from absorb_pl.functional.k_sparse import (
    DEFAULT_KS,
    KSparseSolution,
    check_ks,
    k_sparse_logits,
    rank_latents,
    solve_k_sparse,
)
from absorb_pl.functional.latents import LATENT_DECISION_THRESHOLD, latent_scores, top_latents_by_encoder
from absorb_pl.functional.linear_optimum import minimise_probe_loss
from absorb_pl.functional.logistic import balanced_row_weights, newton_logistic, solve_logistic_regressions
from absorb_pl.functional.metrics import BinaryMetrics, auroc, binary_metrics, optimal_f1_threshold
from absorb_pl.functional.precision import at_least_float32
from absorb_pl.functional.probe_loss import l1_penalty, learnable_classes, positive_weights, probe_loss
from absorb_pl.functional.projection import (
    ProjectionScores,
    fold_decoder_norms,
    may_absorb,
    probe_projection,
    projection_scores,
)
from absorb_pl.functional.rates import NEVER_FIRES, LetterOutcome, LettersMode, Rate, letter_rate, sae_rate
from absorb_pl.functional.sae_stats import SaeStatistics
from absorb_pl.functional.saebench import (
    SaeBenchVerdicts,
    SaeBenchVersion,
    fraction_by_absorbers,
    fraction_by_all,
    full_absorption,
    saebench_verdicts,
)
from absorb_pl.functional.saebench_aggregate import SaeBenchAggregate, saebench_aggregate
from absorb_pl.functional.similarity import cosine_similarity_matrix, unit_rows
from absorb_pl.functional.splits import main_latents
from absorb_pl.functional.validation import require_finite, require_latents, require_two_sided

__all__ = [
    "DEFAULT_KS",
    "LATENT_DECISION_THRESHOLD",
    "NEVER_FIRES",
    "SILENT",
    "Agreement",
    "BinaryMetrics",
    "GradientScores",
    "KSparseSolution",
    "LetterOutcome",
    "LettersMode",
    "ProjectionScores",
    "Rate",
    "SaeBenchAggregate",
    "SaeBenchVerdicts",
    "SaeBenchVersion",
    "SaeStatistics",
    "at_least_float32",
    "auroc",
    "balanced_row_weights",
    "binary_metrics",
    "bootstrap_interval",
    "bootstrap_replicates",
    "check_ks",
    "cosine_similarity_matrix",
    "fold_decoder_norms",
    "fraction_by_absorbers",
    "fraction_by_all",
    "full_absorption",
    "gradient_scores",
    "k_sparse_logits",
    "l1_penalty",
    "latent_scores",
    "learnable_classes",
    "letter_metric",
    "letter_rate",
    "main_latents",
    "may_absorb",
    "mid_ranks",
    "minimise_probe_loss",
    "most_negative_latents",
    "newton_logistic",
    "optimal_f1_threshold",
    "paper_candidates",
    "paper_decisions",
    "pearson_correlation",
    "positive_weights",
    "probe_loss",
    "probe_projection",
    "projection_scores",
    "rank_latents",
    "require_finite",
    "require_latents",
    "require_two_sided",
    "sae_rate",
    "saebench_aggregate",
    "saebench_verdicts",
    "sample_candidates",
    "score_agreement",
    "sign_agreement",
    "solve_k_sparse",
    "solve_logistic_regressions",
    "spearman_correlation",
    "top_agreement",
    "top_latents_by_encoder",
    "unit_rows",
    "written_cosines",
    "zero_count_bound",
]
