"""One pass of an SAE over residual rows, in chunks, keeping only the latents that are asked for."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from absorb_pl.functional import SaeStatistics

_CHUNK_VALUES = 2**26


@torch.no_grad()
def encode_latents(
    sae: Any,
    x: Float[Tensor, "rows d_model"],
    latents: Int[Tensor, "classes ranks"],
    statistics: SaeStatistics,
) -> Float[Tensor, "rows classes ranks"]:
    """Activations of some latents on all rows.

    Args:
        sae: An SAE with `encode`, `decode` and `W_dec`.
        x: Residual rows at the SAE's hook.
        latents: Which latents to keep; may repeat.
        statistics: Updated with every row.

    Returns:
        Activations in float32, on the CPU.
    """
    wanted, place = latents.cpu().unique(return_inverse=True)
    parts = []
    for chunk in x.split(max(1, _CHUNK_VALUES // sae.W_dec.shape[0])):
        rows = chunk.to(sae.W_dec)
        activations = sae.encode(rows)
        parts.append(activations[:, wanted.to(activations.device)].float().cpu())
        statistics.update(rows, activations, sae.decode(activations))
    return torch.cat(parts)[:, place]
