"""What an SAE's configuration says: settings that SAELens would drop or misread are refused before it does."""

from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import wraps
from typing import Any, get_type_hints

from sae_lens import SAE
from sae_lens.loading.pretrained_sae_loaders import handle_config_defaulting
from sae_lens.registry import SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY

from absorb_pl.errors import SaeArchitectureError
from absorb_pl.saes.properties import refuse_transcoder, require_floats

_OF_METADATA: dict[str, tuple[type, ...]] = {
    "hook_name": (str,),
    "model_name": (str,),
    "prepend_bos": (bool,),
    "hook_head_index": (int,),
    "seqpos_slice": (list, tuple),
    "context_size": (int,),
    "model_from_pretrained_kwargs": (dict,),
}


def checked_loader(name: str, loader: Callable[..., Any]) -> Callable[..., Any]:
    """Make a SAELens loader refuse what SAELens would not honour in what it loads.

    Args:
        name: Name to use in errors.
        loader: A loader for disk or hub.

    Returns:
        A loader with the same arguments and results.
    """

    @wraps(loader)
    def load(*args: Any, **kwargs: Any) -> Any:
        config, weights, *rest = loader(*args, **kwargs)
        refuse_unsupported(name, config)
        require_floats(name, weights)
        return config, weights, *rest

    return load


def refuse_unsupported(name: str, config: Mapping[str, Any]) -> None:
    """Refuse SAEs that SAELens would run as others than they are, and say nothing.

    SAELens passes over settings that its classes lack. Of those that it had before its sixth version and that others
    write, some change what an SAE computes.

    Args:
        name: Name to use in errors.
        config: The configuration as it is stored.

    Raises:
        SaeArchitectureError: Its latents go through a function that SAELens lacks, or it is a transcoder.
        ValueError: SAELens has no such architecture, or a setting is of another type than it should be.

    Example:
        >>> refuse_unsupported("mine", {"activation_fn_str": "tanh-relu"})
        Traceback (most recent call last):
            ...
        absorb_pl.errors.SaeArchitectureError: `name` was 'mine', expected latents that go through relu or topk...
    """
    architecture = config.get("architecture", "standard")
    refuse_transcoder(name, str(architecture))
    reads = config.get("hook_name") or config.get("hook_point")
    writes = config.get("hook_name_out") or config.get("out_hook_point") or reads
    if config.get("is_transcoder") or (reads and writes != reads):
        refuse_transcoder(name, "transcoder")
    if not isinstance(architecture, str) or architecture not in {**SAE_CLASS_REGISTRY, **SAE_TRAINING_CLASS_REGISTRY}:
        raise ValueError(f"SAELens has no architecture {architecture!r}")
    for key in ("activation_fn_str", "activation_fn"):
        if config.get(key) not in (None, "relu", "topk"):
            raise _unlike(name, f"not {config[key]!r}", "SAELens no longer has this activation function.")
        if config.get(key) == "topk":
            _refuse_other_topk(name, config)
    _check_types(config, _OF_METADATA)
    if not isinstance(metadata := config.get("metadata", {}), dict):
        raise ValueError(f"metadata is {metadata!r}, no mapping")
    if metadata and not (metadata.get("sae_lens_version") or config.get("sae_lens_version")):
        raise ValueError("metadata hold no sae_lens_version, so that SAELens would pass over them")
    _check_types(metadata, _OF_METADATA)


def check_settings(sae: SAE[Any]) -> None:
    """Refuse settings of a loaded SAE that have another type than they should, or no sense.

    Args:
        sae: A SAELens SAE.

    Raises:
        ValueError: Names the first.
    """
    hints = get_type_hints(type(sae.cfg))
    kinds = {bool: (bool,), int: (int,), float: (int, float), str: (str,)}
    known = {field.name: kinds[hints[field.name]] for field in fields(sae.cfg) if hints[field.name] in kinds}
    _check_types(vars(sae.cfg), known, required=True)
    k = getattr(sae.cfg, "k", None)
    if k is not None and not 1 <= k <= sae.cfg.d_sae:
        raise ValueError(f"k is {k}, not between 1 and {sae.cfg.d_sae}, the number of latents")
    if min(sae.cfg.d_in, sae.cfg.d_sae) < 1:
        raise ValueError(f"d_in is {sae.cfg.d_in} and d_sae {sae.cfg.d_sae}, not at least 1")


def _refuse_other_topk(name: str, config: Mapping[str, Any]) -> None:
    if "topk" not in handle_config_defaulting(dict(config))["architecture"]:
        raise _unlike(name, "and topk has its k in `activation_fn_kwargs`", "SAELens would run a ReLU.")
    options = {key for key, value in (config.get("activation_fn_kwargs") or {}).items() if key != "k" and value}
    if options:
        raise _unlike(name, f"without {', '.join(sorted(options))}", "SAELens would pass over it.")


def _check_types(settings: Mapping[str, Any], known: Mapping[str, tuple[type, ...]], required: bool = False) -> None:
    for key, kinds in known.items():
        value = settings.get(key)
        wrong = not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds)
        if wrong and (required or value is not None):
            raise ValueError(f"{key} is {value!r}, no {' or '.join(kind.__name__ for kind in kinds)}")


def _unlike(name: str, said: str, reason: str) -> SaeArchitectureError:
    return SaeArchitectureError(
        "name",
        name,
        expected=f"latents that go through relu or topk, {said}",
        remedy=f"{reason} Give the SAE as an object of your own.",
    )
