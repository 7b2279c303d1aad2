"""How many sequences run together: a number, or as many as the device's memory allows."""

from typing import Any, Literal

import torch

from absorb_pl.models.divided import devices_of, is_divided
from absorb_pl.models.hooked_model import HookedModel
from absorb_pl.models.placement import check_model_dtype, dtype_of
from absorb_pl.models.widths import mlp_width
from absorb_pl.ranges import Count

RunSize = Count | Literal["auto"]
"""Most sequences in one run of the model; `auto` takes as many as the device's free memory allows."""

CPU_SIZE = 256
"""Sequences in one run on a CPU, where more are no faster."""
_MOST = 4096
_SHARE = 0.5
"""Share of the free memory that a run may take by the estimate, which knows nothing of what libraries add."""


def fitting_size(model: HookedModel, tokens: int, seen: int, device: torch.device) -> int:
    """Estimate how many sequences may run together with gradients.

    Args:
        model: A TransformerLens model, on the device.
        tokens: Tokens of the longest sequence that run, those from the word on.
        seen: Tokens that they attend to, the prefix among them.
        device: Where it runs.

    Returns:
        `CPU_SIZE` on a CPU; on a GPU a power of two from its free memory, at most 4096. Of a model that is divided
        among GPUs, that with the least free memory counts, as if it held all layers.

    Example:
        >>> from types import SimpleNamespace
        >>> fitting_size(SimpleNamespace(), tokens=5, seen=90, device=torch.device("cpu"))
        256
    """
    if device.type != "cuda":
        return CPU_SIZE
    free = min(_free_bytes(each) for each in {device, *(devices_of(model) if is_divided(model) else ())})
    bytes_each = sequence_bytes(getattr(model, "cfg", None), tokens, seen, dtype_of(model))
    return size_within(_SHARE * free, bytes_each)


def _free_bytes(device: torch.device) -> int:
    """Memory of a GPU that nobody has, and that PyTorch has and does not use."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def size_within(budget: float, bytes_each: float) -> int:
    """The largest power of two of sequences that a budget of memory allows, from 1 to 4096.

    Args:
        budget: Bytes.
        bytes_each: Bytes of a sequence.

    Example:
        >>> size_within(1000, 10), size_within(5, 10), size_within(1e12, 10)
        (64, 1, 4096)
    """
    allowed = min(_MOST, max(1, int(budget / bytes_each)))
    return 2 ** (allowed.bit_length() - 1)


def sequence_bytes(config: Any, tokens: int, seen: int, dtype: str) -> float:
    """Estimate what a run with gradients keeps of each sequence until the backward pass.

    Of each token and block: about sixteen vectors of the residual stream's width, four of the MLP's, and two rows of
    attention weights of each head; of each sequence the last token's logits, three times in float32.

    Args:
        config: The model's TransformerLens configuration.
        tokens: Tokens of the sequence that run.
        seen: Tokens that they attend to.
        dtype: Dtype of the weights.

    Example:
        >>> from types import SimpleNamespace
        >>> gpt2 = SimpleNamespace(n_layers=12, d_model=768, d_mlp=3072, n_heads=12, d_vocab=50257)
        >>> round(sequence_bytes(gpt2, tokens=5, seen=90, dtype="float32") / 2**20)
        7
    """
    width, heads = int(config.d_model), int(config.n_heads)
    of_token = 16 * width + 4 * mlp_width(config) + 2 * heads * seen
    return float(
        tokens * int(config.n_layers) * of_token * check_model_dtype(dtype).itemsize + 12 * int(config.d_vocab)
    )
