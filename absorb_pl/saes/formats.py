"""SAEs on disk in the formats of those who published them: which format a path holds, and how it is read.

All that SAELens loads by the name of a release is read here from its folder or file, without the hub. Each reader is a
`PretrainedSaeDiskLoader` of SAELens; with the device `meta` it reads shapes alone.
"""

import json
import re
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
import yaml
from sae_lens.constants import SAE_WEIGHTS_FILENAME
from torch import Tensor

from absorb_pl.errors import AbsorbError, SaeArchitectureError, SaeNotFoundError
from absorb_pl.models.placement import DTYPES, read_tensors
from absorb_pl.saes.gemma_scope import PARAMS, PARAMS_2, gemma_scope_2_disk_loader, gemma_scope_disk_loader
from absorb_pl.saes.properties import refuse_transcoder

Loaded = tuple[dict[str, Any], dict[str, Tensor]]
DiskLoader = Callable[..., Loaded]

_PICKLES = (".pt", ".pth")


class _Tensors(dict[str, Tensor]):
    def __missing__(self, key: str) -> Tensor:
        raise ValueError(f"it lacks {key} and holds {', '.join(self) or 'nothing'}")


_TRANSCODERS = ("wandb-config.yaml", "wanb-config.yaml", "layer_*.safetensors", "W_enc_*.safetensors")
_DICTIONARIES = {
    "AutoEncoder": "standard",
    "AutoEncoderTopK": "topk",
    "BatchTopKSAE": "jumprelu",
    "GatedAutoEncoder": "gated",
    "JumpReluAutoEncoder": "jumprelu",
    "MatryoshkaBatchTopKSAE": "jumprelu",
}


def disk_loader(path: Path) -> DiskLoader | None:
    """Find how a path is read that holds no SAE as SAELens saves them.

    Args:
        path: A folder, or a file with weights.

    Returns:
        The reader; None if none of the formats is known by its files.

    Raises:
        SaeArchitectureError: The files are those of transcoders.
        SaeNotFoundError: The folder holds several SAEs.

    Example:
        >>> disk_loader(Path("no-such-folder")) is None
        True
    """
    folder, name = (path.parent, path.name) if path.is_file() else (path, None)
    if path.suffix == ".npz" and name:
        return gemma_scope_disk_loader
    if (folder / SAE_WEIGHTS_FILENAME).is_file() and name in (None, SAE_WEIGHTS_FILENAME):
        return _openmoss if not (folder / "cfg.json").is_file() and (folder / "config.json").is_file() else None
    for file, loader in _FOLDERS.items():
        if (folder / file).is_file() and name in (None, file):
            return loader
    if name:
        if any(fnmatchcase(name, pattern) for pattern in _TRANSCODERS):
            refuse_transcoder(str(path), "transcoder")
        return _pickle if path.suffix in _PICKLES else None
    if any(True for pattern in _TRANSCODERS for _ in folder.glob(pattern)):
        refuse_transcoder(str(path), "transcoder")
    pickles = sorted(file.name for file in folder.glob("*") if file.suffix in _PICKLES)
    if len(pickles) > 1:
        raise SaeNotFoundError(
            "name",
            str(path),
            expected="one SAE",
            remedy=f"Name one of the folder's files, such as {path / pickles[0]}.",
        )
    return _pickle if pickles and not (folder / "cfg.json").is_file() else None


def holds_sae(path: Path) -> bool:
    """Tell whether a path holds an SAE, by its files' names alone.

    Args:
        path: A folder, or a file with weights.

    Example:
        >>> holds_sae(Path("no-such-folder"))
        False
    """
    if (path / "cfg.json").is_file():
        return True
    try:
        return disk_loader(path) is not None
    except AbsorbError:
        return False


def _dictionary_learning(path: str | Path, device: str = "cpu", cfg_overrides: dict[str, Any] | None = None) -> Loaded:
    folder = _folder(path)
    trainer = _json(folder / "config.json")["trainer"]
    kind, layer = trainer["dict_class"], trainer["layer"]
    if kind not in _DICTIONARIES:
        raise _unknown("dict_class", kind, _DICTIONARIES)
    stored = _read(folder / "ae.pt", device)
    names = {
        "b_enc": ("b_enc", "encoder.bias"),
        "b_dec": ("b_dec", "bias", "decoder_bias"),
        "b_mag": ("mag_bias",),
        "b_gate": ("gate_bias",),
        "r_mag": ("r_mag",),
    }
    weights = {name: stored[key] for name, keys in names.items() for key in keys if key in stored}
    weights |= {"W_enc": _matrix(stored, "encoder", "W_enc"), "W_dec": _matrix(stored, "decoder", "W_dec")}
    if _DICTIONARIES[kind] == "jumprelu":
        weights["threshold"] = stored["threshold"].expand(weights["W_enc"].shape[1])
    at = trainer.get("submodule_name", "resid_post")
    return (
        _config(
            _DICTIONARIES[kind],
            weights,
            device,
            cfg_overrides,
            hook_name=f"blocks.{layer}.hook_resid_post" if at.startswith("resid_post") else None,
            model_name=trainer["lm_name"].split("/")[-1],
            apply_b_dec_to_input=kind != "JumpReluAutoEncoder",
            **({"k": trainer["k"]} if kind == "AutoEncoderTopK" else {}),
        ),
        weights,
    )


