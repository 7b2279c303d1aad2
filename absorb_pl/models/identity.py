"""Content hashes of models, SAEs and tokenizers: equal hashes mean equal results, wherever the files lie."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

VOLATILE = {"_name_or_path", "device", "metadata", "model_name", "tokenizer_name", "transformers_version"}
_PIECE_BYTES = 2**24
_NOT_TOKENIZATION = {"padding", "post_processor", "truncation"}


def model_identity(model: Any) -> str:
    """Hash a language model's weights and configuration, whatever its device and folder.

    Takes about a second for each gigabyte of weights, divided among PyTorch's threads.

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
        32 hexadecimal digits: BLAKE2b of settings, names, dtypes, shapes and the hashes of 16 MiB pieces of tensors.

    Example:
        >>> content_hash({"a": torch.zeros(1)}, {}) == content_hash({"a": torch.zeros(2)}, {})
        False
    """
    digest = hashlib.blake2b(digest_size=16)
    counted = {key: value for key, value in settings.items() if key not in VOLATILE}
    digest.update(json.dumps(counted, sort_keys=True, default=str).encode())
    pieces = []
    for name in sorted(tensors):
        tensor = tensors[name].detach()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        pieces += _pieces(tensor)
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        for piece in threads.map(_piece_hash, pieces):
            digest.update(piece)
    return digest.hexdigest()


def _pieces(tensor: Tensor) -> Iterable[Tensor]:
    """Views of some rows each, about `_PIECE_BYTES` large."""
    rows = torch.atleast_1d(tensor)
    row_bytes = max(1, rows.nbytes // max(1, len(rows)))
    return rows.split(max(1, _PIECE_BYTES // row_bytes))


def _piece_hash(piece: Tensor) -> bytes:
    """Hash the bytes of a tensor; threads do it side by side, as neither copying nor hashing holds Python's lock."""
    return hashlib.blake2b(piece.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data, digest_size=16).digest()
