"""One scale for all SAEs: decoder rows of unit norm, their norms in the latents.

An SAE whose decoder row is multiplied by a number and whose latent is divided by it is the same function. Penalties of
probes and thresholds see the scale of the latents, so it is fixed before anything is measured, here and nowhere else.
"""

from typing import Any, Literal

import torch
from jaxtyping import Float
from sae_lens import SAE
from torch import Tensor, nn
from typing_extensions import override

from absorb_pl.errors import SaeInterfaceError
from absorb_pl.saes.adapters import AdaptedSae
from absorb_pl.saes.properties import reads_sequences

Folding = Literal["", "weights", "latents"]
"""How norms were folded: not at all, as they were 1; into the weights; or into latents as they are encoded."""

_ROWS_AT_ONCE = 2**14
_SHORTEST = 1e-8  # SAELens folds shorter rows by this number


class UnitNormSae(nn.Module):
    """An SAE with decoder rows of unit norm, whatever it does between `encode` and `decode`.

    Latents are the SAE's own times the norms of its decoder rows, and are divided by them before it decodes. So it
    fires the same latents and gives the same reconstruction, also where folding norms into the encoder would choose
    others (top-k). A latent whose decoder row is zero writes nothing and is 0.

    Args:
        sae: A SAELens SAE, or one from elsewhere; left as it is.

    Attributes:
        sae: The SAE.
        W_dec: Its decoder rows, scaled to unit norm, `[latents, d_in]`.
        norms: The norms that they had, `[latents]`.

    Example:
        >>> from types import SimpleNamespace
        >>> sae = SimpleNamespace(W_dec=2 * torch.eye(2), encode=torch.relu, decode=lambda latents: 2 * latents)
        >>> unit, x = UnitNormSae(sae), torch.tensor([1.0, -2.0])
        >>> unit.encode(x), unit.decode(unit.encode(x))
        (tensor([2., 0.]), tensor([2., 0.]))
    """

    W_dec: Tensor
    norms: Tensor
    _divisors: Tensor

    def __init__(self, sae: Any) -> None:
        super().__init__()
        self.sae: Any = sae
        decoder = sae.W_dec.detach()
        norms = decoder_norms(decoder)
        norms = norms.where(~_is_one(norms, decoder), 1)  # no digit of what is unit to within rounding changes
        divisors = norms.where(norms > 0, 1)
        self.register_buffer("norms", norms.to(decoder.dtype), persistent=False)
        self.register_buffer("_divisors", divisors.to(decoder.dtype), persistent=False)
        wide = torch.promote_types(decoder.dtype, torch.float32)
        unit = (decoder / divisors.to(wide).unsqueeze(1)).to(decoder.dtype)
        self.register_buffer("W_dec", unit, persistent=False)
        self.cfg: Any = getattr(unwrapped_sae(sae), "cfg", None)
        self.hook_name: str | None = getattr(sae, "hook_name", None)
        self.reads_sequences = reads_sequences(sae)

    def encode(self, x: Tensor) -> Tensor:
        """Latents of activations, times the norms of their decoder rows."""
        return self.sae.encode(x) * self.norms

    def decode(self, latents: Tensor) -> Tensor:
        """The SAE's reconstruction from such latents."""
        return self.sae.decode(latents / self._divisors)

    @override
    def to(self, *args: Any, **kwargs: Any) -> "UnitNormSae":
        """Move the SAE to a device or dtype, as `nn.Module.to` does."""
        if callable(move := getattr(self.sae, "to", None)):
            self.sae = move(*args, **kwargs) or self.sae
        for name, buffer in self.named_buffers(recurse=False):
            setattr(self, name, buffer.to(*args, **kwargs))
        if self.W_dec.device != self.sae.W_dec.device:
            raise SaeInterfaceError(
                "to",
                f"W_dec on {self.sae.W_dec.device}",
                expected=f"{self.W_dec.device}",
                remedy=f"Give {type(self.sae).__name__} a method `to(device, dtype)` that moves all its tensors.",
            )
        return self


