"""The precision that figures are computed in."""

import torch
from jaxtyping import Float
from torch import Tensor


def at_least_float32(tensor: Tensor) -> Float[Tensor, "..."]:
    """Raise half precision to float32 and leave float32 and float64 alone.

    Args:
        tensor: A floating-point tensor.

    Returns:
        The tensor in float32 or float64.

    Example:
        >>> at_least_float32(torch.ones(1, dtype=torch.bfloat16)).dtype
        torch.float32
    """
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
