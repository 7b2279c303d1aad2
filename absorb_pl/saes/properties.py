"""What an SAE says of itself and whether it fits a model: hook, width, heads, and what it needs to be measured."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from sae_lens import SAE, TemporalSAE, Transcoder
from torch import Tensor

from absorb_pl.errors import (
    HookMismatchError,
    HookNotFoundError,
    SaeArchitectureError,
    SaeWeightsError,
    SaeWidthError,
)
from absorb_pl.models.hooked_model import HookedModel
from absorb_pl.models.language_model import check_hook
from absorb_pl.saes.interface import SparseAutoencoder

_WEIGHTS = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold", "log_threshold", "b_gate", "b_mag", "r_mag")


def sae_hook_name(sae: SparseAutoencoder) -> str:
    """Give the name of the hook that an SAE was trained at.

    Args:
        sae: A SAELens SAE, or one from elsewhere with a `hook_name`.

    Returns:
        The TransformerLens name in `sae.cfg.metadata.hook_name`, else in `sae.hook_name`.

    Raises:
        HookNotFoundError: If the SAE does not say.

    Example:
        >>> from types import SimpleNamespace
        >>> metadata = SimpleNamespace(hook_name="blocks.5.hook_resid_pre")
        >>> sae_hook_name(SimpleNamespace(cfg=SimpleNamespace(metadata=metadata)))
        'blocks.5.hook_resid_pre'
    """
    hook_name = _said(sae, "hook_name") or getattr(sae, "hook_name", None)
    if not hook_name:
        raise HookNotFoundError(
            "sae.cfg.metadata.hook_name",
            hook_name,
            expected="the name of the hook that the SAE reads",
            remedy="Pass hook_name, name the SAE `<name>@<hook name>`, or write it into the SAE's cfg.json.",
        )
    return hook_name


def neuronpedia_place(sae: SparseAutoencoder) -> str:
    """Where Neuronpedia shows an SAE's latents, by its metadata; empty if they do not say.

    Args:
        sae: A SAELens SAE, or one from elsewhere.

    Example:
        >>> from types import SimpleNamespace
        >>> metadata = SimpleNamespace(neuronpedia_id="gemma-2-2b/12-gemmascope-res-16k")
        >>> neuronpedia_place(SimpleNamespace(cfg=SimpleNamespace(metadata=metadata)))
        'gemma-2-2b/12-gemmascope-res-16k'
    """
    return str(_said(sae, "neuronpedia_id") or "")


def hedging_of(sae: SparseAutoencoder) -> float:
    """Degree of hedging that an SAE's training measured, by its metadata; NaN if they do not say.

    Args:
        sae: A SAELens SAE, or one from elsewhere.

    Example:
        >>> from types import SimpleNamespace
        >>> metadata = SimpleNamespace(hedging_degree=0.25)
        >>> hedging_of(SimpleNamespace(cfg=SimpleNamespace(metadata=metadata))), hedging_of(SimpleNamespace())
        (0.25, nan)
    """
    degree = _said(sae, "hedging_degree")
    return float("nan") if degree is None else float(degree)


def layer_of_hook(hook_name: str | None) -> int | None:
    """Number of the block in a hook's name.

    Args:
        hook_name: A TransformerLens hook name.

    Returns:
        The number; None if there is none.

    Example:
        >>> layer_of_hook("blocks.12.hook_resid_post"), layer_of_hook("hook_embed")
        (12, None)
    """
    found = re.search(r"blocks\.(\d+)\.", hook_name or "")
    return int(found[1]) if found else None


def sae_architecture(sae: SparseAutoencoder) -> str:
    """Give the architecture that an SAE was trained as, if it says so, else the one it infers as.

    Args:
        sae: A SAELens SAE, or one from elsewhere, which may name its `architecture`.

    Returns:
        SAELens's name of it, such as `matryoshka_batchtopk`; an SAE from elsewhere that names none goes by its class.

    Example:
        >>> sae_architecture(torch.nn.Linear(2, 2))
        'Linear'
    """
    if isinstance(sae, SAE):
        return str(sae.cfg.metadata.training_architecture or sae.cfg.architecture())
    named = getattr(sae, "architecture", None)
    return str(named() if callable(named) else named or type(sae).__name__)


def reads_sequences(sae: SparseAutoencoder) -> bool:
    """Tell whether an SAE's latents at a token depend on the tokens before it.

    SAELens's temporal SAEs do: they predict part of each activation from the context. An SAE from elsewhere says so
    with an attribute `reads_sequences`.

    Args:
        sae: The SAE.

    Returns:
        True if single rows of activations cannot be encoded.

    Example:
        >>> reads_sequences(torch.nn.Linear(2, 2))
        False
    """
    return isinstance(sae, TemporalSAE) or bool(getattr(sae, "reads_sequences", False))


def require_rows(sae: SparseAutoencoder) -> None:
    """Refuse SAEs that cannot encode an activation by itself.

    Args:
        sae: The SAE.

    Raises:
        SaeArchitectureError: Its latents at a token depend on the tokens before it.

    Example:
        >>> require_rows(torch.nn.Linear(2, 2))
    """
    if reads_sequences(sae):
        raise SaeArchitectureError(
            "sae",
            sae_architecture(sae),
            expected="an SAE whose latents at a token depend on that token's activation alone",
            remedy="Words are scored from one cached activation each, which does not determine the latents of an SAE "
            "that attends to earlier tokens. `apply_saes_and_run` runs it on whole prompts.",
        )


def require_floats(name: str, tensors: Mapping[str, Any]) -> None:
    """Refuse weights that are no floating-point numbers, before anything casts them.

    Args:
        name: Name that the SAE was asked for by.
        tensors: Its tensors by name; only matrices, biases and thresholds are looked at.

    Raises:
        SaeWeightsError: Names the first that holds integers, booleans or complex numbers.

    Example:
        >>> require_floats("mine", {"W_dec": torch.ones(2, 2, dtype=torch.int64)})
        Traceback (most recent call last):
            ...
        absorb_pl.errors.SaeWeightsError: `name` was 'mine', expected floating-point weights, but W_dec is...
    """
    for key, tensor in tensors.items():
        if key in _WEIGHTS and isinstance(tensor, Tensor) and not tensor.is_floating_point():
            raise SaeWeightsError(
                "name",
                name,
                expected=f"floating-point weights, but {key} is {tensor.dtype}",
                remedy="Save them as float32. Quantised weights need their scales applied first.",
            )


def refuse_transcoder(name: str, sae: object) -> None:
    """Refuse transcoders of every kind.

    Args:
        name: Name that it was asked for by.
        sae: What was loaded, or the architecture or path that its files name.

    Raises:
        SaeArchitectureError: It is a transcoder, a skip transcoder or a cross-layer transcoder.

    Example:
        >>> refuse_transcoder("mine", "jumprelu_skip_transcoder")
        Traceback (most recent call last):
            ...
        absorb_pl.errors.SaeArchitectureError: `name` was 'mine', expected an SAE that reconstructs its own input...
    """
    said = sae.lower() if isinstance(sae, str) else ""
    if isinstance(sae, Transcoder) or "transcoder" in said or "clt" in said.replace("_", "-").split("-"):
        raise SaeArchitectureError(
            "name",
            name,
            expected="an SAE that reconstructs its own input",
            remedy="A transcoder reads one hook and writes another, so it has no reconstruction to put in place of "
            "what it read and no error term, and splitting and absorption are not defined for it.",
        )


def check_hooks_agree(sae: SparseAutoencoder, hook_name: str | None) -> None:
    """Refuse an SAE on activations of another hook than the one it was trained at.

    Args:
        sae: The SAE; one that does not say its hook reads any.
        hook_name: Hook of the activations; None if nothing says it.

    Raises:
        HookMismatchError: They differ.

    Example:
        >>> from types import SimpleNamespace
        >>> check_hooks_agree(SimpleNamespace(hook_name="blocks.2.hook_resid_post"), "blocks.1.hook_resid_post")
        Traceback (most recent call last):
            ...
        absorb_pl.errors.HookMismatchError: `hook_name` was 'blocks.1.hook_resid_post', expected ...
    """
    metadata = getattr(getattr(sae, "cfg", None), "metadata", None)
    trained_at = getattr(metadata, "hook_name", None) or getattr(sae, "hook_name", None)
    if trained_at and hook_name and trained_at != hook_name:
        raise HookMismatchError(
            "hook_name",
            hook_name,
            expected=f"{trained_at!r}, the hook that the SAE was trained at",
            remedy="Read that hook, or name another SAE. If both are the same stream, name the SAE "
            f"`<name>@{hook_name}`.",
        )


def require_width(sae: SparseAutoencoder, width: int) -> None:
    """Refuse an SAE on activations of another width than it reads.

    Args:
        sae: The SAE; one without decoder rows reads any.
        width: Width of the activations.

    Raises:
        SaeWidthError: They differ.

    Example:
        >>> from types import SimpleNamespace
        >>> require_width(SimpleNamespace(W_dec=torch.zeros(8, 4)), 3)
        Traceback (most recent call last):
            ...
        absorb_pl.errors.SaeWidthError: `sae` was 'd_in = 4', expected 3, the width of the activations. ...
    """
    decoder = getattr(sae, "W_dec", None)
    if isinstance(decoder, Tensor) and decoder.shape[1] != width:
        raise SaeWidthError(
            "sae",
            f"d_in = {decoder.shape[1]}",
            expected=f"{width}, the width of the activations",
            remedy="Use an SAE trained on these activations.",
        )


def check_sae_fits(model: HookedModel, sae: SparseAutoencoder, hook_name: str | None = None) -> None:
    """Check that a model has the SAE's hook and that activations there are as wide as the SAE's input.

    Runs the model on one token. Activations split into heads count as wide as their heads together.

    Args:
        model: A TransformerLens model.
        sae: A SAELens SAE, or a module with `W_dec`.
        hook_name: Where the SAE will read; None for the hook it was trained at.

    Raises:
        HookNotFoundError: If the model has no such hook, or the SAE names none.
        SaeWidthError: If the widths differ, or a SAELens SAE does not expect heads if there are some, or the
            other way round.

    Example:
        >>> from types import SimpleNamespace
        >>> check_sae_fits(SimpleNamespace(hook_dict={}), SimpleNamespace(), "blocks.0.hook_resid_pre")
        Traceback (most recent call last):
            ...
        absorb_pl.errors.HookNotFoundError: `hook_name` was 'blocks.0.hook_resid_pre', ...
    """
    hook_name = hook_name or sae_hook_name(sae)
    check_hook(model, hook_name)
    shape = shape_at(model, hook_name)
    width, expected = shape.numel(), sae.W_dec.shape[1]
    if width != expected:
        raise SaeWidthError(
            "sae",
            f"d_in = {expected}",
            expected=f"{width}, the width of {hook_name}",
            remedy="Use an SAE trained on this model, or pass the hook it was trained at.",
        )
    if isinstance(sae, SAE) and sae.hook_z_reshaping_mode != (len(shape) > 1):
        wanted = "hook_z" if len(shape) > 1 else "none"
        raise SaeWidthError(
            "sae",
            f"reshape_activations = {sae.cfg.reshape_activations!r}",
            expected=f"{wanted!r} for activations of shape {tuple(shape)} at {hook_name}",
            remedy="Set `reshape_activations` in the SAE's configuration, or pass the hook it was trained at.",
        )


def shape_at(model: Any, hook_name: str) -> torch.Size:
    """Shape of one token's activation at a hook, found by running the model on one token."""
    shapes: list[torch.Size] = []

    def record(activation: Tensor, **_: Any) -> None:
        shapes.append(activation.shape[2:])

    token = torch.zeros(1, 1, dtype=torch.long, device=next(iter(model.parameters())).device)
    try:
        with torch.no_grad():
            model.run_with_hooks(token, fwd_hooks=[(hook_name, record)])
    except ValueError as error:
        raise _unreached(hook_name, str(error)) from error
    if not shapes:
        raise _unreached(hook_name, "Use a residual-stream hook.")
    return shapes[0]


def _unreached(hook_name: str, remedy: str) -> HookNotFoundError:
    return HookNotFoundError(
        "hook_name", hook_name, expected="a hook that the model's forward pass reaches", remedy=remedy
    )


def _said(sae: SparseAutoencoder, name: str) -> Any:
    """What an SAE's metadata say; None if they do not."""
    return getattr(getattr(getattr(sae, "cfg", None), "metadata", None), name, None)
