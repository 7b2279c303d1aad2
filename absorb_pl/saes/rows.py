"""Running SAEs: on activations as a hook has them, and on rows, one per word with its heads side by side."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Bool, Float
from sae_lens import SAE
from torch import Tensor

from absorb_pl.errors import SaeInterfaceError
from absorb_pl.matrix_products import fast_products
from absorb_pl.saes.interface import SparseAutoencoder
from absorb_pl.saes.properties import require_rows, require_width
from absorb_pl.saes.scale import unwrapped_sae

_AT_ONE_DECODING = (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
_ROUNDING = 1e-6
"""How far derivatives of `decode` at two rows may differ, as a share of the largest, to be taken for the same."""


def encode(sae: SparseAutoencoder, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Latents of activations on the SAE's own device and in its precision, without gradients.

    An SAE that normalises its input keeps the norm for the next `decode`, and for one only.

    Args:
        sae: The SAE.
        x: Activations at its hook, `[..., d_model]`.

    Returns:
        Latents, `[..., latents]`.

    Raises:
        SaeArchitectureError: Single rows are given to an SAE whose latents depend on earlier tokens.

    Example:
        >>> from types import SimpleNamespace
        >>> encode(SimpleNamespace(W_dec=torch.eye(2), encode=torch.relu), torch.tensor([1.0, -2.0]))
        tensor([1., 0.])
    """
    if x.ndim == 2:
        require_rows(sae)
    with torch.no_grad(), fast_products():
        return sae.encode(x.to(sae.W_dec)).detach()


def encode_rows(sae: SparseAutoencoder, x: Float[Tensor, "rows d_in"]) -> Float[Tensor, "rows latents"]:
    """Latents of rows, in the SAE's own precision and on its device, without gradients.

    Rows are converted at the SAE's border. An SAE that reads activations split into heads (SAELens's
    `reshape_activations="hook_z"`) takes rows in which they lie side by side, and is left as it was.

    Args:
        sae: The SAE.
        x: Activations, one vector per row.

    Returns:
        Latents.

    Raises:
        SaeArchitectureError: Its latents at a token depend on the tokens before it.
        SaeWidthError: It reads activations of another width.

    Example:
        >>> from types import SimpleNamespace
        >>> encode_rows(SimpleNamespace(W_dec=torch.eye(2), encode=torch.relu), torch.tensor([[1.0, -2.0]]))
        tensor([[1., 0.]])
    """
    require_width(sae, x.shape[-1])
    with _flat(sae):
        return encode(sae, x)


def decode_rows(sae: SparseAutoencoder, latents: Float[Tensor, "rows latents"]) -> Float[Tensor, "rows d_in"]:
    """Reconstructions of the rows encoded last, without gradients.

    Args:
        sae: The SAE.
        latents: What `encode_rows` gave for them.

    Returns:
        Reconstructions, heads side by side.

    Example:
        >>> from types import SimpleNamespace
        >>> decode_rows(SimpleNamespace(decode=lambda latents: 2 * latents), torch.tensor([[1.0, 0.0]]))
        tensor([[2., 0.]])
    """
    with torch.no_grad(), _flat(sae):
        return sae.decode(latents).detach()


def encode_and_project(
    sae: SparseAutoencoder, x: Float[Tensor, "rows d_in"], direction: Float[Tensor, "*rows d_in"]
) -> tuple[Float[Tensor, "rows latents"], Float[Tensor, "rows latents"]]:
    """Latents of rows, and how far what each contributes to the reconstruction reaches along a direction.

    What latent j contributes is decode(f_j e_j) - decode(0). `decode` is affine, so its part along the direction is
    f_j times the derivative of `decode(f) · direction` by f_j, whatever the SAE does with decoder norms
    (`rescale_acts_by_decoder_norm`) or with the norm of what it read (`normalize_activations`): one backward pass gives
    all latents of a row.

    Args:
        sae: The SAE; its `decode` must be differentiable.
        x: Activations, one vector per row.
        direction: A direction in the SAE's input, or one for each row, heads side by side; of length one for
            projections.

    Returns:
        Latents, and contributions along the direction in units of `x`; both in float32 or better.

    Raises:
        SaeArchitectureError: Its latents at a token depend on the tokens before it.
        SaeInterfaceError: `decode` is not differentiable.

    Example:
        >>> from types import SimpleNamespace
        >>> sae = SimpleNamespace(W_dec=torch.eye(2), encode=torch.relu, decode=lambda latents: 3 * latents)
        >>> encode_and_project(sae, torch.tensor([[1.0, -2.0]]), torch.tensor([1.0, 0.0]))[1]
        tensor([[3., 0.]])
    """
    encoded, decoded = _encoded_and_decoded(sae, x)
    latents = _wide(encoded.detach())
    return latents, _wide(_slopes(encoded, decoded, direction)) * latents


