"""Content hashes of SAEs: equal hashes mean equal results, wherever the files lie."""

from typing import Any

from sae_lens import SAE
from torch import Tensor, nn

from absorb_pl.errors import SaeInterfaceError
from absorb_pl.models.identity import VOLATILE, content_hash
from absorb_pl.saes.contents import Contents
from absorb_pl.saes.scale import unwrapped_sae

_WEIGHTS = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")


def sae_identity(sae: Any) -> str:
    """Hash an SAE's weights, configuration, code and hook name, whatever its device and folder.

    Args:
        sae: A SAELens SAE, any module, or a plain object (see `SparseAutoencoder`): its tensors are hashed with all its
            settings and the code that it runs (see `Contents`), or its `identity` if it names one.

    Returns:
        32 hexadecimal digits.

    Raises:
        SaeInterfaceError: A plain object keeps no tensors but `W_dec` where they can be found.

    Example:
        >>> import torch
        >>> len(sae_identity(torch.nn.Linear(2, 2)))
        32
    """
    hook_name, sae = getattr(sae, "hook_name", None), unwrapped_sae(sae)
    settings: dict[str, Any] = {"class": type(sae).__name__}
    cfg = getattr(sae, "cfg", None)
    if cfg is not None:
        settings |= cfg.to_dict() if hasattr(cfg, "to_dict") else vars(cfg)
        settings["hook_name"] = getattr(getattr(cfg, "metadata", None), "hook_name", None)
    if isinstance(sae, SAE) and type(sae).__module__.startswith("sae_lens."):
        return content_hash(sae.state_dict(), settings)
    if hook_name is not None:
        settings["hook_name"] = hook_name
    if isinstance(said := getattr(sae, "identity", None), str):
        return content_hash({}, {**settings, "identity": said, "dtype": str(sae.W_dec.dtype)})
    contents = Contents()
    settings["contents"] = contents.describe(sae, "sae", skip=VOLATILE)
    tensors = {**{f"sae.{name}": tensor for name, tensor in sae_tensors(sae).items()}, **contents.tensors}
    if not (isinstance(sae, nn.Module) and sae.state_dict()) and set(tensors) <= {"sae.W_dec"}:
        raise SaeInterfaceError(
            "sae.identity",
            None,
            expected=f"a text that changes as {type(sae).__name__} does, for no tensor but `W_dec` is found in it",
            remedy="Give it an attribute `identity`, or keep the encoder's weights in attributes.",
        )
    return content_hash(tensors, settings)


def sae_tensors(sae: Any) -> dict[str, Tensor]:
    """Find the tensors that an SAE is made of.

    Args:
        sae: A SAELens SAE, any module, or a plain object that keeps tensors or modules in its attributes.

    Returns:
        What its `state_dict` holds, and tensors among its attributes that are not there, by name.

    Example:
        >>> import torch
        >>> from types import SimpleNamespace
        >>> list(sae_tensors(SimpleNamespace(W_dec=torch.eye(2), scale=2.0)))
        ['W_dec']
    """
    sae = unwrapped_sae(sae)
    found: dict[str, Tensor] = dict(sae.state_dict()) if isinstance(sae, nn.Module) else {}
    if isinstance(sae, SAE):
        return found
    for name, value in {**{key: getattr(sae, key, None) for key in _WEIGHTS}, **_attributes(sae)}.items():
        if isinstance(value, Tensor):
            found.setdefault(name, value)
        elif isinstance(value, nn.Module):
            found |= {f"{name}.{key}": tensor for key, tensor in value.state_dict().items()}
    return found


def _attributes(sae: Any) -> dict[str, Any]:
    own = getattr(sae, "__dict__", {})
    return {name: value for name, value in own.items() if name[0] != "_" and name not in {"training", *VOLATILE}}
