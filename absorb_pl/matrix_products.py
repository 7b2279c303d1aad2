"""Products of float32 matrices on processors whose vectors MKL leaves half empty.

PyTorch multiplies float32 matrices on a CPU with MKL, which computes in vectors of 256 bits on AMD's processors, also
where they have 512. oneDNN, which PyTorch has as well (for `torch.compile`), uses all of them, which makes large
products twice as fast. Both compute in float32 throughout.
"""

import functools
import platform
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SMALLEST = 2**22
"""Multiplications in the smallest product that goes to oneDNN, which takes as long to prepare for a new shape."""

_LEAST_SIDE = 8
_CALLED = threading.local()
_ONE_AT_A_TIME = threading.Lock()


@contextmanager
def fast_products() -> Iterator[None]:
    """Multiply large float32 matrices by oneDNN for a while, in this thread, where it is faster than MKL.

    That is on AMD's processors with AVX-512, in PyTorch 2.9 or later. Elsewhere nothing changes, nor does it on GPUs,
    in other dtypes, or with `torch.backends.mkldnn.enabled` off. Backward passes that are begun here are included. From
    the first use on, every product of matrices on the CPU passes through a check in Python, which takes microseconds.

    Example:
        >>> a, b = torch.randn(300, 200), torch.randn(200, 100)
        >>> with fast_products():
        ...     product = a @ b
        >>> bool((product - a.double() @ b.double()).abs().max() < 1e-3)
        True
    """
    depth = getattr(_CALLED, "depth", 0)
    _CALLED.depth = depth + (torch.backends.mkldnn.enabled and _is_chosen())
    try:
        yield
    finally:
        _CALLED.depth = depth


def mkl_is_narrow() -> bool:
    """Whether MKL computes in narrower vectors than this processor has."""
    has_both = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    return has_both and torch.backends.cpu.get_cpu_capability() == "AVX512" and "AuthenticAMD" in _maker()


def _maker() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return platform.processor()
    return next((line for line in lines if line.startswith("vendor_id")), "")


def _is_chosen() -> bool:
    with _ONE_AT_A_TIME:
        return _kernels() is not None


@functools.cache
def _kernels() -> torch.library.Library | None:
    """Put our choice between oneDNN and what PyTorch does before PyTorch's own kernels, once in a process."""
    if not (mkl_is_narrow() and hasattr(torch.library, "get_kernel")):
        return None
    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"(?s).*Overriding a previously registered kernel")
        for name, product in (("mm", _mm), ("addmm", _addmm)):
            own = torch.library.get_kernel(f"aten::{name}", "CPU")
            library.impl(name, functools.partial(product, own.call_boxed), "CPU", with_keyset=True)
    return library


def _mm(own: Callable[..., Tensor], keys: Any, a: Tensor, b: Tensor) -> Tensor:
    return _linear(a, b, None) if _is_large(a, b) else own(keys, a, b)


def _addmm(
    own: Callable[..., Tensor], keys: Any, c: Tensor, a: Tensor, b: Tensor, *, beta: Any = 1, alpha: Any = 1
) -> Tensor:
    if _is_large(a, b) and beta == 1 and alpha == 1 and c.dtype == torch.float32 and c.shape == b.shape[1:]:
        return _linear(a, b, c)
    return own(keys, c, a, b, beta=beta, alpha=alpha)


def _is_large(a: Tensor, b: Tensor) -> bool:
    if not getattr(_CALLED, "depth", 0) or not a.dtype == b.dtype == torch.float32 or not a.ndim == b.ndim == 2:
        return False
    (rows, inner), (also_inner, columns) = a.shape, b.shape
    return inner == also_inner and rows * inner * columns >= SMALLEST and min(rows, columns) >= _LEAST_SIDE


def _linear(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    """`a @ b + bias`; oneDNN copies a left factor that is not contiguous, so that a large one goes to the right."""
    if bias is None and not a.is_contiguous() and a.numel() > b.numel() + len(a) * b.shape[1]:
        return _onednn(b.t(), a, None).t().contiguous()
    return _onednn(a, b.t(), bias)


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if not (weight.is_contiguous() or weight.t().is_contiguous()):  # it takes such a one a thousand times more slowly
        weight = weight.contiguous()
    bias = None if bias is None else bias.contiguous()  # it does not look at the stride
    return torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, "none", [], "")
