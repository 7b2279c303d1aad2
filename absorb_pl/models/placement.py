"""Where weights come from, where they go and how they are stored: folders, devices and dtypes by name."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from absorb_pl.errors import AbsorbError, NonFiniteError
from absorb_pl.models.divided import is_divided
from absorb_pl.models.hooked_model import HookedModel
from absorb_pl.models.quantized import COMPUTED_IN, QUANTIZED_DTYPES, quantized_dtype

DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

WEIGHTS_SUFFIXES = (".npz", ".pt", ".pth", ".safetensors")
"""Files that may hold an SAE by themselves."""

LOAD_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    OSError,
    RuntimeError,
    SafetensorError,
    StrictDataclassError,
    TypeError,
    UnpicklingError,
    ValueError,
)
"""What the libraries that read models and SAEs raise on files that are damaged or of another kind."""


def local_folder(name: str) -> Path | None:
    """Give the folder that a name means, as an absolute path, a leading `~` resolved.

    Args:
        name: A name that may be a path.

    Returns:
        The folder, or None if there is none.

    Example:
        >>> local_folder("no-such-folder") is None
        True
    """
    folder = Path(os.path.expanduser(name)).absolute()
    return folder if folder.is_dir() else None


def local_path(name: str) -> Path | None:
    """Give the folder or file of weights that a name means, as an absolute path, a leading `~` resolved.

    Args:
        name: A name that may be a path.

    Returns:
        The path, or None if there is neither.

    Example:
        >>> local_path("no-such-folder/params.npz") is None
        True
    """
    file = Path(os.path.expanduser(name)).absolute()
    return file if file.suffix in WEIGHTS_SUFFIXES and file.is_file() else local_folder(name)


def read_tensors(file: Path, device: str) -> dict[str, Tensor]:
    """Read the tensors of a file; no code in it runs.

    Args:
        file: A safetensors file, or what `torch.save` wrote of a mapping.
        device: A torch device; `meta` gives shapes alone.

    Returns:
        Tensors by name; other values are left out.

    Raises:
        ValueError: It holds no mapping.
    """
    if file.suffix != ".safetensors":
        loaded = torch.load(file, map_location=device, weights_only=True)
        if not isinstance(loaded, dict):
            raise ValueError(f"{file.name} holds a {type(loaded).__name__}, not tensors by name")
        return {str(key): value for key, value in loaded.items() if isinstance(value, Tensor)}
    with safe_open(file, framework="pt", device="cpu" if device == "meta" else device) as opened:
        names = list(opened.keys())
        if device == "meta":
            return {key: torch.empty(opened.get_slice(key).get_shape(), device=device) for key in names}
        return {key: opened.get_tensor(key) for key in names}


def check_device(device: str) -> str:
    """Check that tensors can be made on a device.

    Args:
        device: A torch device such as `cpu`, `cuda` or `cuda:1`.

    Returns:
        The same device name.

    Raises:
        AbsorbError: If there is no such device here.

    Example:
        >>> check_device("cpu")
        'cpu'
    """
    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:
        raise AbsorbError(
            "device",
            device,
            expected="a device that this machine has",
            remedy=f"Use 'cpu', or see why torch refuses it: {str(error).splitlines()[0]}",
        ) from error
    return device


def model_device(model: HookedModel) -> torch.device:
    """Give the device of a language model's weights.

    Args:
        model: A `TransformerBridge`, or any callable.

    Returns:
        Where its first parameter is; the CPU for what is no module.

    Example:
        >>> model_device(torch.nn.Linear(1, 1))
        device(type='cpu')
    """
    module = getattr(model, "original_model", model)
    return next(module.parameters()).device if isinstance(module, nn.Module) else torch.device("cpu")


def own_memory(module: nn.Module) -> None:
    """Move weights on the CPU out of the file that they were loaded from, in place.

    Safetensors maps files into memory: whoever writes to the file later would change weights that are in use. Tensors
    that share memory share it afterwards too.

    Args:
        module: What was loaded.

    Example:
        >>> layer = torch.nn.Linear(2, 2)
        >>> before, values = layer.weight.data_ptr(), layer.weight.clone()
        >>> own_memory(layer)
        >>> layer.weight.data_ptr() == before, bool((layer.weight == values).all())
        (False, True)
    """
    copies: dict[int, torch.UntypedStorage] = {}
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.device.type == "cpu" and tensor.numel():
            storage = tensor.untyped_storage()
            copy = copies.get(storage.data_ptr())
            if copy is None:
                copy = copies[storage.data_ptr()] = storage.clone()
            own = torch.empty(0, dtype=tensor.dtype)
            tensor.data = own.set_(copy, tensor.storage_offset(), tensor.shape, tensor.stride())


def require_finite(name: str, tensors: Mapping[str, Tensor]) -> None:
    """Refuse weights that are NaN or infinite.

    Args:
        name: Name that the weights' owner was asked for by.
        tensors: Weights by name.

    Raises:
        NonFiniteError: Names the first tensor that holds some, and their number.

    Example:
        >>> require_finite("mine", {"W_dec": torch.tensor([1.0, float("nan")])})
        Traceback (most recent call last):
            ...
        absorb_pl.errors.NonFiniteError: `name` was 'mine', expected finite weights, but 1 in W_dec are not...
    """
    for key, weight in tensors.items():
        # By rows, as wide SAEs have no room for another matrix of their size.
        rows = weight if weight.ndim else weight.reshape(1)
        parts = rows.split(max(1, 2**26 // max(1, rows[:1].numel())))
        if bad := sum(int((~torch.isfinite(part)).sum()) for part in parts):
            raise NonFiniteError(
                "name",
                name,
                expected=f"finite weights, but {bad} in {key} are not",
                remedy="Save it again, or load it in a wider dtype.",
            )


def check_dtype(dtype: str) -> torch.dtype:
    """Turn a dtype's name into the dtype.

    Args:
        dtype: One of `float32`, `float64`, `bfloat16` and `float16`.

    Returns:
        The torch dtype.

    Raises:
        AbsorbError: If the name is another.

    Example:
        >>> check_dtype("bfloat16")
        torch.bfloat16
    """
    return _dtype_among(DTYPES, dtype)


def check_model_dtype(dtype: str) -> torch.dtype:
    """Turn the name of a language model's dtype into the dtype of its activations.

    Args:
        dtype: As for `check_dtype`, or one of `QUANTIZED_DTYPES`.

    Returns:
        The torch dtype.

    Raises:
        AbsorbError: If the name is another.

    Example:
        >>> check_model_dtype("float32"), check_model_dtype("nf4")
        (torch.float32, torch.bfloat16)
    """
    return _dtype_among(DTYPES | dict.fromkeys(QUANTIZED_DTYPES, COMPUTED_IN), dtype)


def _dtype_among(dtypes: Mapping[str, torch.dtype], name: str) -> torch.dtype:
    if name not in dtypes:
        raise AbsorbError("dtype", name, expected=" or ".join(dtypes), remedy="Use float32 unless memory is short.")
    return dtypes[name]


def dtype_of(model: HookedModel) -> str:
    """Name the dtype of a language model's weights.

    Args:
        model: A `TransformerBridge`, or any callable.

    Returns:
        Dtype of its first parameter, or of its quantised weights, as `check_model_dtype` takes it; float32 for what is
        no module.

    Example:
        >>> dtype_of(torch.nn.Linear(1, 1).half())
        'float16'
    """
    if (quantized := quantized_dtype(model)) is not None:
        return quantized
    module = getattr(model, "original_model", model)
    dtype = next(module.parameters()).dtype if isinstance(module, nn.Module) else torch.float32
    return str(dtype).removeprefix("torch.")


@contextmanager
def borrowed(model: HookedModel) -> Iterator[None]:
    """Put a language model into evaluation mode without gradients for a while, then back as it was, device included.

    Args:
        model: A `TransformerBridge`, or any callable.

    Example:
        >>> layer = torch.nn.Linear(1, 1)
        >>> with borrowed(layer):
        ...     layer.training, layer.weight.requires_grad
        (False, False)
        >>> layer.training, layer.weight.requires_grad
        (True, True)
    """
    if not isinstance(model, nn.Module):
        yield
        return
    modes = {module: module.training for module in model.modules()}
    gradients = {weight: weight.requires_grad for weight in model.parameters()}
    device = model_device(model)
    try:
        model.eval().requires_grad_(False)
        yield
    finally:
        if model_device(model) != device:
            move_model(model, device)
        for module, training in modes.items():
            module.training = training
        for weight, needed in gradients.items():
            weight.requires_grad_(needed)


def move_model(model: Any, device: torch.device) -> None:
    """Move a language model to a device, unless it is there or divided among several.

    Args:
        model: A TransformerLens model.
        device: The device.
    """
    if not is_divided(model) and model_device(model) != device:
        model.to(device, print_details=False)