def _sparsify(path: str | Path, device: str = "cpu", cfg_overrides: dict[str, Any] | None = None) -> Loaded:
    folder = _folder(path)
    said = _json(folder / "cfg.json")
    stored = _read(folder / "sae.safetensors", device)
    if said.get("transcode") or said.get("skip_connection") or "W_skip" in stored:
        refuse_transcoder(str(folder), "transcoder")
    if said.get("activation", "topk") != "topk":
        raise _unknown("activation", said["activation"], ["topk"])
    encoder = _matrix(stored, "encoder", "W_enc")
    d_in, d_sae = encoder.shape
    decoder = stored["W_dec"] if "W_dec" in stored else stored["decoder.weight"].T
    weights = {
        "W_enc": encoder,
        "W_dec": decoder if tuple(decoder.shape) == (d_sae, d_in) else decoder.T,
        "b_enc": stored["encoder.bias"] if "encoder.bias" in stored else stored["b_enc"],
        "b_dec": stored["b_dec"],
    }
    found = re.fullmatch(r"(?:[\w.]+\.)?(?:layers|h)[._](\d+)(\.mlp)?", folder.name)
    site = "hook_mlp_out" if found and found[2] else "hook_resid_post"
    hook_name = "hook_embed" if folder.name == "embed_tokens" else f"blocks.{found[1]}.{site}" if found else None
    return (
        _config(
            "abstopk" if said.get("signed") else "topk",
            weights,
            device,
            cfg_overrides,
            hook_name=hook_name,
            k=said["k"],
            apply_b_dec_to_input=True,
        ),
        weights,
    )


def _temporal(path: str | Path, device: str = "cpu", cfg_overrides: dict[str, Any] | None = None) -> Loaded:
    folder = _folder(path)
    said = yaml.safe_load((folder / "conf.yaml").read_text(encoding="utf-8"))
    sae = said["sae"]
    stored = _read(folder / "latest_ckpt.safetensors", device)
    weights = {key: value for key, value in stored.items() if key.startswith("attn_layers.")}
    weights |= {name: stored[key] for name, key in {"W_dec": "D", "b_dec": "b", "W_enc": "E"}.items() if key in stored}
    found = [part for part in map(re.compile(r"layer_(\d+)").fullmatch, folder.absolute().parts) if part]
    settings = ("n_heads", "n_attn_layers", "bottleneck_factor", "sae_diff_type", "kval_topk", "tied_weights")
    return (
        _config(
            "temporal",
            weights,
            device,
            cfg_overrides,
            hook_name=f"blocks.{found[-1][1]}.hook_resid_post" if found else None,
            normalize_activations="constant_scalar_rescale",
            activation_normalization_factor=sae["scaling_factor"],
            apply_b_dec_to_input=True,
            **{key: sae[key] for key in settings},
        ),
        weights,
    )


def _llama_scope(path: str | Path, device: str = "cpu", cfg_overrides: dict[str, Any] | None = None) -> Loaded:
    folder = _folder(path)
    said = _json(folder / "hyperparams.json")
    _check_openmoss(folder, said)
    stored = _read(folder / "checkpoints" / "final.safetensors", device)
    scale = said["d_model"] ** 0.5 / said["dataset_average_activation_norm"]["in"]
    # SAELens multiplies the threshold too, so the same SAE has the same latents by the release's name.
    threshold = torch.full((said["d_sae"],), said["jump_relu_threshold"] * scale, device=device)
    weights = _scaled({**_linear(stored), "threshold": threshold}, scale, cfg_overrides)
    return _config("jumprelu", weights, device, cfg_overrides, **_of_openmoss(said)), weights


def _openmoss(path: str | Path, device: str = "cpu", cfg_overrides: dict[str, Any] | None = None) -> Loaded:
    folder = _folder(path)
    said = _json(folder / "config.json")
    _check_openmoss(folder, said)
    stored = _read(folder / SAE_WEIGHTS_FILENAME, device)
    norms = {key: stored.get(f"dataset_average_activation_norm.{key}") for key in ("in", said["hook_point_in"])}
    norm = next((norm for norm in norms.values() if norm is not None), None)
    weights = {**_linear(stored), "threshold": stored["log_jumprelu_threshold"].exp()}
    config = _of_openmoss(said)
    if norm is None:
        config["normalize_activations"] = "expected_average_only_in"
    elif device != "meta":
        weights = _scaled(weights, said["d_model"] ** 0.5 / float(norm), cfg_overrides)
    return _config("jumprelu", weights, device, cfg_overrides, **config), weights


