"""Language models and sparse autoencoders: loading, checking, identifying and running them together."""

from absorb_pl.models.bundled import SPELLER, bundled_sae_path, list_bundled_saes, speller_path
from absorb_pl.models.identity import content_hash, model_identity, sae_identity, tokenizer_identity
from absorb_pl.models.language_model import (
    check_hook,
    context_length,
    has_next_token_logits,
    load_language_model,
    require_next_token_logits,
)
from absorb_pl.models.sae import check_sae_fits, load_sae, sae_hook_name
from absorb_pl.models.sae_names import expand_sae_names
from absorb_pl.models.splice import ApplySaesAndRunOutput, SaeReconstructionCache, apply_saes_and_run
from absorb_pl.words.positions import prepends_bos

__all__ = [
    "SPELLER",
    "ApplySaesAndRunOutput",
    "SaeReconstructionCache",
    "apply_saes_and_run",
    "bundled_sae_path",
    "check_hook",
    "check_sae_fits",
    "content_hash",
    "context_length",
    "expand_sae_names",
    "has_next_token_logits",
    "list_bundled_saes",
    "load_language_model",
    "load_sae",
    "model_identity",
    "prepends_bos",
    "require_next_token_logits",
    "sae_hook_name",
    "sae_identity",
    "speller_path",
    "tokenizer_identity",
]
