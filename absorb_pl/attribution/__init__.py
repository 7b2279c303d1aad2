"""How much each latent matters to a metric: attribution, integrated gradients and ablation."""

from absorb_pl.attribution.suffix import PrefixBucket, WordPrefix, compute_prefix
from absorb_pl.attribution.words import WordAblations, WordScores, word_ablations, word_integrated_gradients

__all__ = [
    "PrefixBucket",
    "WordAblations",
    "WordPrefix",
    "WordScores",
    "compute_prefix",
    "word_ablations",
    "word_integrated_gradients",
]
