"""Gemma Scope's own format on disk: JumpReLU SAEs as arrays in `params.npz`, with the hook in the folders' names."""

import json
import math
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import sae_lens
import torch
from torch import Tensor

from absorb_pl.errors import SaeNotFoundError, ShapeError
from absorb_pl.models.sae import refuse_transcoder

PARAMS = "params.npz"
_SHAPES = {"W_enc": "il", "W_dec": "li", "b_enc": "l", "b_dec": "i", "threshold": "l"}  # i inputs, l latents
_KEYS = tuple(_SHAPES)
_HOOKS = {"res": "hook_resid_post", "att": "attn.hook_z", "mlp": "hook_mlp_out"}
_KIND = re.compile(r"(?:^|[-_])(res|att|mlp)(?:$|[-_])")


def params_file(path: Path) -> Path | None:
    """Give the `params.npz` that a path means.

    Args:
        path: A file whose name ends in `.npz`, or a folder with a `params.npz` and no SAELens weights.

    Returns:
        The file, or None.

    Example:
        >>> params_file(Path("no-such-folder")) is None
        True
    """
    if path.suffix == ".npz" and path.is_file():
        return path
    file = path / PARAMS
    return file if file.is_file() and not (path / "sae_weights.safetensors").is_file() else None


def hook_of_path(path: Path) -> str | None:
    """Read the hook out of a path that is laid out as Gemma Scope's repositories are.

    Args:
        path: For instance `gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82`: a part that ends in `-res`, `-att`
            or `-mlp`, or is that word, and below it `layer_<n>` (or `embedding`).

    Returns:
        `blocks.12.hook_resid_post`, `blocks.12.attn.hook_z`, `blocks.12.hook_mlp_out` or `hook_embed`; None where
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
    file = params_file(Path(path))
    if file is None:
        raise _refused(str(path), "There is no such file.")
    refuse_transcoder(str(path), "/".join(file.absolute().parts[-5:]))
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
        with zipfile.ZipFile(file) as archive, archive.open(f"{name}.npy") as stream:
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
