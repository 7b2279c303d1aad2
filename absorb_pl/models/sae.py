"""Sparse autoencoders: load one by name, and check that it fits a model."""

import json
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import HfHubHTTPError
from sae_lens import SAE
from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory
from torch import Tensor

from absorb_pl.errors import HookNotFoundError, NonFiniteError, SaeNotFoundError, SaeWidthError
from absorb_pl.models.bundled import SPELLER, bundled_sae_path
from absorb_pl.models.language_model import check_hook, hub_is_unreachable
from absorb_pl.models.placement import check_device, check_dtype, local_folder

_FILES = ("cfg.json", "sae_weights.safetensors")


def load_sae(name: str, *, device: str = "cpu", dtype: str = "float32") -> SAE:
    """Load a SAELens SAE, in evaluation mode and without gradients.

    Args:
        name: `"speller/<name>"` for a bundled SAE, a folder in SAELens format (`cfg.json` and
            `sae_weights.safetensors`), or `"<release>/<id>"` with a release known to SAELens.
        device: A torch device.
        dtype: Dtype of the weights: `float32`, `float64`, `bfloat16` or `float16`.

    Returns:
        The SAE with its weights as stored; nothing folded or rescaled.

    Raises:
        SaeNotFoundError: If the name is none of the three, or the hub cannot be reached.
        NonFiniteError: If a weight is NaN or infinite.
        AbsorbError: If the device or dtype is unknown here.

    Example:
        >>> load_sae("speller/no-such-sae")
        Traceback (most recent call last):
            ...
        absorb_pl.errors.SaeNotFoundError: `name` was 'speller/no-such-sae', expected the name of a bundled...
    """
    check_dtype(dtype)
    device = check_device(device)
    folder = bundled_sae_path(name) if name.startswith(f"{SPELLER}/") else local_folder(name)
    sae = _load_release(name, device, dtype) if folder is None else _load_folder(name, folder, device, dtype)
    for key, weight in sae.state_dict().items():
        if bad := int((~torch.isfinite(weight)).sum()):
            raise NonFiniteError(
                "name",
                name,
                expected=f"finite weights, but {bad} in {key} are not",
                remedy="Save the SAE again, or load it in a wider dtype.",
            )
    sae.eval()
    sae.requires_grad_(False)
    return sae


def sae_hook_name(sae: Any) -> str:
    """Give the name of the hook that an SAE was trained at.

    Args:
        sae: A SAELens SAE.

    Returns:
        The TransformerLens name in `sae.cfg.metadata.hook_name`.

    Raises:
        HookNotFoundError: If the SAE does not say.

    Example:
        >>> from types import SimpleNamespace
        >>> metadata = SimpleNamespace(hook_name="blocks.5.hook_resid_pre")
        >>> sae_hook_name(SimpleNamespace(cfg=SimpleNamespace(metadata=metadata)))
        'blocks.5.hook_resid_pre'
    """
    hook_name = getattr(getattr(getattr(sae, "cfg", None), "metadata", None), "hook_name", None)
    if not hook_name:
        raise HookNotFoundError(
            "sae.cfg.metadata.hook_name",
            hook_name,
            expected="the name of the hook that the SAE reads",
            remedy="Pass hook_name, or write it into the SAE's cfg.json.",
        )
    return hook_name


def check_sae_fits(model: Any, sae: Any, hook_name: str | None = None) -> None:
    """Check that a model has the SAE's hook and that activations there are as wide as the SAE's input.

    Runs the model on one token. Activations split into heads count as wide as their heads together.

    Args:
        model: A TransformerLens model.
        sae: A SAELens SAE, or a module with `W_dec`.
        hook_name: Where the SAE will read; None for the hook it was trained at.

    Raises:
        HookNotFoundError: If the model has no such hook, or the SAE names none.
        SaeWidthError: If the widths differ.

    Example:
        >>> from types import SimpleNamespace
        >>> check_sae_fits(SimpleNamespace(hook_dict={}), SimpleNamespace(), "blocks.0.hook_resid_pre")
        Traceback (most recent call last):
            ...
        absorb_pl.errors.HookNotFoundError: `hook_name` was 'blocks.0.hook_resid_pre', ...
    """
    hook_name = hook_name or sae_hook_name(sae)
    check_hook(model, hook_name)
    width = _width_at(model, hook_name)
    expected = sae.W_dec.shape[1]
    if width != expected:
        raise SaeWidthError(
            "sae",
            f"d_in = {expected}",
            expected=f"{width}, the width of {hook_name}",
            remedy="Use an SAE trained on this model, or pass the hook it was trained at.",
        )


def _width_at(model: Any, hook_name: str) -> int:
    widths: list[int] = []

    def record(activation: Tensor, **_: Any) -> None:
        widths.append(activation.shape[2:].numel())

    token = torch.zeros(1, 1, dtype=torch.long, device=next(iter(model.parameters())).device)
    try:
        with torch.no_grad():
            model.run_with_hooks(token, fwd_hooks=[(hook_name, record)])
    except ValueError as error:
        raise _unreached(hook_name, str(error)) from error
    if not widths:
        raise _unreached(hook_name, "Use a residual-stream hook.")
    return widths[0]


def _unreached(hook_name: str, remedy: str) -> HookNotFoundError:
    return HookNotFoundError(
        "hook_name", hook_name, expected="a hook that the model's forward pass reaches", remedy=remedy
    )


def _load_folder(name: str, folder: Path, device: str, dtype: str) -> SAE:
    missing = [file for file in _FILES if not (folder / file).is_file()]
    if missing:
        raise _not_found(name, f"There is no {' and no '.join(missing)} in that folder.")
    try:
        return SAE.load_from_disk(folder, device=device, dtype=dtype)
    except (OSError, KeyError, RuntimeError, TypeError, ValueError, json.JSONDecodeError) as error:
        raise _not_found(name, f"The folder does not load: {str(error).strip()}.") from error


def _load_release(name: str, device: str, dtype: str) -> SAE:
    directory = get_pretrained_saes_directory()
    release, _, sae_id = name.partition("/")
    if release not in directory:
        near = get_close_matches(release, directory, n=3)
        closest = f" Closest releases: {', '.join(near)}." if near else ""
        raise _not_found(name, f"There is no such folder and no such release.{closest}")
    ids = directory[release].saes_map
    if sae_id not in ids:
        near = get_close_matches(sae_id, ids, n=3, cutoff=0.3) or list(ids)[:3]
        raise _not_found(name, f"Closest ids of this release: {', '.join(near)}.")
    try:
        return SAE.from_pretrained(release, sae_id, device=device, dtype=dtype)
    except (OSError, HfHubHTTPError) as error:
        if hub_is_unreachable(error):
            reason = "The Hugging Face hub cannot be reached and its local cache does not hold the SAE."
        else:
            reason = f"The download failed: {str(error).strip()}."
        raise _not_found(name, reason) from error


def _not_found(name: str, reason: str) -> SaeNotFoundError:
    return SaeNotFoundError(
        "name",
        name,
        expected=f"'{SPELLER}/<name>', a folder with {' and '.join(_FILES)}, or '<release>/<id>' of SAELens",
        remedy=reason,
    )
