"""Sparse autoencoders: finding, loading, checking, identifying and running them."""

from absorb_pl.saes.adapters import AdaptedSae
from absorb_pl.saes.bundled import bundled_sae_path, list_bundled_saes
from absorb_pl.saes.controls import control_sae
from absorb_pl.saes.identity import sae_identity
from absorb_pl.saes.interface import SparseAutoencoder
from absorb_pl.saes.listing import list_saes
from absorb_pl.saes.loading import load_sae
from absorb_pl.saes.names import expand_sae_names
from absorb_pl.saes.properties import check_sae_fits, sae_architecture, sae_hook_name
from absorb_pl.saes.rows import decode_rows, encode_rows
from absorb_pl.saes.scale import to_unit_norms

__all__ = [
    "AdaptedSae",
    "SparseAutoencoder",
    "bundled_sae_path",
    "check_sae_fits",
    "control_sae",
    "decode_rows",
    "encode_rows",
    "expand_sae_names",
    "list_bundled_saes",
    "list_saes",
    "load_sae",
    "sae_architecture",
    "sae_hook_name",
    "sae_identity",
    "to_unit_norms",
]
