"""Activations of a speller on the spelling tasks that it was trained on."""

from functools import cached_property
from typing import Annotated, Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from typing_extensions import override

from absorb_pl.models.bundled import SPELLER
from absorb_pl.models.language_model import check_hook, load_language_model
from absorb_pl.ranges import Count, NotNegative, Range, Seed, check_ranges
from absorb_pl.training.sources import ModelActivations, chunk_rng
from absorb_pl.training.spelling_mixture import TEMPLATES, SpellingMixture, TokenBatch, vocabulary_of


class SpellingActivations(ModelActivations):
    """Residuals of a speller on contexts of solved spelling examples, at the words and at other tokens.

    Args:
        hook_names: TransformerLens hook names.
        model: The bundled speller, or the folder of another that was made as it was (see its model card).
        examples: Solved examples per context.
        other_share: Share of rows that are not read at a word.
        power: Words are drawn by their frequency to this power.
        contexts_per_chunk: Contexts per chunk, all of one task.
        seed: Seed of the contexts.

    Raises:
        HookNotFoundError: The speller has no such hook.

    Example:
        >>> source = SpellingActivations(["blocks.0.hook_resid_post"], contexts_per_chunk=4)
        >>> source.chunk(0, torch.device("cpu"))["blocks.0.hook_resid_post"].shape
        torch.Size([55, 128])
    """

    def __init__(
        self,
        hook_names: list[str],
        model: str = SPELLER,
        examples: Count = 11,
        other_share: Annotated[float | int, Range(0, 1, below=True)] = 0.2,
        power: NotNegative = 0.6,
        contexts_per_chunk: Count = 64,
        seed: Seed = 0,
    ) -> None:
        check_ranges(SpellingActivations.__init__, locals())
        self.hook_names, self.examples, self.other_share = list(hook_names), examples, other_share
        self.power, self.contexts_per_chunk, self.seed = power, contexts_per_chunk, seed
        self.model_name, self.model = model, load_language_model(model)
        for hook in self.hook_names:
            check_hook(self.model, hook)

    @cached_property
    def _mixture(self) -> SpellingMixture:
        tokenizer = self.model.tokenizer
        return SpellingMixture(
            tokenizer, vocabulary_of(tokenizer), power=self.power, examples=self.examples, seed=self.seed
        )

    @property
    @override
    def num_chunks(self) -> None:
        return None

    @override
    def token_ids(self, number: int) -> Int[Tensor, "contexts tokens"]:
        return self._drawn(number)[0].input_ids

    @override
    def chunk(self, number: int, device: torch.device) -> dict[str, Tensor]:
        batch, rng = self._drawn(number)
        contexts, tokens = batch.input_ids.shape
        is_word = torch.zeros(tokens, dtype=torch.bool)
        is_word[batch.word_positions] = True
        others = (~is_word).nonzero()[1:, 0]  # without the beginning-of-sequence token
        at_words = (torch.arange(contexts)[:, None] * tokens + is_word.nonzero()[:, 0]).flatten()
        num_others = round(len(at_words) * self.other_share / (1 - self.other_share))
        elsewhere = torch.from_numpy(rng.integers(contexts, size=num_others)) * tokens
        elsewhere = elsewhere + others[torch.from_numpy(rng.integers(len(others), size=num_others))]
        rows = torch.cat([at_words, elsewhere]).to(device)
        found = self.read(batch.input_ids, device)
        return {hook: found[hook].flatten(0, 1)[rows] for hook in self.hook_names}

    def _drawn(self, number: int) -> tuple[TokenBatch, np.random.Generator]:
        """The contexts of a chunk, and the generator that drew them."""
        self._mixture.rng = rng = chunk_rng(self.seed, number)
        template = TEMPLATES[rng.choice(len(TEMPLATES), p=[template.share for template in TEMPLATES])]
        return self._mixture.batch(template, self.contexts_per_chunk, with_bos=True), rng

    @property
    @override
    def identity(self) -> dict[str, Any]:
        names = ("hook_names", "examples", "other_share", "power", "contexts_per_chunk", "seed")
        return {"model": self.model_name, **{name: getattr(self, name) for name in names}}

    @property
    @override
    def sae_metadata(self) -> dict[str, Any]:
        return {"model_name": self.model_name, "prepend_bos": True}
