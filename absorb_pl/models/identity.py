"""Content hashes of models, SAEs and tokenizers: equal hashes mean equal results, wherever the files lie."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from sae_lens import SAE
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from absorb_pl.errors import SaeInterfaceError
from absorb_pl.models.contents import Contents
from absorb_pl.models.sae_scale import unwrapped_sae

_WEIGHTS = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")
_VOLATILE = {"_name_or_path", "device", "metadata", "model_name", "tokenizer_name", "transformers_version"}
_NOT_TOKENIZATION = {"padding", "post_processor", "truncation"}


def model_identity(model: Any) -> str:
    """Hash a language model's weights and configuration, whatever its device and folder.

    Takes about a second for each gigabyte of weights.

    Args:
        model: A TransformerLens model.

    Returns:
        32 hexadecimal digits.

    Example:
        >>> import torch
        >>> from types import SimpleNamespace
        >>> layer = torch.nn.Linear(2, 2)
        >>> layer.cfg = SimpleNamespace(to_dict=lambda: {"device": "cpu"})
        >>> before = model_identity(layer)
        >>> _ = torch.nn.init.zeros_(layer.weight)
        >>> before == model_identity(layer)
        False
    """
    wrapped = getattr(model, "original_model", None)
    return content_hash(model.state_dict(), (model.cfg if wrapped is None else wrapped.config).to_dict())


def sae_identity(sae: Any) -> str:
    """Hash an SAE's weights, configuration, code and hook name, whatever its device and folder.

    Args:
        sae: A SAELens SAE, any module, or a plain object (see `SparseAutoencoder`): its tensors are hashed with all its
            settings and the code that it runs (see `Contents`), or its `identity` where it names one.

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
    settings["contents"] = contents.describe(sae, "sae", skip=_VOLATILE)
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
    return {name: value for name, value in own.items() if name[0] != "_" and name not in {"training", *_VOLATILE}}


def tokenizer_identity(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash all that determines the token ids of a text, special tokens added around it aside.

    Args:
        tokenizer: A Hugging Face tokenizer.

    Returns:
        32 hexadecimal digits.

    Example:
        >>> from tokenizers import Tokenizer, models
        >>> from transformers import PreTrainedTokenizerFast
        >>> backend = Tokenizer(models.WordLevel({"cat": 0}))
        >>> len(tokenizer_identity(PreTrainedTokenizerFast(tokenizer_object=backend)))
        32
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    settings: dict[str, Any] = {"special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()}}
    if backend is None:
        settings |= {"class": type(tokenizer).__name__, "vocabulary": tokenizer.get_vocab()}
    else:
        settings |= {k: v for k, v in json.loads(backend.to_str()).items() if k not in _NOT_TOKENIZATION}
    return content_hash({}, settings)


def content_hash(tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> str:
    """Hash named tensors, their dtypes and shapes, and settings; names and settings in any order.

    Settings that say where a thing came from or lies (device, path, library version) do not count.

    Args:
        tensors: Tensors of any dtype and device.
        settings: Anything that `json` writes; other values count by their text.

    Returns:
        32 hexadecimal digits of BLAKE2b.

    Example:
        >>> content_hash({"a": torch.zeros(1)}, {}) == content_hash({"a": torch.zeros(2)}, {})
        False
    """
    digest = hashlib.blake2b(digest_size=16)
    counted = {key: value for key, value in settings.items() if key not in _VOLATILE}
    digest.update(json.dumps(counted, sort_keys=True, default=str).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
