"""SAEs in local folders: SAELens's inference format, its training checkpoints, and the formats of others."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sae_lens import SAE, TrainingSAE
from sae_lens.constants import (
    ACTIVATION_SCALER_CFG_FILENAME,
    RUNNER_CFG_FILENAME,
    SAE_CFG_FILENAME,
    SAE_WEIGHTS_FILENAME,
)
from sae_lens.registry import SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY
from sae_lens.training.activation_scaler import ActivationScaler
from safetensors import safe_open

from absorb_pl.errors import AbsorbError, SaeNotFoundError
from absorb_pl.models.placement import LOAD_ERRORS
from absorb_pl.saes.formats import disk_loader
from absorb_pl.saes.properties import layer_of_hook, require_floats
from absorb_pl.saes.settings import check_settings, checked_loader, refuse_unsupported

FILES = (SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME)


def load_folder(
    name: str, path: Path, device: str, dtype: str, converter: Callable[..., Any] | None = None
) -> SAE[Any]:
    """Load an SAE from disk as an inference SAE.

    A checkpoint that SAELens wrote while training is converted by SAELens itself, and the scale or whitening of
    activations that the trainer keeps beside it is folded in.

    Args:
        name: Name to use in errors.
        path: A folder, or a file with weights.
        device: A torch device.
        dtype: Dtype of the weights.
        converter: A SAELens `PretrainedSaeDiskLoader` for other formats.

    Returns:
        The SAE.

    Raises:
        SaeNotFoundError: The folder lacks a file, or does not load.
        SaeArchitectureError: It is a transcoder, or its latents have an activation function that SAELens lacks.
        SaeWeightsError: Its weights are integers or complex numbers.
    """
    try:
        converter = converter or disk_loader(path)
        if converter is not None:
            sae = SAE.load_from_disk(path, device=device, dtype=dtype, converter=checked_loader(name, converter))
            check_settings(sae)
            return sae
        if path.is_file() and path.name != SAE_WEIGHTS_FILENAME:
            raise not_found(name, "That file is none that SAELens's releases hold. Name the folder of the SAE.")
        path = path.parent if path.is_file() else path
        missing = [file for file in FILES if not (path / file).is_file()]
        if missing:
            raise not_found(name, f"There is no {' and no '.join(missing)} in that folder.")
        config = read_config(path)
        refuse_unsupported(name, config)
        with safe_open(path / SAE_WEIGHTS_FILENAME, framework="pt") as file:
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
            require_floats(name, {key: part[:0] for key, part in slices.items() if part.get_shape()})
        sae = _from_checkpoint(path, device, dtype) if is_checkpoint(config) else None
        sae = sae or SAE.load_from_disk(path, device=device, dtype=dtype)
        check_settings(sae)
        if sae.cfg.reshape_activations not in ("none", "hook_z"):
            raise ValueError(f"reshape_activations is {sae.cfg.reshape_activations!r}, neither 'none' nor 'hook_z'")
        if not sae.cfg.metadata.hook_name:
            sae.cfg.metadata.hook_name = _runner_hook(path)
    except AbsorbError:
        raise
    except LOAD_ERRORS as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error).strip() or type(error).__name__
        raise not_found(name, f"The folder does not load: {reason}.") from error
    return sae


def describe_folder(name: str, path: Path) -> dict[str, Any]:
    """What an SAE's configuration says of it, without its weights.

    Args:
        name: Name to use in errors.
        path: A folder, or a file with weights.

    Returns:
        `model, hook_name, layer, d_sae, published_l0, architecture`; None if nothing says.

    Raises:
        SaeNotFoundError: The folder holds no SAE.
    """
    try:
        loader = disk_loader(path)
        if loader is None and not (path / FILES[0]).is_file():
            raise not_found(name, f"There is no {FILES[0]} in that folder.")
        config = read_config(path) if loader is None else loader(path, "meta")[0]
    except AbsorbError:
        raise
    except LOAD_ERRORS as error:
        raise not_found(name, f"The folder does not load: {error}.") from error
    # Before its sixth version SAELens kept what is metadata now beside the rest.
    metadata = {**config, **config.get("metadata", {})}
    hook_name = metadata.get("hook_name") or metadata.get("hook_point")
    return {
        "model": metadata.get("model_name"),
        "hook_name": hook_name,
        "layer": layer_of_hook(hook_name),
        "d_sae": config.get("d_sae"),
        "published_l0": metadata.get("l0"),
        "architecture": metadata.get("training_architecture") or config.get("architecture"),
    }


def read_config(folder: Path) -> dict[str, Any]:
    """Read an SAE's `cfg.json`.

    Args:
        folder: Where it lies.

    Returns:
        Its fields.

    Raises:
        ValueError: It is no JSON object.
    """
    config = json.loads((folder / SAE_CFG_FILENAME).read_text(encoding="utf-8"))
    if not isinstance(config, dict):
        raise ValueError(f"{SAE_CFG_FILENAME} is no JSON object")
    return config


def is_checkpoint(config: dict[str, Any]) -> bool:
    """Tell a training checkpoint's configuration from that of an inference SAE.

    Args:
        config: Fields of `cfg.json`.

    Returns:
        True if the architecture exists in training alone, or fields are there that all training configurations
        and no inference configurations have.

    Example:
        >>> is_checkpoint({"architecture": "matryoshka_batchtopk"}), is_checkpoint({"architecture": "standard"})
        (True, False)
    """
    architecture = config.get("architecture")
    if architecture not in SAE_TRAINING_CLASS_REGISTRY:
        return False
    return architecture not in SAE_CLASS_REGISTRY or "decoder_init_norm" in config


def not_found(name: str, reason: str) -> SaeNotFoundError:
    """Make the error that says which names there are.

    Args:
        name: What was asked for.
        reason: Why it was not found.
    """
    return SaeNotFoundError(
        "name",
        name,
        expected=f"'speller/<name>', a folder with {' and '.join(FILES)} (or what SAELens's releases hold), "
        "'<release>/<id>' of SAELens, or '<module>:<function>'",
        remedy=reason,
    )


def _from_checkpoint(path: Path, device: str, dtype: str) -> SAE[Any]:
    training = TrainingSAE.load_from_disk(path, device=device)
    scaler = ActivationScaler()
    if (path / ACTIVATION_SCALER_CFG_FILENAME).is_file():
        scaler.load(path / ACTIVATION_SCALER_CFG_FILENAME)
    if scaler.scaling_factor is not None:
        training.fold_activation_norm_scaling_factor(scaler.scaling_factor)
    if scaler.whitening is not None:
        training.fold_activation_whitening(
            scaler.whitening.mean, scaler.whitening.matrix, scaler.whitening.inverse_matrix
        )
    return inference_sae(training, device, dtype)


def inference_sae(training: TrainingSAE[Any], device: str, dtype: str) -> SAE[Any]:
    """Turn an SAE in training into the inference SAE that SAELens would save of it.

    Args:
        training: The SAE in training.
        device: A torch device.
        dtype: Dtype of the weights.

    Returns:
        The inference SAE; a BatchTopK SAE, whose latents depend on the batch, becomes a JumpReLU SAE.
    """
    weights = training.state_dict()
    training.process_state_dict_for_saving_inference(weights)
    config = training.cfg.get_inference_sae_cfg_dict()

    def converted(
        path: str | Path, device: str, cfg_overrides: dict[str, Any] | None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        del path
        return {**config, "device": device, **(cfg_overrides or {})}, weights

    return SAE.load_from_disk("", device=device, dtype=dtype, converter=converted)


def _runner_hook(path: Path) -> str | None:
    runner = path / RUNNER_CFG_FILENAME
    return json.loads(runner.read_text(encoding="utf-8")).get("hook_name") if runner.is_file() else None
