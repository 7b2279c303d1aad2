"""SAEs from elsewhere: the module that makes one do as SAELens's SAEs do."""

from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from absorb_pl.errors import SaeInterfaceError


class AdaptedSae(nn.Module):
    """An SAE from elsewhere with what the rest of the package asks of one.

    Activations are converted to its precision and device at its border, and heads are laid side by side where a hook
    has a head axis; moving it moves the tensors of plain objects too.

    Args:
        sae: The SAE.
        hook_name: Hook that it reads; by default what the SAE says.

    Raises:
        SaeInterfaceError: A member is missing, or it gives tensors of other shapes than `W_dec` says.

    Example:
        >>> class Mine:
        ...     W_dec, hook_name = torch.eye(3), "blocks.0.hook_resid_pre"
        ...     def encode(self, x):
        ...         return x.relu()
        ...     def decode(self, latents):
        ...         return latents
        >>> AdaptedSae(Mine()).encode(torch.tensor([1.0, -2.0, 3.0]))
        tensor([1., 0., 3.])
    """

    def __init__(self, sae: Any, hook_name: str | None = None) -> None:
        super().__init__()
        _check_members(sae)
        self.sae: Any = sae
        said = getattr(getattr(getattr(sae, "cfg", None), "metadata", None), "hook_name", None)
        self.hook_name: str | None = hook_name or said or getattr(sae, "hook_name", None)
        named = getattr(sae, "architecture", None)
        self.architecture = str(named() if callable(named) else named or type(sae).__name__)
        self.reads_sequences = bool(getattr(sae, "reads_sequences", False))
        self._heads: torch.Size | None = None
        if not self.reads_sequences:
            self._check_shapes()

    @property
    def W_dec(self) -> Tensor:
        """Decoder rows, `[latents, d_in]`."""
        return self.sae.W_dec

    def encode(self, x: Tensor) -> Tensor:
        """Latents of activations, with or without a head axis, `[..., latents]`."""
        d_in = self.W_dec.shape[1]
        self._heads = None if x.shape[-1] == d_in else x.shape[-2:]
        return self.sae.encode((x if self._heads is None else x.flatten(-2)).to(self.W_dec))

    def decode(self, latents: Tensor) -> Tensor:
        """Reconstructions, with a head axis if the activations encoded last had one."""
        decoded = self.sae.decode(latents)
        return decoded if self._heads is None else decoded.unflatten(-1, self._heads)

    @override
    def to(self, *args: Any, **kwargs: Any) -> "AdaptedSae":
        """Move the SAE to a device or dtype, as `nn.Module.to` does."""
        target = self.W_dec.detach().new_empty(0).to(*args, **kwargs)
        if isinstance(self.sae, nn.Module):
            super().to(*args, **kwargs)
        elif callable(move := getattr(self.sae, "to", None)):
            self.sae = move(target.device, target.dtype) or self.sae
        for name, value in vars(self.sae).items() if hasattr(self.sae, "__dict__") else ():
            if isinstance(value, nn.Module):
                value.to(target.device, target.dtype)
            elif isinstance(value, Tensor):
                setattr(self.sae, name, value.to(target if value.is_floating_point() else target.device))
        if (self.W_dec.device, self.W_dec.dtype) != (target.device, target.dtype):
            raise SaeInterfaceError(
                "to",
                f"W_dec in {self.W_dec.dtype} on {self.W_dec.device}",
                expected=f"{target.dtype} on {target.device}",
                remedy=f"Give {type(self.sae).__name__} a method `to(device, dtype)` that moves all its tensors.",
            )
        return self

    @torch.no_grad()
    def _check_shapes(self) -> None:
        decoder = self.W_dec
        rows = torch.ones(2, decoder.shape[1], dtype=decoder.dtype, device=decoder.device)
        latents = self.sae.encode(rows)
        _check_shape("encode", latents, (2, decoder.shape[0]))
        _check_shape("decode", self.sae.decode(latents), tuple(rows.shape))


def _check_members(sae: Any) -> None:
    for name in ("encode", "decode", "W_dec"):
        value = getattr(sae, name, None)
        if not (isinstance(value, Tensor) and value.ndim == 2 if name == "W_dec" else callable(value)):
            raise SaeInterfaceError(
                f"sae.{name}",
                value,
                expected="a tensor [latents, d_in]" if name == "W_dec" else "a method",
                remedy=f"Give {type(sae).__name__} the members `encode`, `decode` and `W_dec` of "
                "`absorb_pl.saes.SparseAutoencoder`.",
            )


def _check_shape(method: str, found: Any, expected: tuple[int, ...]) -> None:
    if not isinstance(found, Tensor) or tuple(found.shape) != expected:
        raise SaeInterfaceError(
            f"sae.{method}",
            f"a result of shape {tuple(getattr(found, 'shape', ()))}",
            expected=f"{expected} for two rows and this `W_dec`",
            remedy="`W_dec` is [latents, d_in]; `encode` gives all latents, `decode` the reconstruction.",
        )