def encode_and_sum(
    sae: SparseAutoencoder,
    x: Float[Tensor, "rows d_in"],
    directions: Float[Tensor, "classes d_in"],
    counted: Bool[Tensor, "rows classes"],
) -> Float[Tensor, "classes latents"]:
    """Sum over rows of what each latent contributes along directions, see `encode_and_project`.

    Where `decode` has the same derivative at all rows, it is taken at one.

    Args:
        sae: The SAE; its `decode` must be differentiable.
        x: Activations, one vector per row.
        directions: Directions in the SAE's input.
        counted: The rows that each direction's sum is over.

    Returns:
        Sums in float64.

    Raises:
        SaeArchitectureError: Its latents at a token depend on the tokens before it.
        SaeInterfaceError: `decode` is not differentiable.

    Example:
        >>> from types import SimpleNamespace
        >>> sae = SimpleNamespace(W_dec=torch.eye(2), encode=torch.relu, decode=lambda latents: 3 * latents)
        >>> x, counted = torch.tensor([[1.0, 2.0], [1.0, 0.0]]), torch.tensor([[True], [True]])
        >>> encode_and_sum(sae, x, torch.tensor([[1.0, 0.0]]), counted)
        tensor([[6., 0.]], dtype=torch.float64)
    """
    encoded, decoded = _encoded_and_decoded(sae, x)
    latents, counted = _wide(encoded.detach()), counted.to(encoded.device)
    if (one := _one_row(sae, encoded, decoded)) is not None:
        slopes = torch.cat([_slopes(*one, direction) for direction in directions])
        return slopes.double() * (counted.T.double() @ latents.double())
    sums = [
        (_wide(_slopes(encoded, decoded, direction)) * latents)[rows].sum(dim=0, dtype=torch.float64)
        for direction, rows in zip(directions, counted.T, strict=True)
    ]
    return torch.stack(sums)


def _encoded_and_decoded(sae: SparseAutoencoder, x: Tensor) -> tuple[Tensor, Tensor]:
    """Latents that gradients reach, and what is decoded from them."""
    with torch.inference_mode(False), torch.enable_grad(), _flat(sae):
        encoded = encode_rows(sae, x.clone()).requires_grad_()
        decoded = sae.decode(encoded)
    if not decoded.requires_grad:
        raise SaeInterfaceError(
            "sae.decode",
            type(sae).__name__,
            expected="a differentiable method, as its derivative says what each latent contributes",
            remedy="Compute it with torch operations, without `no_grad` or `detach`.",
        )
    return encoded, decoded


def _slopes(encoded: Tensor, decoded: Tensor, direction: Tensor) -> Tensor:
    """How much each latent writes along a direction, `[rows, latents]`."""
    along = direction.to(decoded).expand_as(decoded)
    return torch.autograd.grad(decoded, encoded, along, retain_graph=True)[0]


def _one_row(sae: SparseAutoencoder, encoded: Tensor, decoded: Tensor) -> tuple[Tensor, Tensor] | None:
    """The first row by itself, if `decode` has its derivative at all rows, as far as rounding lets one see.

    Some SAEs scale what they decode by a number of each row.
    """
    if len(encoded) < 2:
        return None
    with torch.inference_mode(False), torch.enable_grad(), _flat(sae):
        first = encoded.detach()[:1].clone().requires_grad_()
        try:
            alone = sae.decode(first)
        except _AT_ONE_DECODING:  # it keeps numbers of the rows that were encoded, for one decoding
            return None
    if alone.shape != decoded[:1].shape:
        return None
    direction = torch.linspace(1, 2, decoded.shape[1], device=decoded.device)
    slopes, of_first = _wide(_slopes(encoded, decoded, direction)), _wide(_slopes(first, alone, direction))
    near = (slopes - of_first).abs().max() <= _ROUNDING * of_first.abs().max()
    return (first, alone) if bool(near) else None


def encoder_parts(
    sae: SparseAutoencoder,
) -> tuple[Float[Tensor, "d_in latents"], Float[Tensor, " latents"], Float[Tensor, " latents"] | None]:
    """Encoder columns, biases and thresholds by which single latents are scored.

    A latent's raw score on an activation is its encoder column's product with it, plus its bias, less its threshold.
    Gated SAEs fire by their gate, so `b_gate` is their bias. SAEs without encoder biases (matching pursuit) have zeros
    there. SAEs without an encoder matrix are scored by their decoder rows in its place. All are in the SAE's own
    scale, whatever the scale of its latents (`to_unit_norms`): a score's sign and ranking do not see it.

    Args:
        sae: A SAELens SAE, or any object with `W_dec`.

    Returns:
        `W_enc` as it is, bias and threshold in float32 or better; the threshold is None if the SAE has none.

    Example:
        >>> from types import SimpleNamespace
        >>> encoder, bias, threshold = encoder_parts(SimpleNamespace(W_dec=torch.tensor([[1.0, 0.0], [2.0, 1.0]])))
        >>> encoder, bias, threshold
        (tensor([[1., 2.],
                [0., 1.]]), tensor([0., 0.]), None)
    """
    sae = unwrapped_sae(sae)
    encoder = _tensor(sae, "W_enc")
    encoder = sae.W_dec.detach().T if encoder is None else encoder
    bias = next((found for name in ("b_enc", "b_gate") if (found := _tensor(sae, name)) is not None), None)
    threshold = _tensor(sae, "threshold")
    return (
        encoder,
        _wide(encoder.new_zeros(encoder.shape[1]) if bias is None else bias),
        None if threshold is None else _wide(threshold),
    )


def _tensor(sae: SparseAutoencoder, name: str) -> Tensor | None:
    value = getattr(sae, name, None)
    return value.detach() if isinstance(value, Tensor) else None


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


@contextmanager
def _flat(sae: SparseAutoencoder) -> Iterator[None]:
    """Make a SAELens SAE that splits activations into heads take them side by side, for a while."""
    sae = unwrapped_sae(sae)
    if not (isinstance(sae, SAE) and sae.hook_z_reshaping_mode):
        yield
        return
    ways = sae.reshape_fn_in, sae.reshape_fn_out, getattr(sae, "d_head", None)
    sae.turn_off_forward_pass_hook_z_reshaping()
    try:
        yield
    finally:
        sae.reshape_fn_in, sae.reshape_fn_out, sae.d_head = ways
        sae.hook_z_reshaping_mode = True