def _pickle(path: str | Path, device: str = "cpu", cfg_overrides: dict[str, Any] | None = None) -> Loaded:
    file = Path(path)
    if file.is_dir():
        (file,) = (found for found in file.glob("*") if found.suffix in _PICKLES)
    stored, side = _read(file, device), file.with_name(f"{file.name.split('.pt')[0]}_cfg.json")
    if side.is_file():  # attention SAEs of GPT-2
        said = _json(side)
        weights = {key: stored[key] for key in ("W_enc", "W_dec", "b_enc", "b_dec")}
        options = {"hook_name": said["act_name"], "apply_b_dec_to_input": True, "reshape_activations": "hook_z"}
        return _config("standard", weights, device, cfg_overrides, **options), weights
    if "W_enc" in stored:  # Qwen Scope
        weights = {key: stored[key] if key.startswith("b") else stored[key].T for key in stored}
        active = [found[1] for part in file.absolute().parts if (found := re.search(r"L0_(\d+)", part))]
        if not active:
            raise SaeNotFoundError(
                "name",
                str(file),
                expected="a path that says how many latents fire, as `SAE-Res-…-W32K-L0_50` does",
                remedy="Put the file into a folder named as its repository is.",
            )
        options = {"hook_name": _of_file(file, r"layer(\d+)\.sae"), "k": int(active[-1])}
        return _config("topk", weights, device, cfg_overrides, **options), weights
    weights = _linear(_Tensors({key.replace("_linear", ""): value for key, value in stored.items()}))
    return _config("standard", weights, device, cfg_overrides, hook_name=_of_file(file, r"[-_]l(\d+)\.")), weights


_FOLDERS: dict[str, DiskLoader] = {
    PARAMS: gemma_scope_disk_loader,
    PARAMS_2: gemma_scope_2_disk_loader,
    "ae.pt": _dictionary_learning,
    "sae.safetensors": _sparsify,
    "latest_ckpt.safetensors": _temporal,
    "hyperparams.json": _llama_scope,
}


def _config(
    architecture: str,
    weights: dict[str, Tensor],
    device: str,
    overrides: dict[str, Any] | None,
    *,
    hook_name: str | None = None,
    **options: Any,
) -> dict[str, Any]:
    d_sae, d_in = weights["W_dec"].shape
    return {
        "architecture": architecture,
        "d_in": d_in,
        "d_sae": d_sae,
        "dtype": "float32",
        "device": device,
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "prepend_bos": True,
        **({} if hook_name is None else {"hook_name": hook_name}),
        **options,
        **(overrides or {}),
    }


def _read(file: Path, device: str) -> _Tensors:
    return _Tensors(read_tensors(file, device))


def _linear(stored: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        "W_enc": stored["encoder.weight"].T,
        "W_dec": stored["decoder.weight"].T,
        "b_enc": stored["encoder.bias"],
        "b_dec": stored["decoder.bias"],
    }


def _matrix(stored: dict[str, Tensor], linear: str, name: str) -> Tensor:
    return stored[name] if name in stored else stored[f"{linear}.weight"].T


def _scaled(weights: dict[str, Tensor], scale: float, overrides: dict[str, Any] | None) -> dict[str, Tensor]:
    """Weights that read activations as they are, of an SAE that was trained on `scale` times them."""
    dtype = torch.promote_types(DTYPES[(overrides or {}).get("dtype", "float32")], torch.float32)
    wide = {name: weight.to(dtype) for name, weight in weights.items()}
    return {**wide, "W_enc": wide["W_enc"] * scale, "W_dec": wide["W_dec"] / scale, "b_dec": wide["b_dec"] / scale}


def _check_openmoss(folder: Path, said: dict[str, Any]) -> None:
    if said.get("hook_point_out", said["hook_point_in"]) != said["hook_point_in"]:
        refuse_transcoder(str(folder), "transcoder")
    for key, known in {"act_fn": "jumprelu", "norm_activation": "dataset-wise"}.items():
        if said.get(key, known) != known:
            raise _unknown(key, said[key], [known])


def _of_openmoss(said: dict[str, Any]) -> dict[str, Any]:
    before = bool(said.get("apply_decoder_bias_to_pre_encoder"))
    return {"hook_name": said["hook_point_in"], "apply_b_dec_to_input": before}


def _of_file(file: Path, pattern: str) -> str | None:
    found = re.search(pattern, file.name)
    return f"blocks.{found[1]}.hook_resid_post" if found else None


def _folder(path: str | Path) -> Path:
    return Path(path).parent if Path(path).is_file() else Path(path)


def _json(file: Path) -> dict[str, Any]:
    said = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(said, dict):
        raise ValueError(f"{file.name} is no JSON object")
    return said


def _unknown(key: str, value: Any, known: Any) -> SaeArchitectureError:
    return SaeArchitectureError(
        key, value, expected=f"one of {', '.join(known)}", remedy="SAEs of other kinds cannot be read from this format."
    )
