"""Prompts as token ids, with the place of each prompt's own word found from the ids themselves."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from absorb_pl.errors import ContextLengthError, PromptError
from absorb_pl.ranges import Count, check_ranges
from absorb_pl.words.prompting import SpellingPrompt


@dataclass(frozen=True)
class TokenizedPrompts:
    """A batch of prompts as token ids, padded on the right.

    A causal model sees nothing to the right of a token, so it gives the same values at the real tokens with
    or without the mask. An encoder sees the padding unless it gets the mask.

    Attributes:
        input_ids: Token ids; padding carries the pad (or end-of-sequence) id.
        attention_mask: True at real tokens.
        lengths: Number of real tokens of each prompt, those put before and after its text included.
        word_positions: Index of the last token of each prompt's own word.

    Example:
        >>> ids = torch.tensor([[5, 6, 7], [5, 8, 0]])
        >>> prompts = TokenizedPrompts(ids, ids != 0, torch.tensor([3, 2]), torch.tensor([1, 1]))
        >>> prompts.select([1]).input_ids
        tensor([[5, 8]])
    """

    input_ids: Int[Tensor, "prompts tokens"]
    attention_mask: Bool[Tensor, "prompts tokens"]
    lengths: Int[Tensor, " prompts"]
    word_positions: Int[Tensor, " prompts"]

    def __len__(self) -> int:
        """Give the number of prompts."""
        return len(self.lengths)

    def select(self, rows: Sequence[int] | Sequence[bool] | slice | Tensor) -> "TokenizedPrompts":
        """Take a subset of the prompts, in the order given, without padding that none of them needs.

        Args:
            rows: Indices, a slice or a boolean mask over the prompts.

        Returns:
            The chosen prompts.
        """
        index = rows
        if not isinstance(rows, slice | Tensor):
            index = torch.tensor(rows) if len(rows) else torch.zeros(0, dtype=torch.long)
        return TokenizedPrompts(
            self.input_ids[index], self.attention_mask[index], self.lengths[index], self.word_positions[index]
        ).trim()

    def trim(self) -> "TokenizedPrompts":
        """Drop the columns that are padding in every prompt.

        Returns:
            The same prompts, as narrow as the longest of them.
        """
        width = int(self.lengths.max()) if len(self) else 0
        return TokenizedPrompts(
            self.input_ids[:, :width], self.attention_mask[:, :width], self.lengths, self.word_positions
        )

    def to(self, device: str | torch.device) -> "TokenizedPrompts":
        """Move all tensors to a device.

        Returns:
            The prompts on that device.
        """
        return TokenizedPrompts(
            self.input_ids.to(device),
            self.attention_mask.to(device),
            self.lengths.to(device),
            self.word_positions.to(device),
        )


def tokenize_prompts(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[SpellingPrompt],
    *,
    prepend_bos: bool,
    append_sep: bool = False,
    max_length: Count | None = None,
) -> TokenizedPrompts:
    """Tokenize the bases of prompts and find the last token of each one's own word.

    The published code reads activations at a fixed position, -6 for its first-letter template. Here the
    text up to the word's end is tokenized by itself: if the whole prompt's ids begin with those ids, the
    word ends at the last of them. Where the tokenizer merges the word's end with what follows, the token
    that holds the word's last character is taken.

    Args:
        tokenizer: A Hugging Face tokenizer; whatever special tokens it would add itself are left out.
        prompts: The prompts. One without `word_end` must hold its word exactly once.
        prepend_bos: Whether each prompt begins with the beginning-of-sequence token (`bos_token_id`).
        append_sep: Whether each prompt ends with the separator token, as encoders of BERT's kind were trained:
            `[CLS] examples, then the word's own text [SEP]`. Not for causal models, which answer at the last token.
        max_length: Most tokens a prompt may have, usually the model's context length; None for no limit.

    Returns:
        The prompts' token ids, nothing truncated.

    Raises:
        ContextLengthError: If a prompt is longer than `max_length`.
        PromptError: If there are no prompts, a word's place cannot be told, or there is no token to prepend
            or append.

    Example:
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> from transformers import PreTrainedTokenizerFast
        >>> backend = Tokenizer(models.WordLevel({"<s>": 0, "cat": 1, ":": 2}, unk_token="<s>"))
        >>> backend.pre_tokenizer = pre_tokenizers.Whitespace()
        >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="<s>")
        >>> prompts = [SpellingPrompt("cat:", " c", "cat", word_end=3)]
        >>> tokenized = tokenize_prompts(tokenizer, prompts, prepend_bos=True)
        >>> tokenized.input_ids, tokenized.word_positions
        (tensor([[0, 1, 2]]), tensor([1]))
    """
    check_ranges(tokenize_prompts, locals())
    if not prompts:
        raise PromptError("prompts", [], expected="at least one prompt", remedy="Give a longer word list.")
    ids = _encode(tokenizer, [prompt.base for prompt in prompts])
    places = _word_places(tokenizer, prompts, ids)
    bos = [bos_token_id(tokenizer)] if prepend_bos else []
    sep = [_sep_token_id(tokenizer)] if append_sep else []
    lengths = torch.tensor([len(bos) + len(row) + len(sep) for row in ids])
    longest = int(lengths.argmax())
    if max_length is not None and lengths[longest] > max_length:
        raise ContextLengthError(
            "max_length",
            max_length,
            expected=f"at least {int(lengths[longest])}, the length in tokens of the longest prompt "
            f"(word {prompts[longest].word!r})",
            remedy="Use fewer ICL examples, shorter words or a model with a longer context.",
        )
    return TokenizedPrompts(
        input_ids=_pad([bos + row + sep for row in ids], int(lengths[longest]), _padding_id(tokenizer)),
        attention_mask=torch.arange(int(lengths[longest])) < lengths[:, None],
        lengths=lengths,
        word_positions=torch.tensor(places) + len(bos),
    )


def bos_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Give the id of the token that begins a sequence: `bos_token`, or `[CLS]` where the vocabulary has none.

    TransformerLens names tokens that a vocabulary may lack (`<|endoftext|>` for BERT); those do not count.

    Raises:
        PromptError: If the tokenizer has neither.

    Example:
        >>> from tokenizers import Tokenizer, models
        >>> from transformers import PreTrainedTokenizerFast
        >>> backend = Tokenizer(models.WordLevel({"<s>": 0}, unk_token="<s>"))
        >>> bos_token_id(PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>"))
        0
    """
    found = _id_in_vocabulary(tokenizer, tokenizer.bos_token)
    if found is None:
        found = _id_in_vocabulary(tokenizer, tokenizer.cls_token)
    if found is None:
        raise PromptError(
            "prepend_bos",
            True,
            expected="a tokenizer with a beginning-of-sequence token",
            remedy="Pass prepend_bos=False or set the tokenizer's bos_token.",
        )
    return found


