"""The activation cache: one row per word, one artifact per hook, in memory-mapped shards.

A shard is a raw file of `ROWS_PER_SHARD` rows in row-major order, in the storage dtype. Ranks write their rows
straight to their place, so nothing has to be merged and nothing is held in memory. A digest of each row is written
with it, by which a pass proves that all rows are there before it publishes them.
"""

import hashlib
import os
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from absorb_pl.data.artifacts import (
    Identity,
    artifact_path,
    open_artifact,
    read_manifest,
)
from absorb_pl.errors import NonFiniteError
from absorb_pl.models.hooked_model import HookedModel
from absorb_pl.models.identity import content_hash, model_identity, tokenizer_identity
from absorb_pl.words.positions import TokenizedPrompts

StorageDtype = Literal["float32", "bfloat16", "float16"]
STORAGE_DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
ROWS_PER_SHARD = 16_384
DIGESTS = "digests.bin"
_DIGEST_BYTES = 8
STAGE = "activations"


class ActivationCache:
    """The cached residual rows of one hook, read as matrices.

    Attributes:
        path: Folder of the artifact.
        num_rows: Number of words.
        width: Length of a row.
    """

    def __init__(self, path: Path) -> None:
        facts = read_manifest(path)["facts"]
        self.path = path
        self.num_rows: int = facts["rows"]
        self.width: int = facts["width"]
        dtype = STORAGE_DTYPES[facts["dtype"]]
        self._shards = [
            torch.from_file(
                str(path / shard_name(start)),
                shared=False,
                size=min(ROWS_PER_SHARD, self.num_rows - start) * self.width,
                dtype=dtype,
            ).view(-1, self.width)
            for start in range(0, self.num_rows, ROWS_PER_SHARD)
        ]

    def __len__(self) -> int:
        return self.num_rows

    def rows(self, index: Int[Tensor, " rows"] | None = None) -> Float[Tensor, "rows d_model"]:
        """The rows of `index` (all rows when None), in that order, as float32.

        Args:
            index: Row numbers in `[0, num_rows)`, any order, repeats allowed.
        """
        if index is None:
            return torch.cat([shard.float() for shard in self._shards])
        if len(self._shards) == 1:
            return self._shards[0].index_select(0, index).float()
        out = torch.empty(len(index), self.width)
        for number, shard in enumerate(self._shards):
            here = (index // ROWS_PER_SHARD == number).nonzero().squeeze(-1)
            out[here] = shard.index_select(0, index[here] - number * ROWS_PER_SHARD).float()
        return out


def activation_identities(
    model: HookedModel, prompts: TokenizedPrompts, hook_names: Sequence[str], dtype: StorageDtype
) -> dict[str, dict[str, Any]]:
    """Everything that determines the cached rows of each hook.

    Args:
        model: The language model; its weights and configuration are hashed.
        prompts: Token ids and word positions; hashed.
        hook_names: TransformerLens hook names.
        dtype: Storage dtype.

    Returns:
        One identity per hook.
    """
    shared = {
        "model": model_identity(model),
        "tokenizer": tokenizer_identity(model.tokenizer),
        "prompts": prompts_identity(prompts),
        "rows": len(prompts),
        "dtype": dtype,
        "made_with": {name: version(name) for name in ("absorb-pl", "torch", "transformers", "sae-lens")},
    }
    return {hook: {**shared, "hook_name": hook} for hook in hook_names}


def activation_path(cache_dir: Path, identity: Identity) -> Path:
    """Folder of the cached rows with this identity."""
    return artifact_path(cache_dir, STAGE, str(identity["hook_name"]), identity)


def open_activations(cache_dir: Path, identity: Identity) -> ActivationCache | None:
    """The cached rows with this identity, checked against their checksums; None if there are none.

    Raises:
        CacheCorruptedError: A shard is missing, cut short or altered.
        ManifestMismatchError: The folder holds rows made from something else.
    """
    path = open_artifact(activation_path(cache_dir, identity), identity)
    return None if path is None else ActivationCache(path)


def shard_name(row: int) -> str:
    """File that holds a row."""
    return f"{row // ROWS_PER_SHARD:05d}.bin"


def write_rows(folder: Path, rows: Tensor, index: Tensor) -> None:
    """Put rows and their digests in their place below `folder`, one call for each run of consecutive rows of a shard.

    Args:
        folder: Temporary folder of one hook's artifact.
        rows: `[rows, d_model]` in the storage dtype.
        index: Row numbers.
    """
    order = index.argsort()
    rows, index = rows[order].contiguous(), index[order]
    row_bytes = rows.shape[-1] * rows.element_size()
    breaks = (index.diff() != 1) | (index[1:] % ROWS_PER_SHARD == 0)
    for run in torch.tensor_split(torch.arange(len(index)), (breaks.nonzero().squeeze(-1) + 1).tolist()):
        first = int(index[run[0]])
        content = rows[run].view(torch.uint8).numpy().tobytes()
        _write_at(folder / shard_name(first), content, first % ROWS_PER_SHARD * row_bytes)
        _write_at(folder / DIGESTS, _digests(content, row_bytes), first * _DIGEST_BYTES)


def count_written_rows(folder: Path, num_rows: int, row_bytes: int) -> int:
    """Number of rows below `folder` that are there as they were written, by their digests.

    Args:
        folder: Temporary folder of one hook's artifact.
        num_rows: Rows that there should be.
        row_bytes: Bytes per row.
    """
    digests = (folder / DIGESTS).read_bytes() if (folder / DIGESTS).is_file() else b""
    count = 0
    for start in range(0, num_rows, ROWS_PER_SHARD):
        shard = folder / shard_name(start)
        here = min(ROWS_PER_SHARD, num_rows - start)
        found = _digests(shard.read_bytes()[: here * row_bytes], row_bytes) if shard.is_file() else b""
        said = digests[start * _DIGEST_BYTES : (start + here) * _DIGEST_BYTES]
        count += sum(
            found[place : place + _DIGEST_BYTES] == said[place : place + _DIGEST_BYTES]
            for place in range(0, min(len(found), len(said)), _DIGEST_BYTES)
        )
    return count


def _digests(content: bytes, row_bytes: int) -> bytes:
    """Digests of whole rows, one after the other."""
    rows = (content[place : place + row_bytes] for place in range(0, len(content) - row_bytes + 1, row_bytes))
    return b"".join(hashlib.blake2b(row, digest_size=_DIGEST_BYTES).digest() for row in rows)


def _write_at(file: Path, content: bytes, offset: int) -> None:
    descriptor, left = os.open(file, os.O_WRONLY | os.O_CREAT, 0o644), memoryview(content)
    try:
        while len(left):
            done = os.pwrite(descriptor, left, offset)
            left, offset = left[done:], offset + done
    finally:
        os.close(descriptor)


def check_finite(rows: Tensor, index: Tensor, hook: str, dtype: str) -> None:
    """Raise if a row to be stored is not finite.

    Raises:
        NonFiniteError: Names the hook and the first such row.
    """
    bad = ~rows.isfinite().all(dim=-1)
    if bad.any():
        raise NonFiniteError(
            hook,
            f"NaN or infinity at row {int(index[bad][0])} ({int(bad.sum())} rows of this batch)",
            expected=f"finite activations in {dtype}",
            remedy="Check the model's weights, or store in a dtype of wider range (`dtype: float32`).",
        )


def prompts_identity(prompts: TokenizedPrompts) -> str:
    """Hash of the token ids and word positions of prompts."""
    tensors = {
        "input_ids": prompts.input_ids,
        "lengths": prompts.lengths,
        "word_positions": prompts.word_positions,
    }
    return content_hash(tensors, {})
