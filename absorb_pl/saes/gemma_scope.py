"""Gemma Scope's own formats on disk, JumpReLU SAEs both.

The first keeps arrays in `params.npz`, with the hook in the folders' names; the second keeps tensors in
`params.safetensors`, with the hook in a `config.json` beside them.
"""

import json
import math
import os
import re
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import sae_lens
import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from torch import Tensor

from absorb_pl.errors import SaeArchitectureError, SaeNotFoundError, ShapeError
from absorb_pl.models.placement import read_tensors
from absorb_pl.saes.properties import refuse_transcoder

PARAMS = "params.npz"
PARAMS_2 = "params.safetensors"
_SHAPES = {"W_enc": "il", "W_dec": "li", "b_enc": "l", "b_dec": "i", "threshold": "l"}  # i inputs, l latents
_KEYS = tuple(_SHAPES)
_HOOKS = {"res": "hook_resid_post", "att": "attn.hook_z", "mlp": "hook_mlp_out"}
_KIND = re.compile(r"(?:^|[-_])(res|att|mlp)(?:$|[-_])")
_SITES_2 = {
    "output": "hook_resid_post",
    "self_attn.o_proj.input": "attn.hook_z",
    "post_feedforward_layernorm.output": "hook_mlp_out",
}
_FOLDERS_2 = {"resid_post": "hook_resid_post", "attn_out": "attn.hook_z", "mlp_out": "hook_mlp_out"}


def hook_of_path(path: Path) -> str | None:
    """Read the hook out of a path that is laid out as Gemma Scope's repositories are.

    Args:
        path: For instance `gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82`: a part that ends in `-res`, `-att`
            or `-mlp`, or is that word, and below it `layer_<n>` (or `embedding`).

    Returns:
        `blocks.12.hook_resid_post`, `blocks.12.attn.hook_z`, `blocks.12.hook_mlp_out` or `hook_embed`; None if
        the path says nothing of the kind.

    Example:
        >>> hook_of_path(Path("gemma-scope-2b-pt-att/layer_3/width_16k/average_l0_82"))
        'blocks.3.attn.hook_z'
    """
    kinds = [found[1] for part in path.parts if (found := _KIND.search(part))]
    layers = [found[1] for part in path.parts if (found := re.fullmatch(r"layer_(\d+)", part))]
    if "embedding" in path.parts and kinds[-1:] == ["res"]:
        return "hook_embed"
    return f"blocks.{layers[-1]}.{_HOOKS[kinds[-1]]}" if kinds and layers else None


