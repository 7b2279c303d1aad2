"""How wide a model's matrices are."""

from typing import Any

from jaxtyping import Int
from torch import Tensor


def mlp_width(config: Any) -> int:
    """Neurons of an MLP, four times the residual stream's width if the configuration does not say.

    Args:
        config: A TransformerLens configuration.

    Example:
        >>> from types import SimpleNamespace
        >>> mlp_width(SimpleNamespace(d_model=8, d_mlp=None))
        32
    """
    return int(getattr(config, "d_mlp", None) or 4 * config.d_model)


def largest_of_run(model: Any, input_ids: Int[Tensor, "sequences tokens"]) -> int | None:
    """Values of the largest matrix that a forward pass makes before the logits.

    Args:
        model: A TransformerLens model.
        input_ids: Its tokens.

    Returns:
        None if the model has no configuration.

    Example:
        >>> import torch
        >>> from types import SimpleNamespace
        >>> model = SimpleNamespace(cfg=SimpleNamespace(d_model=8, d_mlp=32))
        >>> largest_of_run(model, torch.zeros(2, 5, dtype=torch.long))
        320
    """
    config = getattr(model, "cfg", None)
    return None if config is None else input_ids.numel() * mlp_width(config)
