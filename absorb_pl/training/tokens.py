"""Texts as token ids, packed into contexts of one length and kept in the cache."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, load_dataset, load_from_disk
from sae_lens.tokenization_and_batching import concat_and_batch_sequences
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from absorb_pl.data.artifacts import artifact_path, open_artifact, read_manifest, write_artifact
from absorb_pl.data.drafts import user_path
from absorb_pl.errors import AbsorbError, ShapeError
from absorb_pl.models.identity import tokenizer_identity

_TEXTS = 1000
_FILE = "tokens.bin"


def open_texts(files: Sequence[str], dataset: str | None, split: str, column: str) -> Dataset:
    """Open texts: files, or a data set in Hugging Face's format, by folder or by name.

    Args:
        files: Text files, a document each, or `.jsonl` files, a document per line.
        dataset: Folder or name of a data set, in place of files.
        split: Split of the data set.
        column: Column or key that holds the text.

    Raises:
        AbsorbError: Not one of both is given, or it cannot be opened, or it has no such column.
    """
    if bool(files) == bool(dataset):
        raise AbsorbError(
            "files",
            list(files),
            expected="files or a dataset, and not both",
            remedy="Name text files, or a data set by folder or name.",
        )
    for file in files:
        if not user_path(file).is_file():
            raise AbsorbError("files", file, expected="files that exist", remedy="Check the path.")
    try:
        texts = _opened(files, dataset, split)
    except (OSError, ValueError, KeyError, ConnectionError) as error:
        raise AbsorbError(
            "dataset" if dataset else "files",
            dataset or list(files),
            expected="texts that the library `datasets` opens",
            remedy=str(error).strip(),
        ) from error
    if column not in texts.column_names:
        raise AbsorbError(
            "column", column, expected=f"one of {', '.join(texts.column_names)}", remedy="Name the one with the text."
        )
    return texts.select_columns([column])


def packed_tokens(
    texts: Dataset, column: str, tokenizer: PreTrainedTokenizerBase, context_size: int, cache_dir: Path
) -> tuple[np.ndarray, str]:
    """Token ids of all texts, one after another, cut into contexts; made once and kept under the cache.

    Each context begins with the tokenizer's beginning-of-sequence token if it has one, texts are separated by its
    end-of-sequence token, and what fills no context at the end is left out.

    Args:
        texts: The texts.
        column: Column that holds them.
        tokenizer: The tokenizer.
        context_size: Tokens per context.
        cache_dir: Root of the cache.

    Returns:
        Contexts, `[contexts, context_size]`, read from the disk when they are used, and a hash of their content.

    Raises:
        ShapeError: The texts do not fill one context.
    """
    identity = {
        "texts": texts._fingerprint,
        "tokenizer": tokenizer_identity(tokenizer),
        "context_size": context_size,
        "format": 1,
    }
    path = artifact_path(cache_dir, "tokens", "contexts", identity)
    if open_artifact(path, identity) is None:
        with write_artifact(path, identity) as folder, (folder / _FILE).open("wb") as file:
            for context in _contexts(texts, column, tokenizer, context_size):
                file.write(context.numpy().astype(np.int32).tobytes())
    entry = read_manifest(path)["files"][_FILE]
    contexts = entry["bytes"] // (4 * context_size)
    if not contexts:
        raise ShapeError(
            "context_size",
            context_size,
            expected="texts that fill at least one context",
            remedy="Shorten the contexts, or give more text.",
        )
    return np.memmap(path / _FILE, np.int32, mode="r", shape=(contexts, context_size)), entry["blake2b"]


def _contexts(texts: Dataset, column: str, tokenizer: PreTrainedTokenizerBase, context_size: int) -> Iterator[Tensor]:
    def ids() -> Iterator[Tensor]:
        for first in range(0, len(texts), _TEXTS):
            batch = texts[first : first + _TEXTS][column]
            found: Any = tokenizer(batch, add_special_tokens=False, verbose=False)["input_ids"]
            yield from (torch.tensor(one) for one in found if one)

    special: Any = tokenizer
    return concat_and_batch_sequences(
        ids(),
        context_size,
        begin_batch_token_id=special.bos_token_id,
        sequence_separator_token_id=special.eos_token_id,
    )


def _opened(files: Sequence[str], dataset: str | None, split: str) -> Dataset:
    if dataset is None:
        names = [str(user_path(file)) for file in files]
        if all(name.endswith((".jsonl", ".json")) for name in names):
            found: Any = load_dataset("json", data_files=names, split="train")
        else:
            found = load_dataset("text", data_files=names, sample_by="document", split="train")
    elif user_path(dataset).is_dir() and any(user_path(dataset).glob("**/state.json")):
        found = load_from_disk(str(user_path(dataset)))
        found = found if isinstance(found, Dataset) else found[split]
    else:
        found = load_dataset(dataset, split=split)
    return found
