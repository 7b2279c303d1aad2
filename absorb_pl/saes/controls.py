"""Control SAEs: what a measurement says of an SAE whose directions mean nothing."""

import copy
from typing import Any

import torch
from sae_lens import SAE
from torch import Tensor, nn

from absorb_pl.errors import AbsorbError, SaeArchitectureError
from absorb_pl.ranges import Seed, check_ranges
from absorb_pl.saes.adapters import AdaptedSae
from absorb_pl.saes.interface import SparseAutoencoder

CONTROL_KINDS = ("random", "shuffled_decoder")
"""`random` has directions drawn afresh; in `shuffled_decoder` latents fire as they do but point elsewhere."""


@torch.no_grad()
def control_sae(sae: SparseAutoencoder, kind: str, seed: Seed = 0) -> Any:
    """Make an SAE like another one whose latents carry no meaning, or point where others did.

    * `random`: decoder rows are drawn evenly from all directions and scaled to the norms they had; each encoder column
      is its decoder row's direction scaled to the norm it had. Biases, thresholds and settings stay, so the control
      has the shapes and scale of the SAE, but not its sparsity.
    * `shuffled_decoder`: every decoder row takes the direction of another (one random cycle through all of them) and
      keeps its norm. The encoder stays, so every latent fires exactly as it did.

    Args:
        sae: A SAELens SAE, or one from elsewhere whose `W_enc` and `W_dec` can be written to; left as it is.
        kind: Which control.
        seed: Seed of the draw.

    Returns:
        Another SAE of the same class, dtype and device, in evaluation mode and without gradients.

    Raises:
        AbsorbError: There is no such kind.
        SaeArchitectureError: The SAE has no encoder matrix; or its encoder is its decoder (matching pursuit), so that
            a shuffled decoder would make other latents fire; or its weights cannot be written to.

    Example:
        >>> from absorb_pl.saes.loading import load_sae
        >>> sae = load_sae("speller/l1-batchtopk-w1024-medium")
        >>> control, x = control_sae(sae, "shuffled_decoder"), torch.randn(2, 128)
        >>> bool((control.encode(x) == sae.encode(x)).all()), bool((control.W_dec == sae.W_dec).all())
        (True, False)
    """
    check_ranges(control_sae, locals())
    check_control(sae, kind)
    inner: Any = sae.sae if isinstance(sae, AdaptedSae) else sae
    encoder, decoder = inner.W_enc, inner.W_dec
    tied = encoder.data_ptr() == decoder.data_ptr()
    generator = torch.Generator().manual_seed(seed)
    norms = decoder.detach().float().norm(dim=1, keepdim=True)
    if kind == "random":
        directions = nn.functional.normalize(torch.randn(decoder.shape, generator=generator), dim=1).to(decoder.device)
    else:
        order = torch.randperm(len(decoder), generator=generator).to(decoder.device)
        directions = nn.functional.normalize(decoder.detach().float(), dim=1)
        directions[order] = directions[order.roll(1)]
    control = copied(sae)
    changed = control.sae if isinstance(control, AdaptedSae) else control
    _write(sae, changed, "W_dec", directions * norms)
    if kind == "random" and not tied:
        _write(sae, changed, "W_enc", directions.T * encoder.detach().float().norm(dim=0))
    control.eval()
    control.requires_grad_(False)
    return control


def copied(sae: SparseAutoencoder) -> Any:
    """Copy an SAE with its weights.

    Args:
        sae: A SAELens SAE, or one from elsewhere.

    Returns:
        Another of the same class, settings, dtype and device, which shares no memory with it.

    Example:
        >>> from types import SimpleNamespace
        >>> sae = SimpleNamespace(W_dec=torch.eye(2), encode=torch.relu)
        >>> copied(sae).W_dec.data_ptr() == sae.W_dec.data_ptr()
        False
    """
    if not isinstance(sae, SAE):
        return copy.deepcopy(sae)
    # A SAELens SAE holds functions bound to itself, which a deep copy would share with it.
    cfg, device, reshapes = copy.deepcopy(sae.cfg), sae.W_dec.device, sae.hook_z_reshaping_mode
    cfg.device = "meta"
    made = type(sae)(cfg)
    made.load_state_dict({name: tensor.clone() for name, tensor in sae.state_dict().items()}, assign=True)
    made.to(device=device, dtype=sae.W_dec.dtype)
    if reshapes and not made.hook_z_reshaping_mode:
        made.turn_on_forward_pass_hook_z_reshaping()
    return made


def check_control(sae: SparseAutoencoder, kind: str) -> None:
    """Refuse a control that an SAE cannot have.

    Args:
        sae: The SAE.
        kind: Which control.

    Raises:
        AbsorbError: There is no such kind.
        SaeArchitectureError: The SAE has no encoder matrix; or its encoder is its decoder (matching pursuit), so that
            a shuffled decoder would make other latents fire.

    Example:
        >>> from types import SimpleNamespace
        >>> check_control(SimpleNamespace(W_dec=torch.eye(2), encode=torch.relu), "random")
        Traceback (most recent call last):
            ...
        absorb_pl.errors.SaeArchitectureError: `sae` was 'SimpleNamespace', expected an SAE with an encoder matrix...
    """
    if kind not in CONTROL_KINDS:
        raise AbsorbError("kind", kind, expected=" or ".join(CONTROL_KINDS), remedy="Name one of these.")
    inner: Any = sae.sae if isinstance(sae, AdaptedSae) else sae
    encoder = getattr(inner, "W_enc", None)
    if not isinstance(encoder, Tensor):
        raise _refused(sae, "an SAE with an encoder matrix `W_enc`", "It has none of its own.")
    if kind == "shuffled_decoder" and encoder.data_ptr() == inner.W_dec.data_ptr():
        raise _refused(sae, "an SAE with an encoder apart from its decoder", "Use the control 'random'.")


def _write(sae: SparseAutoencoder, control: Any, name: str, value: Tensor) -> None:
    held = getattr(control, name)
    value = value.to(held)
    held.detach().copy_(value)
    if not torch.equal(getattr(control, name), value):
        raise _refused(sae, f"an SAE whose `{name}` can be written to", f"Keep `{name}` itself in an attribute.")


def _refused(sae: SparseAutoencoder, expected: str, remedy: str) -> SaeArchitectureError:
    return SaeArchitectureError("sae", type(sae).__name__, expected=expected, remedy=remedy)
