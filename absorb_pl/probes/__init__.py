"""The probes: LightningModules that train, and the paper's functions that train them in one call."""

from absorb_pl.probes.base import MISSING_LOGIT
from absorb_pl.probes.fitting import fit_probe
from absorb_pl.probes.k_sparse import SaeProbe
from absorb_pl.probes.latents import encode_latents
from absorb_pl.probes.linear import LinearProbe
from absorb_pl.probes.metrics import ProbeMetrics
from absorb_pl.probes.settings import KSparseSettings, LinearProbeSettings
from absorb_pl.probes.task_data import create_dataset_probe_training, gen_and_save_df_acts_probing, load_df_acts_probing
from absorb_pl.probes.task_probes import (
    ProbeStats,
    gen_probe_stats,
    load_probe_and_data,
    save_probe_and_data,
    train_linear_probe_for_task,
)
from absorb_pl.probes.training import (
    KSparseProbe,
    train_binary_probe,
    train_k_sparse_probes,
    train_multi_probe,
    train_sparse_multi_probe,
)

__all__ = [
    "MISSING_LOGIT",
    "KSparseProbe",
    "KSparseSettings",
    "LinearProbe",
    "LinearProbeSettings",
    "ProbeMetrics",
    "ProbeStats",
    "SaeProbe",
    "create_dataset_probe_training",
    "encode_latents",
    "fit_probe",
    "gen_and_save_df_acts_probing",
    "gen_probe_stats",
    "load_df_acts_probing",
    "load_probe_and_data",
    "save_probe_and_data",
    "train_binary_probe",
    "train_k_sparse_probes",
    "train_linear_probe_for_task",
    "train_multi_probe",
    "train_sparse_multi_probe",
]