def prepends_bos(model: Any) -> bool:
    """Tell whether the model begins the texts it tokenizes itself with a beginning-of-sequence token.

    Args:
        model: A TransformerLens model (bridge or hooked transformer), or anything with `cfg` and `tokenizer`.

    Returns:
        `model.cfg.default_prepend_bos`, unless the tokenizer has no such token (nor a `[CLS]`) in its vocabulary,
        or has it beyond the model's embeddings.

    Example:
        >>> from types import SimpleNamespace
        >>> prepends_bos(SimpleNamespace(cfg=SimpleNamespace(default_prepend_bos=False), tokenizer=None))
        False
    """
    if not getattr(model.cfg, "default_prepend_bos", True):
        return False
    try:
        begin = bos_token_id(model.tokenizer)
    except PromptError:
        return False
    return begin < getattr(model.cfg, "d_vocab", begin + 1)


def closes_with_sep(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Tell whether a tokenizer by itself ends a text with its separator token, as BERT's does.

    Example:
        >>> from tokenizers import Tokenizer, models
        >>> from transformers import PreTrainedTokenizerFast
        >>> backend = Tokenizer(models.WordLevel({"a": 0, "[SEP]": 1}))
        >>> closes_with_sep(PreTrainedTokenizerFast(tokenizer_object=backend, sep_token="[SEP]"))
        False
    """
    sep = _id_in_vocabulary(tokenizer, tokenizer.sep_token)
    return sep is not None and tokenizer("a")["input_ids"][-1] == sep


def _sep_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    sep = _id_in_vocabulary(tokenizer, tokenizer.sep_token)
    if sep is None:
        raise PromptError(
            "append_sep", True, expected="a tokenizer with a separator token", remedy="Pass append_sep=False."
        )
    return sep


def _id_in_vocabulary(tokenizer: PreTrainedTokenizerBase, token: Any) -> int | None:
    """Id of a token, or None if there is none; a token outside the vocabulary is none, not the unknown token."""
    index = None if token is None else tokenizer.convert_tokens_to_ids(str(token))
    if isinstance(index, int) and tokenizer.convert_ids_to_tokens(index) == str(token):
        return index
    return None


def _word_end(prompt: SpellingPrompt) -> int:
    if prompt.word_end is not None:
        if not 0 < prompt.word_end <= len(prompt.base):
            raise PromptError(
                "word_end",
                prompt.word_end,
                expected=f"1 to {len(prompt.base)}, inside the prompt of {prompt.word!r}",
                remedy="Build prompts with create_icl_prompt.",
            )
        return prompt.word_end
    start = prompt.base.find(prompt.word)
    if start < 0 or start != prompt.base.rfind(prompt.word) or not prompt.word:
        raise PromptError(
            "word",
            prompt.word,
            expected="a word that stands exactly once in its prompt",
            remedy="Set the prompt's word_end or build it with create_icl_prompt.",
        )
    return start + len(prompt.word)


def _encode(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    # `verbose=False`: lengths are checked against the model's context, not against what the tokenizer believes
    return tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]


def _word_places(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[SpellingPrompt], ids: list[list[int]]
) -> list[int]:
    """Find the last token of each prompt's own word among the prompt's ids."""
    ends = [_word_end(prompt) for prompt in prompts]
    upto = _encode(tokenizer, [prompt.base[:end] for prompt, end in zip(prompts, ends, strict=True)])
    places = [len(head) - 1 if head and row[: len(head)] == head else None for row, head in zip(ids, upto, strict=True)]
    merged = [i for i, place in enumerate(places) if place is None]
    if merged:
        found = _places_from_offsets(tokenizer, [prompts[i] for i in merged], [ends[i] for i in merged])
        for i, place in zip(merged, found, strict=True):
            places[i] = place
    return [place for place in places if place is not None]


def _places_from_offsets(
    tokenizer: PreTrainedTokenizerBase, prompts: list[SpellingPrompt], ends: list[int]
) -> list[int]:
    """Find the tokens that hold the last character of each word, where ids alone do not tell."""
    if not tokenizer.is_fast:
        raise PromptError(
            "prompts",
            prompts[0].base[: ends[0]],
            expected="a word that ends where a token ends",
            remedy="Use a fast tokenizer, which knows where its tokens stand in the text.",
        )
    encoded = tokenizer([p.base for p in prompts], add_special_tokens=False, return_offsets_mapping=True)
    places = []
    for prompt, end, spans in zip(prompts, ends, encoded["offset_mapping"], strict=True):
        holding = [i for i, (start, stop) in enumerate(spans) if start < end <= stop]
        if not holding:
            raise PromptError(
                "prompts",
                prompt.base[:end],
                expected="a word whose last character is part of a token",
                remedy="Leave out words that the tokenizer drops or cannot place.",
            )
        places.append(holding[-1])
    return places


def _padding_id(tokenizer: PreTrainedTokenizerBase) -> int:
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if isinstance(token, int):
            return token
    return 0


def _pad(rows: list[list[int]], width: int, padding: int) -> Int[Tensor, "prompts tokens"]:
    return torch.tensor([row + [padding] * (width - len(row)) for row in rows])
