"""Activations of a language model on texts."""

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from typing_extensions import override

from absorb_pl.data.drafts import user_path
from absorb_pl.errors import ContextLengthError, ShapeError
from absorb_pl.models.identity import model_identity
from absorb_pl.models.language_model import check_hook, context_length, resolve_model
from absorb_pl.ranges import Count, Seed, check_ranges
from absorb_pl.training.sources import ModelActivations
from absorb_pl.training.tokens import open_texts, packed_tokens


class TextActivations(ModelActivations):
    """Activations of a language model on texts, at all tokens but the beginning-of-sequence token.

    Texts are tokenized once, into the cache, and cut into contexts in random order; activations are made when they are
    asked for, and kept nowhere.

    Args:
        hook_names: TransformerLens hook names.
        model: Name for `load_language_model`, or a `TransformerBridge`.
        files: Text files, a document each, or `.jsonl` files, a document per line.
        dataset: Folder or name of a data set in Hugging Face's format, in place of files.
        split: Split of the data set.
        column: Column or key that holds the text.
        context_size: Tokens per context, the beginning-of-sequence token included.
        contexts_per_chunk: Contexts per chunk, and per forward pass; those that fill no chunk are left out.
        seed: Seed of the order of contexts.
        cache_dir: Root of the cache, for the token ids.
        model_dtype: Dtype of a model loaded by name.
        n_devices: Number of GPUs to divide the layers of such a model among, if one does not hold it.

    Raises:
        HookNotFoundError: The model has no such hook.
        ContextLengthError: The model does not take contexts so long.
        ShapeError: The texts do not fill one chunk.
        AbsorbError: The texts cannot be opened.
    """

    def __init__(
        self,
        hook_names: list[str],
        model: Any = "speller",
        files: list[str] | None = None,
        dataset: str | None = None,
        split: str = "train",
        column: str = "text",
        context_size: Count = 128,
        contexts_per_chunk: Count = 32,
        seed: Seed = 0,
        cache_dir: str | Path = "lightning_logs/cache",
        model_dtype: str = "float32",
        n_devices: Count = 1,
    ) -> None:
        check_ranges(TextActivations.__init__, locals())
        self.hook_names, self.context_size, self.contexts_per_chunk = list(hook_names), context_size, contexts_per_chunk
        self.seed = seed
        texts = open_texts(files or [], dataset, split, column)
        self.name = model if isinstance(model, str) else type(model).__name__
        self.model = resolve_model(model, dtype=model_dtype, n_devices=n_devices)
        for hook in self.hook_names:
            check_hook(self.model, hook)
        if context_size > context_length(self.model):
            raise ContextLengthError(
                "context_size",
                context_size,
                expected=f"at most {context_length(self.model)} tokens, which the model takes",
                remedy="Shorten the contexts.",
            )
        tokenizer = self.model.tokenizer
        self._contexts, self._content = packed_tokens(texts, column, tokenizer, context_size, user_path(cache_dir))
        if len(self._contexts) < contexts_per_chunk:
            raise ShapeError(
                "contexts_per_chunk",
                contexts_per_chunk,
                expected=f"at most the {len(self._contexts)} contexts that the texts fill",
                remedy="Lower it, shorten the contexts, or give more text.",
            )
        self._order = np.random.default_rng(seed).permutation(len(self._contexts))

    @property
    @override
    def num_chunks(self) -> int:
        return len(self._contexts) // self.contexts_per_chunk

    @override
    def token_ids(self, number: int) -> Int[Tensor, "contexts tokens"]:
        first = number * self.contexts_per_chunk
        chosen = np.sort(self._order[first : first + self.contexts_per_chunk])
        return torch.from_numpy(self._contexts[chosen].astype(np.int64))

    @override
    def chunk(self, number: int, device: torch.device) -> dict[str, Tensor]:
        found = self.read(self.token_ids(number), device)
        return {hook: found[hook][:, self.starts_with_bos :].flatten(0, 1) for hook in self.hook_names}

    @cached_property
    def _model_identity(self) -> str:
        return model_identity(self.model)

    @property
    @override
    def identity(self) -> dict[str, Any]:
        names = ("hook_names", "context_size", "contexts_per_chunk", "seed")
        own = {name: getattr(self, name) for name in names}
        return {"model": self._model_identity, "tokens": self._content, **own}

    @property
    @override
    def sae_metadata(self) -> dict[str, Any]:
        return {"model_name": self.name, "prepend_bos": self.starts_with_bos, "context_size": self.context_size}