@torch.no_grad()
def to_unit_norms(sae: Any, *, in_place: bool = False) -> Any:
    """Bring an SAE's latents to the scale in which everything is measured: decoder rows of unit norm.

    Args:
        sae: A SAELens SAE, or one from elsewhere.
        in_place: Whether the SAE's weights may be changed. Then SAELens folds norms into them (`fold_W_dec_norm`) where
            it can without another choice of latents, which costs nothing afterwards.

    Returns:
        The SAE itself where its rows have unit norm to within rounding, so that no digit of it changes, or where norms
        were folded into its weights; else a `UnitNormSae` around it.

    Example:
        >>> from absorb_pl.saes.loading import load_sae
        >>> sae = load_sae("speller/l1-standard-w512-dense")
        >>> to_unit_norms(sae) is sae
        True
        >>> sae.W_dec.data *= 3
        >>> to_unit_norms(sae).W_dec.norm(dim=1).mean()
        tensor(1.)
    """
    decoder = getattr(sae, "W_dec", None)
    if not isinstance(decoder, Tensor) or isinstance(sae, UnitNormSae):
        return sae
    norms = decoder_norms(decoder)
    if has_unit_norms(norms, decoder):
        return sae
    wide = torch.finfo(decoder.dtype).eps <= torch.finfo(torch.float32).eps  # folding rounds the weights once more
    if in_place and isinstance(sae, SAE) and wide and bool((norms > _SHORTEST).all()):
        try:
            sae.fold_W_dec_norm()
        except NotImplementedError:
            return UnitNormSae(sae)
        return sae
    return UnitNormSae(sae)


def folding_of(before: Tensor, after: Any) -> Folding:
    """Say how `to_unit_norms` brought an SAE to unit norms.

    Args:
        before: Norms of the decoder rows as they were loaded, `[latents]`.
        after: What `to_unit_norms` gave.
    """
    if isinstance(after, UnitNormSae):
        return "latents"
    return "" if has_unit_norms(before, after.W_dec) else "weights"


def decoder_norms(decoder: Float[Tensor, "latents d_in"]) -> Float[Tensor, " latents"]:
    """Norms of decoder rows, in float64, so that no order of summation shows once they are rounded.

    Args:
        decoder: The rows.

    Example:
        >>> decoder_norms(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        tensor([5., 0.], dtype=torch.float64)
    """
    parts = decoder.detach().split(_ROWS_AT_ONCE)
    return torch.cat([torch.linalg.vector_norm(part, dim=1, dtype=torch.float64) for part in parts])


def has_unit_norms(norms: Float[Tensor, " latents"], decoder: Tensor) -> bool:
    """Tell whether norms are 1 to within the rounding of rows that were scaled to unit norm.

    Values of a row are rounded to half a unit of the dtype that they were saved in, which is float32 even where they
    are float64 now, and the sum of `d_in` squares grows a rounding error of about √d_in units.

    Args:
        norms: Norms of the rows.
        decoder: The rows, for their dtype and width.

    Example:
        >>> rows = torch.nn.functional.normalize(torch.randn(1000, 50), dim=1)
        >>> has_unit_norms(decoder_norms(rows), rows), has_unit_norms(decoder_norms(1.001 * rows), rows)
        (True, False)
    """
    return bool(_is_one(norms, decoder).all())


def _is_one(norms: Tensor, decoder: Tensor) -> Tensor:
    allowed = max(torch.finfo(decoder.dtype).eps, torch.finfo(torch.float32).eps * decoder.shape[1] ** 0.5)
    return (norms - 1).abs() <= allowed


def unwrapped_sae(sae: Any) -> Any:
    """The SAE inside what was put around it here: `UnitNormSae`, `AdaptedSae`, or both.

    Args:
        sae: Any SAE.

    Example:
        >>> from types import SimpleNamespace
        >>> mine = SimpleNamespace(W_dec=2 * torch.eye(2))
        >>> unwrapped_sae(UnitNormSae(mine)) is mine
        True
    """
    while isinstance(sae, UnitNormSae | AdaptedSae):
        sae = sae.sae
    return sae
