"""The paper's three experiments, one call each: data frames with the published columns, and the paper's plots."""

from absorb_pl.experiments.common import EXPERIMENTS_DIR, SaeInfo, humanify_sae_width, load_experiment_df
from absorb_pl.experiments.feature_absorption import run_feature_absortion_experiments
from absorb_pl.experiments.k_sparse_probing import run_k_sparse_probing_experiments
from absorb_pl.experiments.latent_evaluation import run_latent_evaluation_experiments

__all__ = [
    "EXPERIMENTS_DIR",
    "SaeInfo",
    "humanify_sae_width",
    "load_experiment_df",
    "run_feature_absortion_experiments",
    "run_k_sparse_probing_experiments",
    "run_latent_evaluation_experiments",
]
