"""Training of SAEs whose absorption is measured on the way."""

from absorb_pl.training.export import inference_sae
from absorb_pl.training.hedging import MeasureHedging, measure_hedging
from absorb_pl.training.loss_recovered import LossRecovered, next_token_loss
from absorb_pl.training.monitor import AbsorptionMonitor
from absorb_pl.training.sae_export import SaeExport
from absorb_pl.training.sae_module import SparseAutoencoderModule
from absorb_pl.training.settings import SaeOptimisation, SaeSettings
from absorb_pl.training.sources import ActivationSource, CachedActivations, ModelActivations, WorldActivations
from absorb_pl.training.spelling_source import SpellingActivations
from absorb_pl.training.text_source import TextActivations
from absorb_pl.training.token_datamodule import TokenActivationDataModule

__all__ = [
    "AbsorptionMonitor",
    "ActivationSource",
    "CachedActivations",
    "LossRecovered",
    "MeasureHedging",
    "ModelActivations",
    "SaeExport",
    "SaeOptimisation",
    "SaeSettings",
    "SparseAutoencoderModule",
    "SpellingActivations",
    "TextActivations",
    "TokenActivationDataModule",
    "WorldActivations",
    "inference_sae",
    "measure_hedging",
    "next_token_loss",
]
