"""How much each latent matters to a metric: attribution, integrated gradients and ablation."""

from absorb_pl.attribution.ablation import FeatureAblationsOutput, calculate_individual_feature_ablations
from absorb_pl.attribution.gradients import (
    Attribution,
    AttributionGrads,
    calculate_attribution_grads,
    calculate_feature_attribution,
)
from absorb_pl.attribution.integrated import PatchedAttribution, calculate_integrated_gradient_attribution_patching
from absorb_pl.attribution.suffix import WordScores, word_integrated_gradients, words_at_once
from absorb_pl.attribution.word_ablation import WordAblations, word_ablations

__all__ = [
    "Attribution",
    "AttributionGrads",
    "FeatureAblationsOutput",
    "PatchedAttribution",
    "WordAblations",
    "WordScores",
    "calculate_attribution_grads",
    "calculate_feature_attribution",
    "calculate_individual_feature_ablations",
    "calculate_integrated_gradient_attribution_patching",
    "word_ablations",
    "word_integrated_gradients",
    "words_at_once",
]
