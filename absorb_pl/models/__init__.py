"""Language models and sparse autoencoders: loading, checking, identifying and running them together."""

from absorb_pl.models.bundled import SPELLER, speller_path
from absorb_pl.models.hooked_model import HookedModel
from absorb_pl.models.identity import content_hash, model_identity, tokenizer_identity
from absorb_pl.models.language_model import check_hook, context_length, load_language_model
from absorb_pl.models.next_token import has_next_token_logits, require_next_token_logits
from absorb_pl.models.processing import describe_processing, model_processing, process_model
from absorb_pl.models.prompt_batch import PromptBatch, read_prompts

__all__ = [
    "SPELLER",
    "HookedModel",
    "PromptBatch",
    "check_hook",
    "content_hash",
    "context_length",
    "describe_processing",
    "has_next_token_logits",
    "load_language_model",
    "model_identity",
    "model_processing",
    "process_model",
    "read_prompts",
    "require_next_token_logits",
    "speller_path",
    "tokenizer_identity",
]