def gemma_scope_disk_loader(
    path: str | Path, device: str = "cpu", cfg_overrides: dict[str, Any] | None = None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read a Gemma Scope SAE from disk, as a `converter` for `SAE.load_from_disk`.

    The hook comes from a `cfg.json` beside the file (`{"hook_name": …}`, with any other fields of SAELens's
    configuration), else from the path. Nothing is unpickled.

    Args:
        path: The file, or the folder of `params.npz`.
        device: A torch device.
        cfg_overrides: Fields of the configuration that take precedence.

    Returns:
        SAELens configuration and weights.

    Raises:
        SaeNotFoundError: There is no such file, or it holds other arrays.
        ShapeError: The arrays do not belong together.
        SaeArchitectureError: The path is a transcoder's.
    """
    file = Path(path) if Path(path).is_file() else Path(path) / PARAMS
    if not file.is_file():
        raise _refused(str(path), "There is no such file.")
    refuse_transcoder(str(path), "/".join(file.absolute().parts[-5:]))
    if device == "meta":
        weights = {name: torch.empty(array_shape(file, name), device=device) for name in _KEYS}
    else:
        weights = {name: torch.from_numpy(array).to(device) for name, array in _arrays(file).items()}
    d_in, d_sae = weights["W_enc"].shape
    expected = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_in), "b_dec": (d_in,), "b_enc": (d_sae,)}
    for name, shape in {**expected, "threshold": (d_sae,)}.items():
        if tuple(weights[name].shape) != shape:
            raise ShapeError(
                f"{file.name}: {name}", tuple(weights[name].shape), expected=f"{shape}", remedy="Fetch the file again."
            )
    if "embedding" in file.parts:  # trained on embeddings before they are scaled by √d_model
        weights["W_enc"], weights["W_dec"] = weights["W_enc"] / math.sqrt(d_in), weights["W_dec"] * math.sqrt(d_in)
    return gemma_scope_config(file, d_in, d_sae) | {"device": device, **(cfg_overrides or {})}, weights


def gemma_scope_config(file: Path, d_in: int, d_sae: int) -> dict[str, Any]:
    """SAELens configuration of a Gemma Scope SAE.

    Args:
        file: Its `.npz` file.
        d_in: Width of the activations.
        d_sae: Number of latents.

    Returns:
        Fields of `JumpReLUSAEConfig`, with what a `cfg.json` beside the file says.
    """
    side = file.with_name("cfg.json")
    said: dict[str, Any] = json.loads(side.read_text(encoding="utf-8")) if side.is_file() else {}
    metadata = {"hook_name": hook_of_path(file.absolute()), "sae_lens_version": sae_lens.__version__}
    metadata |= {key: said.pop(key) for key in ("hook_name", "model_name") if key in said}
    metadata |= said.pop("metadata", {})
    return {
        "architecture": "jumprelu",
        "d_in": d_in,
        "d_sae": d_sae,
        "dtype": "float32",
        "apply_b_dec_to_input": False,
        "reshape_activations": "hook_z" if str(metadata["hook_name"]).endswith("hook_z") else "none",
        **said,
        "metadata": metadata,
    }


def gemma_scope_2_disk_loader(
    path: str | Path, device: str = "cpu", cfg_overrides: dict[str, Any] | None = None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read an SAE of Gemma Scope 2 from disk, as a `converter` for `SAE.load_from_disk`.

    The hook comes from the `config.json` beside the file, else from the path, as in
    `gemma-scope-2-1b-pt/resid_post/layer_13_width_16k_l0_small`.

    Args:
        path: `params.safetensors` or its folder.
        device: A torch device; `meta` reads shapes alone.
        cfg_overrides: Fields of the configuration that take precedence.

    Returns:
        SAELens configuration and weights.

    Raises:
        SaeNotFoundError: Tensors are missing.
        SaeArchitectureError: It is a transcoder, or of another architecture than JumpReLU.
    """
    file = Path(path) if Path(path).is_file() else Path(path) / PARAMS_2
    side = file.with_name("config.json")
    said: dict[str, Any] = json.loads(side.read_text(encoding="utf-8")) if os.path.lexists(side) else {}
    tensors = read_tensors(file, device)
    reads, writes = said.get("hf_hook_point_in"), said.get("hf_hook_point_out")
    other = "affine_skip_connection" in tensors or said.get("affine_connection") or writes not in (None, reads)
    refuse_transcoder(
        str(path), "transcoder" if other else f"{said.get('type')}/{'/'.join(file.absolute().parts[-4:])}"
    )
    if said.get("architecture", "jump_relu") != "jump_relu":
        raise SaeArchitectureError(
            "architecture",
            said["architecture"],
            expected="'jump_relu', as all SAEs of Gemma Scope 2",
            remedy=f"See {side}.",
        )
    if missing := [key for key in _KEYS if key.replace("W", "w") not in tensors]:
        raise _refused(str(file), f"It lacks {', '.join(missing)} and holds {', '.join(tensors) or 'nothing'}.")
    weights = {key: tensors[key.replace("W", "w")] for key in _KEYS}
    d_in, d_sae = weights["W_enc"].shape
    hook_name = _hook_2(reads, file.absolute())
    config = {
        "architecture": "jumprelu",
        "d_in": d_in,
        "d_sae": d_sae,
        "dtype": "float32",
        "device": device,
        "apply_b_dec_to_input": False,
        "reshape_activations": "none",
        "prepend_bos": True,
        **({} if hook_name is None else {"hook_name": hook_name}),
        **({"model_name": said["model_name"]} if "model_name" in said else {}),
        **({} if reads is None else {"hf_hook_name": reads}),
    }
    return {**config, **(cfg_overrides or {})}, weights


def gemma_scope_2_hub_loader(
    repo_id: str,
    folder_name: str,
    device: str = "cpu",
    force_download: bool = False,
    cfg_overrides: dict[str, Any] | None = None,
) -> tuple[dict[str, Any], dict[str, Tensor], None]:
    """Read an SAE of Gemma Scope 2 from the hub or its local cache, as a `converter` for `SAE.from_pretrained`.

    Args:
        repo_id: The repository.
        folder_name: Folder in it.
        device: A torch device.
        force_download: Whether to fetch files that are in the cache.
        cfg_overrides: Fields of the configuration that take precedence.

    Returns:
        SAELens configuration, weights, and no sparsities.
    """
    file = hf_hub_download(repo_id, f"{folder_name}/{PARAMS_2}", force_download=force_download)
    with suppress(EntryNotFoundError):
        hf_hub_download(repo_id, f"{folder_name}/config.json", force_download=force_download)
    return *gemma_scope_2_disk_loader(file, device, cfg_overrides), None


def _hook_2(reads: str | None, path: Path) -> str | None:
    if reads is not None:
        found = re.search(r"layers\.(\d+)\.(.+)", reads)
        return f"blocks.{found[1]}.{_SITES_2[found[2]]}" if found and found[2] in _SITES_2 else None
    sites = [site for part in path.parts for kind, site in _FOLDERS_2.items() if part.startswith(kind)]
    layers = [found[1] for part in path.parts if (found := re.match(r"layer_(\d+)_", part))]
    return f"blocks.{layers[-1]}.{sites[-1]}" if sites and layers else None


def array_shape(file: Path, name: str) -> tuple[int, ...]:
    """Read the shape of one array of an `.npz` file without its values.

    Args:
        file: The file.
        name: Name of the array.

    Returns:
        The shape.

    Raises:
        SaeNotFoundError: The file holds no such array.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            names = (f"{name}.npy", f"{name.lower()}.npy")
            stream = archive.open(next((key for key in names if key in archive.namelist()), names[0]))
            version = np.lib.format.read_magic(stream)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            return read(stream)[0]
    except (KeyError, OSError, ValueError, zipfile.BadZipFile) as error:
        raise _refused(str(file), f"{error}.") from error


def _arrays(file: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(file, allow_pickle=False) as archive:
            stored = {f"W_{key[2:]}" if key.startswith("w_") else key: key for key in archive.files}
            missing = [key for key in _KEYS if key not in stored]
            if missing:
                raise _refused(
                    str(file), f"It lacks {', '.join(missing)} and holds {', '.join(archive.files) or 'nothing'}."
                )
            arrays = {key: archive[stored[key]] for key in _KEYS}
            for key, array in arrays.items():
                if array.dtype.kind != "f" or array.ndim != len(_SHAPES[key]):
                    raise _refused(str(file), f"{key} has dtype {array.dtype} and shape {array.shape}.")
            return {key: np.asarray(array, dtype=np.float32) for key, array in arrays.items()}
    except SaeNotFoundError:
        raise
    except (AttributeError, EOFError, OSError, ValueError, zipfile.BadZipFile) as error:
        raise _refused(str(file), f"It does not load: {error}.") from error


def _refused(name: str, reason: str) -> SaeNotFoundError:
    return SaeNotFoundError(
        "name",
        name,
        expected=f"an .npz file with the arrays {', '.join(_KEYS)} of floating-point numbers, none pickled",
        remedy=reason,
    )
