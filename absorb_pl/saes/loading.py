"""Sparse autoencoders by name: bundled, in folders, of SAELens's releases, or made by a function of the user's."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from sae_lens import SAE
from torch import nn

from absorb_pl.errors import SaeInterfaceError, SaeWeightsError
from absorb_pl.models.placement import check_device, check_dtype, own_memory, require_finite
from absorb_pl.saes.adapters import AdaptedSae
from absorb_pl.saes.controls import control_sae, copied
from absorb_pl.saes.identity import sae_tensors
from absorb_pl.saes.interface import SparseAutoencoder
from absorb_pl.saes.name_parts import split_control, split_hook
from absorb_pl.saes.origins import loaded_object, origin_of
from absorb_pl.saes.properties import refuse_transcoder
from absorb_pl.saes.scale import UnitNormSae, to_unit_norms


@contextmanager
def _without_advice() -> Iterator[None]:
    """Silence SAELens's advice on loading the model: studies follow it, and evaluators refuse models that do not."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"\s*This SAE has non-empty model_from_pretrained_kwargs")
        yield


@_without_advice()
def load_sae(
    name: str, *, device: str = "cpu", dtype: str = "float32", converter: Callable[..., Any] | None = None
) -> SAE[Any] | AdaptedSae:
    """Load an SAE, in evaluation mode and without gradients.

    Args:
        name: One of

            * `"speller/<name>"` for a bundled SAE;
            * a folder in SAELens format (`cfg.json` and `sae_weights.safetensors`), one that SAELens wrote while
              training, or a folder or file of one of SAELens's releases as it was published (`docs/saes.md`);
            * `"<release>/<id>"` with a release known to SAELens;
            * `"<module>:<function>"` for a function of yours that gives a `SparseAutoencoder`, with arguments
              (`my_saes:load(layer=3)`) and, if it gives a mapping, a key (`my_saes:load/wide`).

            Behind any of them `@<hook name>` says which hook it reads (`my_sae@blocks.3.hook_resid_post`), in place
            of what the SAE itself says; `#random` or `#shuffled_decoder` at the end gives that control of the SAE
            (see `control_sae`).
        device: A torch device.
        dtype: Dtype of the weights: `float32`, `float64`, `bfloat16` or `float16`.
        converter: A SAELens loader (`PretrainedSaeDiskLoader` for a folder, `PretrainedSaeHuggingfaceLoader` for a
            release) where weights lie in a format of their own.

    Returns:
        The SAE with its weights as stored; nothing rescaled but for the scale of activations that SAELens itself
        folds in. One that reads `hook_z` takes activations split into heads.

    Raises:
        SaeNotFoundError: If the name is none of these, or the hub cannot be reached.
        SaeArchitectureError: If it is a transcoder, which does not reconstruct its own input.
        SaeInterfaceError: If an SAE of yours lacks a member.
        NonFiniteError: If a weight is NaN or infinite.
        SaeWeightsError: If weights are integers or complex numbers, or the encoder or decoder is all zero.
        AbsorbError: If the device or dtype is unknown here.

    Example:
        >>> load_sae("speller/no-such-sae")
        Traceback (most recent call last):
            ...
        absorb_pl.errors.SaeNotFoundError: `name` was 'speller/no-such-sae', expected the name of a bundled...
    """
    check_dtype(dtype)
    named, control = split_control(name)
    if control is not None:
        return control_sae(load_sae(named, device=device, dtype=dtype, converter=converter), control)
    source, hook_name = split_hook(name)
    return _ready(name, origin_of(source).load(source, check_device(device), dtype, converter), hook_name)


@_without_advice()
def own_sae(
    sae: SparseAutoencoder, name: str, *, device: str = "cpu", dtype: str = "float32", hook_name: str | None = None
) -> SAE[Any] | AdaptedSae:
    """Give what `load_sae` would give of an SAE in memory had it been saved; the SAE itself stays as it is.

    Args:
        sae: A SAELens SAE, also one in training, or any `SparseAutoencoder`.
        name: What to call it in errors.
        device: A torch device.
        dtype: Dtype of the weights.
        hook_name: Hook that it reads; by default what it says.

    Raises:
        SaeInterfaceError: It lacks a member, or cannot be copied.
        SaeArchitectureError: It is a transcoder.
        NonFiniteError: A weight is NaN or infinite.
        SaeWeightsError: Weights are integers or complex numbers, or the encoder or decoder is all zero.

    Example:
        >>> sae = load_sae("speller/l1-standard-w512-dense")
        >>> own_sae(sae, "mine").W_dec.data_ptr() == sae.W_dec.data_ptr()
        False
    """
    given: Any = sae
    while isinstance(given, UnitNormSae):
        given = given.sae
    try:
        copy = copied(given)
    except (RuntimeError, TypeError) as error:
        raise SaeInterfaceError(
            "sae",
            type(given).__name__,
            expected="an SAE that can be copied, so that it stays as it is while it is measured",
            remedy=f"Detach its tensors, or save it and name its folder. Copying said: {error}",
        ) from error
    return _ready(name, loaded_object(name, copy, check_device(device), dtype), hook_name)


