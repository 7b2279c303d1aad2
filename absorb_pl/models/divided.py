"""Language models whose layers are divided among the GPUs of a machine, for those that one GPU does not hold."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from accelerate import dispatch_model
from torch import nn
from transformer_lens.utilities.multi_gpu import resolve_device_map

from absorb_pl.errors import AbsorbError

_FIRST_SHARE, _SHARE = 0.7, 0.85
"""Most of the free memory that weights take on the first GPU, where SAEs and probes are too, and on the others."""
_OFFLOADED = ("offload", "on the cpu or the disk", "out of memory")
"""What libraries say of models that are too large for the GPUs."""


def division_among(n_devices: int, device: str) -> dict[str, Any]:
    """How Hugging Face is to divide a model among GPUs.

    Args:
        n_devices: Number of GPUs, from the first on.
        device: Where the model goes if it is not divided.

    Returns:
        Arguments of `from_pretrained`; none for a model that is not divided.

    Raises:
        AbsorbError: There are not so many GPUs, or a device is named beside their number.

    Example:
        >>> division_among(1, "cpu")
        {}
    """
    if n_devices == 1:
        return {}
    if device != "cpu":
        raise AbsorbError(
            "device",
            device,
            expected=f"no device beside `n_devices` {n_devices}, which takes the first GPUs",
            remedy="Leave one of them out; CUDA_VISIBLE_DEVICES chooses among the GPUs.",
        )
    try:
        device_map, max_memory = resolve_device_map(n_devices, None, None)
    except ValueError as error:
        raise AbsorbError(
            "n_devices",
            n_devices,
            expected=f"at most the number of CUDA GPUs here, {torch.cuda.device_count()}",
            remedy="Take fewer, or a smaller dtype (`bfloat16`, `nf4`).",
        ) from error
    limits = {gpu: int((_FIRST_SHARE if gpu == 0 else _SHARE) * int(free)) for gpu, free in (max_memory or {}).items()}
    return {"device_map": device_map, "max_memory": limits or None}


def require_divided(name: str, n_devices: int, model: Any) -> None:
    """Check that a model that is divided among devices runs.

    Args:
        name: Name that it was asked for by.
        n_devices: Number of GPUs asked for.
        model: A `TransformerBridge`.

    Raises:
        AbsorbError: It does not run.
    """
    try:
        with torch.no_grad():
            model.original_model(torch.zeros(1, 2, dtype=torch.long, device=devices_of(model)[0]))
    except RuntimeError as error:
        raise refused_division(name, n_devices, error) or not_divided(name, n_devices, error) from error


def refused_division(name: str, n_devices: int, error: BaseException) -> AbsorbError | None:
    """The named error for what libraries raise when a model cannot be loaded onto several GPUs.

    Args:
        name: Name that it was asked for by.
        n_devices: Number of GPUs asked for.
        error: What was raised.

    Returns:
        None if the number of GPUs has nothing to do with it.
    """
    said = str(error).lower()
    if any(words in said for words in _OFFLOADED):
        return AbsorbError(
            "n_devices",
            n_devices,
            expected=f"GPUs that hold {name} together, with room for SAEs and activations",
            remedy="Take more GPUs, free their memory, or load it with a smaller dtype (`bfloat16`, `nf4`).",
        )
    return not_divided(name, n_devices, error) if "multi-device" in said else None


def not_divided(name: str, n_devices: int, reason: object) -> AbsorbError:
    """The error for a model that loads and cannot be divided.

    Args:
        name: Name that it was asked for by.
        n_devices: Number of GPUs asked for.
        reason: What failed.
    """
    return AbsorbError(
        "n_devices",
        n_devices,
        expected=f"a model whose layers TransformerLens can divide among GPUs, but {name} is none",
        remedy="Load it on one GPU, with a smaller dtype if need be, or try another number. "
        f"Here: {str(reason).strip().splitlines()[0]}",
    )


def devices_of(model: Any) -> list[torch.device]:
    """The devices that hold a language model's weights, that of its first weight first.

    Args:
        model: A `TransformerBridge`, or any callable.

    Returns:
        The devices; the CPU for what is no module.

    Example:
        >>> devices_of(torch.nn.Linear(1, 1))
        [device(type='cpu')]
    """
    module = getattr(model, "original_model", model)
    if not isinstance(module, nn.Module):
        return [torch.device("cpu")]
    return list(dict.fromkeys(weight.device for weight in module.parameters()))


def is_divided(model: Any) -> bool:
    """Tell whether accelerate divided a language model among several devices.

    Args:
        model: A `TransformerBridge`, a Hugging Face model, or any callable.

    Example:
        >>> is_divided(torch.nn.Linear(1, 1))
        False
    """
    device_map = getattr(getattr(model, "original_model", model), "hf_device_map", {})
    return len(set(map(str, device_map.values()))) > 1


def keep_in_place(model: Any) -> None:
    """Keep a model that is divided among devices where it is, whatever moves the module that holds it.

    A Trainer moves what its module holds; on a single device the layers' own moves of activations would go astray.
    What leaves the weights where they are, such as another dtype, is done.

    Args:
        model: A `TransformerBridge`.
    """
    if is_divided(model):
        for part in (model, model.original_model):
            if "_apply" not in vars(part):
                part._apply = partial(_apply_in_place, part, part._apply)


def _apply_in_place(
    module: nn.Module, apply: Callable[..., Any], fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True
) -> nn.Module:
    moves = any(fn(weight.new_empty(0)).device != weight.device for weight in module.parameters())
    return module if moves else apply(fn, recurse)


def divide_alike(module: nn.Module, hf_model: Any) -> None:
    """Let a model made of another's weights move activations between its devices as that does.

    Args:
        module: The model, with the other's weights where they are.
        hf_model: A Hugging Face model that accelerate divided among devices, or one on a single device.
    """
    if is_divided(hf_model):
        dispatch_model(module, hf_model.hf_device_map, main_device=devices_of(hf_model)[0])
