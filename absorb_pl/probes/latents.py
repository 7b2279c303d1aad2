"""Latent activations of many rows, encoded in chunks so that wide SAEs fit."""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from absorb_pl.functional.sae_stats import SaeStatistics
from absorb_pl.saes.interface import SparseAutoencoder
from absorb_pl.saes.portions import rows_at_once
from absorb_pl.saes.rows import decode_rows, encode_rows


@torch.no_grad()
def encode_latents(
    sae: SparseAutoencoder,
    x: Float[Tensor, "rows d_model"],
    latent_ids: Int[Tensor, " chosen"],
    statistics: SaeStatistics | None = None,
) -> Float[Tensor, "rows chosen"]:
    """Encode rows and keep chosen latents.

    Args:
        sae: The SAE.
        x: Residual activations.
        latent_ids: Latents to keep.
        statistics: Statistics to add the rows to.

    Returns:
        Activations in float32, on the device of `latent_ids`.

    Example:
        >>> class Identity(torch.nn.Module):
        ...     W_dec = torch.eye(3)
        ...     def encode(self, x):
        ...         return x.relu()
        >>> encode_latents(Identity(), torch.tensor([[1.0, -2.0, 3.0]]), torch.tensor([2, 0]))
        tensor([[3., 1.]])
    """
    return torch.cat(list(_encoded(sae, x, latent_ids, statistics)))


def _encoded(
    sae: SparseAutoencoder, x: Tensor, latent_ids: Tensor, statistics: SaeStatistics | None
) -> Iterator[Tensor]:
    device, itemsize = sae.W_dec.device, max(4, sae.W_dec.element_size())
    for part in x.split(rows_at_once(len(sae.W_dec), itemsize)):
        part = part.to(device)
        latents = encode_rows(sae, part)
        if statistics is not None:
            statistics.update(part, latents, decode_rows(sae, latents))
        yield latents[:, latent_ids.to(device)].float().to(latent_ids.device)
