"""The activation cache, the artifacts it is made of, and the LightningDataModules over it."""

from absorb_pl.data.activation_cache import ActivationCache, StorageDtype, activation_identities, open_activations
from absorb_pl.data.activation_datamodule import ActivationDataModule, ensure_activations
from absorb_pl.data.artifacts import identity_key, open_artifact, write_artifact
from absorb_pl.data.collector import ActivationCacheWriter, ActivationCollector
from absorb_pl.data.drafts import check_writable, user_path, whole_file, writing_to
from absorb_pl.data.file_names import distinct_names
from absorb_pl.data.prompt_datamodule import PromptBatches, PromptDataModule, prompt_data_of
from absorb_pl.data.publication import check_published, publishing
from absorb_pl.data.residuals import read_residuals
from absorb_pl.data.run_folder import SUMMARY_SO_FAR, RunFolder
from absorb_pl.data.shares import Share
from absorb_pl.data.splits import check_split, stratified_split
from absorb_pl.data.stopping import stoppable
from absorb_pl.data.trainers import TrainerFactory, check_trainer_numbers, checkpoint_file, named_trainer_errors

__all__ = [
    "SUMMARY_SO_FAR",
    "ActivationCache",
    "ActivationCacheWriter",
    "ActivationCollector",
    "ActivationDataModule",
    "PromptBatches",
    "PromptDataModule",
    "RunFolder",
    "Share",
    "StorageDtype",
    "TrainerFactory",
    "activation_identities",
    "check_published",
    "check_split",
    "check_trainer_numbers",
    "check_writable",
    "checkpoint_file",
    "distinct_names",
    "ensure_activations",
    "identity_key",
    "named_trainer_errors",
    "open_activations",
    "open_artifact",
    "prompt_data_of",
    "publishing",
    "read_residuals",
    "stoppable",
    "stratified_split",
    "user_path",
    "whole_file",
    "write_artifact",
    "writing_to",
]
