"""Latent activations of many rows, encoded in chunks so that wide SAEs fit."""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from absorb_pl.functional.sae_stats import SaeStatistics
from absorb_pl.saes.portions import CHUNK_BYTES
from absorb_pl.saes.rows import decode_rows, encode_rows


def chunks_for(x: Shaped[Tensor, "rows ..."], num_latents: int, itemsize: int = 4) -> tuple[Tensor, ...]:
    """Cut rows so that the latents of one chunk take at most `CHUNK_BYTES`, or are those of a single row.

    Args:
        x: Rows, residual activations or others.
        num_latents: Width of the SAE.
        itemsize: Bytes of a latent; 4 in float32, in which latents are read whatever the SAE's own dtype.

    Returns:
        Consecutive rows.

    Example:
        >>> [len(part) for part in chunks_for(torch.zeros(5, 2), num_latents=2**26)]
        [2, 2, 1]
    """
    return x.split(max(1, CHUNK_BYTES // (itemsize * num_latents)))


def sae_device(sae: Any, default: torch.device) -> torch.device:
    """Device of an SAE's decoder, or `default` for an SAE that keeps none there.

    Args:
        sae: The SAE.
        default: Device to fall back to.

    Returns:
        A device.

    Example:
        >>> sae_device(object(), torch.device("cpu"))
        device(type='cpu')
    """
    decoder = getattr(sae, "W_dec", None)
    return decoder.device if isinstance(decoder, Tensor) else default


@torch.no_grad()
def encode_latents(
    sae: Any,
    x: Float[Tensor, "rows d_model"],
    latent_ids: Int[Tensor, " chosen"],
    statistics: SaeStatistics | None = None,
) -> Float[Tensor, "rows chosen"]:
    """Encode rows and keep chosen latents.

    Args:
        sae: A module with `encode` (and `decode`, for statistics).
        x: Residual activations.
        latent_ids: Latents to keep.
        statistics: Statistics to add the rows to.

    Returns:
        Activations in float32, on the device of `latent_ids`.

    Example:
        >>> class Identity(torch.nn.Module):
        ...     def encode(self, x):
        ...         return x.relu()
        >>> encode_latents(Identity(), torch.tensor([[1.0, -2.0, 3.0]]), torch.tensor([2, 0]))
        tensor([[3., 1.]])
    """
    return torch.cat(list(_encoded(sae, x, latent_ids, statistics)))


def _encoded(sae: Any, x: Tensor, latent_ids: Tensor, statistics: SaeStatistics | None) -> Iterator[Tensor]:
    device = sae_device(sae, x.device)
    decoder = getattr(sae, "W_dec", None)
    width, itemsize = (x.shape[1], 4) if decoder is None else (int(decoder.shape[0]), max(4, decoder.element_size()))
    for part in chunks_for(x, width, itemsize):
        part = part.to(device)
        latents = encode_rows(sae, part)
        if statistics is not None:
            statistics.update(part, latents, decode_rows(sae, latents))
        yield latents[:, latent_ids.to(device)].float().to(latent_ids.device)
