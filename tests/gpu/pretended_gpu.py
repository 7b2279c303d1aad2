# ruff: noqa: ARG001, ARG002, ARG004
"""A pretended GPU: it computes on the CPU and refuses what GPUs refuse, tensors of two devices in one operation.

Tensors on it cannot be read by NumPy before they are copied to the CPU, and its random numbers are its own. So what
gives the CPU's figures on it moves every tensor to where it belongs and draws nothing on the device. It cannot show
other kernels' rounding, speed or memory.
"""

import sys
from collections.abc import Callable
from typing import Any

import sae_lens  # noqa: F401  it opens files by a name that is replaced below
import safetensors.torch
import torch
from lightning.pytorch.accelerators import Accelerator, AcceleratorRegistry
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.trainer.connectors.accelerator_connector import _AcceleratorConnector
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

PRETENDED = "pretend"
"""Its name, for torch and for Lightning; there are two, `pretend:0` and `pretend:1`."""

# What takes tensors of two devices, on a GPU as here.
_MOVES = {"aten::copy_", "aten::_to_copy", "aten::_copy_from", "aten::_local_scalar_dense"}
# Whose indices may stay on the CPU.
_INDEXED = {"aten::index", "aten::_unsafe_index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}
# What makes tensors from nothing; all else that does is made of these.
_FACTORIES = (
    "empty.memory_format",
    "empty_strided",
    "arange",
    "arange.start",
    "arange.start_step",
    "linspace",
    "eye",
    "eye.m",
    "randperm",
    "randperm.generator",
    "tril_indices",
    "triu_indices",
)


class Placed(Tensor):
    """A tensor on the pretended GPU; `held` has its values on the CPU."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor, device: torch.device) -> "Placed":
        with torch.inference_mode(False):  # wrappers made in inference mode cannot be detached
            placed = torch.Tensor._make_wrapper_subclass(
                cls,
                held.shape,
                strides=held.stride(),
                storage_offset=held.storage_offset(),
                dtype=held.dtype,
                device=device,
            )
        placed.held = held
        return placed

    def __init__(self, held: Tensor, device: torch.device) -> None: ...

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    @property
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, values: Any) -> None:
        torch.Tensor.data.__set__(self, values)
        self.held = values.held

    def tolist(self) -> Any:
        return self.held.tolist()

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def numpy(self, **_: Any) -> Any:
        raise TypeError("a tensor on a pretended GPU must be copied to the CPU before NumPy reads it")

    def __array__(self, *_: Any, **__: Any) -> Any:
        return self.numpy()

    def __repr__(self, **_: Any) -> str:
        return f"Placed({self.held!r}, device={self.device})"

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.held.__reduce_ex__(protocol)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        copied: Tensor = Placed(self.held.clone(), self.device)
        parameter = isinstance(self, nn.Parameter)
        copied = nn.Parameter(copied, self.requires_grad) if parameter else copied.requires_grad_(self.requires_grad)
        memo[id(self)] = copied
        return copied


def _run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run an operation on the held values and put what it gives onto the device."""
    if torch.is_inference_mode_enabled() and func._can_decompose():  # composite operations come whole then
        return func.decompose(*args, **kwargs)
    name = func._schema.name
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    placed = [tensor for tensor in tensors if isinstance(tensor, Placed)]
    device = _device_of(name, args, kwargs, tensors, placed)
    kwargs = {key: value for key, value in kwargs.items() if key != "pin_memory"}
    if "device" in kwargs:
        kwargs["device"] = torch.device("cpu")
    held = tree_map(lambda leaf: leaf.held if isinstance(leaf, Placed) else leaf, (args, kwargs))
    if name == "aten::histc":  # which GPUs have for whole numbers too
        held = tree_map(lambda leaf: leaf.float() if isinstance(leaf, Tensor) else leaf, held)
    if device.type != PRETENDED:
        return func(*held[0], **held[1])
    if torch.Tag.nondeterministic_seeded in func.tags:
        with _OwnRandomNumbers():
            found = func(*held[0], **held[1])
    else:
        found = func(*held[0], **held[1])
    for tensor in placed:
        if tensor.shape != tensor.held.shape:
            raise NotImplementedError(f"{name} changes the shape of a tensor on a pretended GPU in place")
    known = {id(tensor.held): tensor for tensor in placed}

    def put(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        return known[id(leaf)] if id(leaf) in known else Placed(leaf, device)

    return tree_map(put, found)


def _device_of(
    name: str, args: tuple[Any, ...], kwargs: dict[str, Any], tensors: list[Tensor], placed: list[Placed]
) -> torch.device:
    """Where an operation runs; refuses tensors of two devices, single numbers and indices on the CPU aside."""
    if placed and name not in _MOVES:
        for tensor in tensors:
            index = name in _INDEXED and tensor.device.type == "cpu" and not tensor.is_floating_point()
            if tensor.device != placed[0].device and tensor.ndim and not index:
                places = [f"{tuple(each.shape)} on {each.device}" for each in tensors]
                raise RuntimeError(f"{name} was given tensors of several devices: {', '.join(places)}")
    asked = kwargs.get("device")
    if asked is None:
        return args[0].device if name in _MOVES else placed[0].device if placed else torch.device("cpu")
    asked = torch.device(asked)
    return torch.device(PRETENDED, 0) if asked == torch.device(PRETENDED) else asked


class _OwnRandomNumbers:
    """The device's random state in place of the CPU's, inside a `with` block."""

    state = torch.Generator().manual_seed(987654321).get_state()

    def __enter__(self) -> None:
        self.outer = torch.get_rng_state()
        torch.set_rng_state(type(self).state)

    def __exit__(self, *_: Any) -> None:
        type(self).state = torch.get_rng_state()
        torch.set_rng_state(self.outer)


class _Module:
    """What torch asks a device's module for, such as `torch.cuda`."""

    is_initialized = is_available = staticmethod(lambda: True)
    _is_in_bad_fork = staticmethod(lambda: False)
    device_count = staticmethod(lambda: 2)
    current_device = staticmethod(lambda: 0)
    get_amp_supported_dtype = staticmethod(lambda: [torch.bfloat16])

    @staticmethod
    def manual_seed_all(seed: int) -> None:
        _OwnRandomNumbers.state = torch.Generator().manual_seed(seed + 1).get_state()

    @staticmethod
    def get_rng_state(device: Any = None) -> Tensor:
        return _OwnRandomNumbers.state.clone()

    @staticmethod
    def set_rng_state(state: Tensor, device: Any = None) -> None:
        _OwnRandomNumbers.state = state.clone()


class _PretendedAccelerator(Accelerator):
    """What Lightning asks for."""

    def setup_device(self, device: torch.device) -> None: ...

    def teardown(self) -> None: ...

    def get_device_stats(self, device: Any) -> dict[str, Any]:
        return {}

    @staticmethod
    def parse_devices(devices: Any) -> Any:
        return 1 if devices == "auto" else devices

    @staticmethod
    def get_parallel_devices(devices: Any) -> list[torch.device]:
        return [torch.device(PRETENDED, 0)]

    @staticmethod
    def auto_device_count() -> int:
        return 1

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def name() -> str:
        return PRETENDED


class _SafeOpen:
    """Safetensors's `safe_open`, which knows no such device."""

    def __init__(self, filename: Any, framework: str, device: Any = "cpu", **options: Any) -> None:
        self.pretended = torch.device(device) if torch.device(device).type == PRETENDED else None
        self.opened = safetensors.safe_open(filename, framework, "cpu" if self.pretended else device, **options)

    def __enter__(self) -> "_SafeOpen":
        self.opened.__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        self.opened.__exit__(*raised)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.opened, name)
        if self.pretended is None or name not in ("get_tensor", "get_tensors"):
            return found
        return lambda *args: tree_map(lambda tensor: tensor.to(self.pretended), found(*args))


def _factory(name: str) -> Callable[..., Tensor]:
    packet, _, overload = name.partition(".")
    func = getattr(getattr(torch.ops.aten, packet), overload or "default")
    return lambda *args, **options: _run(func, args, options)


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    held = [each.held if isinstance(each, Placed) else each for each in (target, source)]
    held[0].copy_(held[1])
    return target


def _pretend() -> torch.library.Library:
    """Make the device known to torch, Lightning and safetensors, for the rest of the process."""
    _setup_privateuseone_for_python_backend(PRETENDED, _Module())
    library = torch.library.Library("aten", "IMPL")
    for name in _FACTORIES:
        library.impl(name, _factory(name), "PrivateUse1")
    library.impl("_copy_from", _copy_from, "PrivateUse1")
    for module in list(sys.modules.values()):
        if module is not safetensors and vars(module).get("safe_open") is safetensors.safe_open:
            vars(module)["safe_open"] = _SafeOpen
    AcceleratorRegistry.register(PRETENDED, _PretendedAccelerator)
    choose = _AcceleratorConnector._choose_strategy

    def choose_strategy(connector: Any) -> Any:
        if connector._accelerator_flag == PRETENDED:
            return SingleDeviceStrategy(device=torch.device(PRETENDED, 0))
        return choose(connector)

    _AcceleratorConnector._choose_strategy = choose_strategy
    return library  # which takes its kernels with it when it goes


_LIBRARY = _pretend()
