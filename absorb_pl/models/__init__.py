"""Language models and sparse autoencoders: loading, checking, identifying and running them together."""

from absorb_pl.models.adapters import AdaptedSae, SparseAutoencoder
from absorb_pl.models.bundled import SPELLER, bundled_sae_path, list_bundled_saes, speller_path
from absorb_pl.models.controls import CONTROL_KINDS, control_sae
from absorb_pl.models.gemma_scope import gemma_scope_disk_loader
from absorb_pl.models.identity import content_hash, model_identity, sae_identity, tokenizer_identity
from absorb_pl.models.language_model import (
    check_hook,
    context_length,
    load_language_model,
)
from absorb_pl.models.portions import CHUNK_BYTES, rows_at_once
from absorb_pl.models.processing import (
    check_positions,
    check_processing,
    describe_processing,
    model_processing,
    process_model,
    sae_processing,
    trained_positions,
)
from absorb_pl.models.prompt_batch import PromptBatch, read_prompts
from absorb_pl.models.sae import (
    check_hooks_agree,
    check_sae_fits,
    reads_sequences,
    require_rows,
    require_width,
    sae_architecture,
    sae_hook_name,
)
from absorb_pl.models.sae_listing import layer_of_hook, list_saes
from absorb_pl.models.sae_loading import load_sae, split_control
from absorb_pl.models.sae_names import expand_sae_names
from absorb_pl.models.sae_rows import decode_rows, encode_and_project, encode_rows, encoder_parts
from absorb_pl.models.sae_scale import UnitNormSae, to_unit_norms, unwrapped_sae
from absorb_pl.models.splice import ApplySaesAndRunOutput, SaeReconstructionCache, apply_saes_and_run
from absorb_pl.words.next_token import has_next_token_logits, require_next_token_logits
from absorb_pl.words.positions import prepends_bos

__all__ = [
    "CHUNK_BYTES",
    "CONTROL_KINDS",
    "SPELLER",
    "AdaptedSae",
    "ApplySaesAndRunOutput",
    "PromptBatch",
    "SaeReconstructionCache",
    "SparseAutoencoder",
    "UnitNormSae",
    "apply_saes_and_run",
    "bundled_sae_path",
    "check_hook",
    "check_hooks_agree",
    "check_positions",
    "check_processing",
    "check_sae_fits",
    "content_hash",
    "context_length",
    "control_sae",
    "decode_rows",
    "describe_processing",
    "encode_and_project",
    "encode_rows",
    "encoder_parts",
    "expand_sae_names",
    "gemma_scope_disk_loader",
    "has_next_token_logits",
    "layer_of_hook",
    "list_bundled_saes",
    "list_saes",
    "load_language_model",
    "load_sae",
    "model_identity",
    "model_processing",
    "prepends_bos",
    "process_model",
    "read_prompts",
    "reads_sequences",
    "require_next_token_logits",
    "require_rows",
    "require_width",
    "rows_at_once",
    "sae_architecture",
    "sae_hook_name",
    "sae_identity",
    "sae_processing",
    "speller_path",
    "split_control",
    "to_unit_norms",
    "tokenizer_identity",
    "trained_positions",
    "unwrapped_sae",
]