def at_hook(sae: str | SparseAutoencoder, name: str, hook_name: str) -> Any:
    """An SAE by name or as an object as one that reads a hook, whatever it says; the SAE itself stays as it is.

    Args:
        sae: Name for `load_sae`, or an SAE.
        name: What to call it in errors.
        hook_name: A TransformerLens hook name.

    Returns:
        The name with the hook, or a copy of the SAE in its own dtype and on its own device.

    Raises:
        SaeInterfaceError: It lacks a member, or cannot be copied.

    Example:
        >>> at_hook("my_sae", "my_sae", "blocks.3.hook_resid_post")
        'my_sae@blocks.3.hook_resid_post'
    """
    if isinstance(sae, str):
        return f"{sae}@{hook_name}"
    dtype, device = str(sae.W_dec.dtype).removeprefix("torch."), str(sae.W_dec.device)
    return own_sae(sae, name, device=device, dtype=dtype, hook_name=hook_name)


def _ready(name: str, sae: SAE[Any] | AdaptedSae, hook_name: str | None) -> SAE[Any] | AdaptedSae:
    """An SAE as loaded, checked, with its hook, in evaluation mode and without gradients."""
    refuse_transcoder(name, sae)
    if isinstance(sae, SAE):
        own_memory(sae)
    if isinstance(sae, AdaptedSae):
        sae.hook_name = hook_name or sae.hook_name
    else:
        sae.cfg.metadata.hook_name = hook_name or sae.cfg.metadata.hook_name
        if str(sae.cfg.metadata.hook_name).endswith("hook_z") and not sae.hook_z_reshaping_mode:
            # Some SAEs of hook_z leave this to the code that runs them, Gemma Scope 2's among them.
            sae.turn_on_forward_pass_hook_z_reshaping()
        if sae.cfg.normalize_activations in ("expected_average_only_in", "covariance_whitening"):
            warnings.warn(
                f"{name} was trained on rescaled activations ({sae.cfg.normalize_activations}), but neither its "
                "weights nor anything beside them hold the scale, so it reads activations as they are. Save it "
                "again with the scale folded in (`fold_activation_norm_scaling_factor`).",
                stacklevel=3,
            )
    require_finite(name, sae_tensors(sae))
    _refuse_zeros(name, sae)
    sae.eval()
    sae.requires_grad_(False)
    return sae


def _refuse_zeros(name: str, sae: SAE[Any] | AdaptedSae) -> None:
    inner = sae.sae if isinstance(sae, AdaptedSae) else sae
    for key in ("W_enc", "W_dec"):
        weight = getattr(inner, key, None)
        if isinstance(weight, torch.Tensor) and not any(bool(part.any()) for part in weight.detach().split(4096)):
            raise SaeWeightsError(
                "name",
                name,
                expected=f"an SAE that has learnt something, but all of its {key} is zero",
                remedy="Save the SAE again, or load it in a wider dtype.",
            )


def unit_norm_sae(sae: str | SparseAutoencoder, dtype: str = "float32", hook_name: str | None = None) -> Any:
    """An SAE by name or as an object, as a module whose decoder rows have unit norm.

    Args:
        sae: Name for `load_sae`, or an SAE, which is left as it is.
        dtype: Dtype of an SAE loaded by name.
        hook_name: Hook that an SAE from elsewhere reads; by default what it says.

    Raises:
        SaeInterfaceError: It lacks a member of an SAE.

    Example:
        >>> class Mine:
        ...     W_dec = 2 * torch.eye(3)
        ...     encode, decode = staticmethod(torch.relu), staticmethod(lambda latents: 2 * latents)
        >>> unit_norm_sae(Mine()).W_dec.norm(dim=1)
        tensor([1., 1., 1.])
    """
    if isinstance(sae, str):
        return to_unit_norms(load_sae(sae, dtype=dtype), in_place=True)
    return to_unit_norms(sae if isinstance(sae, nn.Module) else AdaptedSae(sae, hook_name))
