"""Language models and sparse autoencoders: loading, checking, identifying and running them together."""

from absorb_pl.models.bundled import speller_path
from absorb_pl.models.hooked_model import HookedModel
from absorb_pl.models.identity import model_identity, tokenizer_identity
from absorb_pl.models.language_model import check_hook, context_length, load_language_model
from absorb_pl.models.next_token import has_next_token_logits

__all__ = [
    "HookedModel",
    "check_hook",
    "context_length",
    "has_next_token_logits",
    "load_language_model",
    "model_identity",
    "speller_path",
    "tokenizer_identity",
]
