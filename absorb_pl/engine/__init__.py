"""Running a language model again and again with other activations at one place, at the least cost."""

from absorb_pl.engine.prefix import WordPrefix, compute_prefix
from absorb_pl.engine.splice import ApplySaesAndRunOutput, SaeReconstructionCache, apply_saes_and_run

__all__ = ["ApplySaesAndRunOutput", "SaeReconstructionCache", "WordPrefix", "apply_saes_and_run", "compute_prefix"]
