"""Sparse autoencoders: finding, loading, checking, identifying and running them."""

from absorb_pl.saes.adapters import AdaptedSae, SparseAutoencoder
from absorb_pl.saes.bundled import bundled_sae_path, list_bundled_saes
from absorb_pl.saes.controls import CONTROL_KINDS, control_sae
from absorb_pl.saes.gemma_scope import gemma_scope_disk_loader
from absorb_pl.saes.identity import sae_identity
from absorb_pl.saes.listing import layer_of_hook, list_saes
from absorb_pl.saes.loading import load_sae, split_control
from absorb_pl.saes.names import expand_sae_names
from absorb_pl.saes.portions import CHUNK_BYTES, rows_at_once
from absorb_pl.saes.processing import check_positions, check_processing, sae_processing, trained_positions
from absorb_pl.saes.properties import (
    check_hooks_agree,
    check_sae_fits,
    reads_sequences,
    require_rows,
    require_width,
    sae_architecture,
    sae_hook_name,
)
from absorb_pl.saes.rows import decode_rows, encode_and_project, encode_rows, encoder_parts
from absorb_pl.saes.scale import UnitNormSae, to_unit_norms, unwrapped_sae
from absorb_pl.saes.source import SaeSource, distinct_saes, tell_equal_saes

__all__ = [
    "CHUNK_BYTES",
    "CONTROL_KINDS",
    "AdaptedSae",
    "SaeSource",
    "SparseAutoencoder",
    "UnitNormSae",
    "bundled_sae_path",
    "check_hooks_agree",
    "check_positions",
    "check_processing",
    "check_sae_fits",
    "control_sae",
    "decode_rows",
    "distinct_saes",
    "encode_and_project",
    "encode_rows",
    "encoder_parts",
    "expand_sae_names",
    "gemma_scope_disk_loader",
    "layer_of_hook",
    "list_bundled_saes",
    "list_saes",
    "load_sae",
    "reads_sequences",
    "require_rows",
    "require_width",
    "rows_at_once",
    "sae_architecture",
    "sae_hook_name",
    "sae_identity",
    "sae_processing",
    "split_control",
    "tell_equal_saes",
    "to_unit_norms",
    "trained_positions",
    "unwrapped_sae",
]
