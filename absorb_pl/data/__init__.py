"""The activation cache, the artifacts it is made of, and the LightningDataModules over it."""

from absorb_pl.data.activation_cache import ActivationCache
from absorb_pl.data.activation_datamodule import ActivationDataModule
from absorb_pl.data.collector import ActivationCacheWriter, ActivationCollector
from absorb_pl.data.prompt_datamodule import PromptDataModule
from absorb_pl.data.residuals import read_residuals
from absorb_pl.data.splits import stratified_split

__all__ = [
    "ActivationCache",
    "ActivationCacheWriter",
    "ActivationCollector",
    "ActivationDataModule",
    "PromptDataModule",
    "read_residuals",
    "stratified_split",
]
