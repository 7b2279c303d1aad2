"""Prompts of any form and of different lengths as one batch whose last tokens share a column."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from absorb_pl.errors import ContextLengthError, PromptError, ShapeError
from absorb_pl.models.hooked_model import HookedModel
from absorb_pl.models.language_model import context_length
from absorb_pl.models.placement import model_device
from absorb_pl.words.positions import TokenizedPrompts

WITHOUT_TOKEN_AXIS = ("hook_pattern", "hook_attn_scores")


@dataclass(frozen=True)
class PromptBatch:
    """Token ids padded on the right, and the shift that brings every prompt's end into the last column.

    A causal model sees nothing to the right of a token. It therefore computes a prompt that is padded on the
    right as it computes the prompt alone, whatever its attention and its position embeddings, and needs no mask.
    What is read from a run is shifted: position -1 is the last token of every prompt and padding
    comes first. With prompts of one length nothing is padded or shifted.

    Attributes:
        token_ids: Token ids as the model runs them, padded on the right.
        lengths: Number of tokens of each prompt.

    Example:
        >>> batch = PromptBatch(torch.tensor([[5, 6, 7], [8, 9, 0]]), (3, 2))
        >>> batch.align(batch.token_ids)
        tensor([[5, 6, 7],
                [0, 8, 9]])
    """

    token_ids: Int[Tensor, "prompts tokens"]
    lengths: tuple[int, ...]

    def __len__(self) -> int:
        """Give the number of prompts."""
        return len(self.lengths)

    @property
    def width(self) -> int:
        """Number of tokens of the longest prompt."""
        return self.token_ids.shape[1]

    @property
    def is_even(self) -> bool:
        """Whether all prompts have as many tokens as there are columns."""
        return min(self.lengths) == self.width

    @property
    def real(self) -> Bool[Tensor, "prompts tokens"]:
        """Where tokens are once the ends share a column."""
        return self._columns() >= self.width - self._lengths()

    def select(self, rows: Sequence[int]) -> "PromptBatch":
        """Take some prompts, in the order given and as wide as before.

        Args:
            rows: Indices of prompts, repeated if need be.

        Returns:
            The chosen prompts.
        """
        return PromptBatch(self.token_ids[list(rows)], tuple(self.lengths[row] for row in rows))

    def shift(self, values: Tensor) -> Tensor:
        """Turn each row until its prompt ends in the last column, padding in front.

        Args:
            values: As the model has them, `[prompts, tokens, ...]`.

        Returns:
            The same values in other places.
        """
        return values if self.is_even else self._turn(values, self._lengths())

    def mask(self, values: Tensor, fill: float = 0.0) -> Tensor:
        """Overwrite the padding of shifted values.

        Args:
            values: Shifted values, `[prompts, tokens, ...]`.
            fill: What to put there.

        Returns:
            The values with constant padding, through which no gradient passes.
        """
        return values if self.is_even else values.masked_fill(~self._real_like(values), fill)

    def align(self, values: Tensor, fill: float = 0.0) -> Tensor:
        """Shift values and overwrite their padding.

        Args:
            values: As the model has them, `[prompts, tokens, ...]`.
            fill: What to put into padding.

        Returns:
            Values whose last column is every prompt's last token.
        """
        return self.mask(self.shift(values), fill)

    def restore(self, aligned: Tensor, values: Tensor) -> Tensor:
        """Put shifted values back to where the model has them.

        Args:
            aligned: Shifted values, `[prompts, tokens, ...]`.
            values: As the model has them; kept at padding.

        Returns:
            The values as the model has them, changed at tokens only.

        Example:
            >>> batch = PromptBatch(torch.tensor([[5, 6, 7], [8, 9, 0]]), (3, 2))
            >>> batch.restore(10 * batch.align(batch.token_ids), batch.token_ids)
            tensor([[50, 60, 70],
                    [80, 90,  0]])
        """
        if self.is_even:
            return aligned
        merged = torch.where(self._real_like(aligned), aligned, self.shift(values))
        return self._turn(merged, -self._lengths())

    def check_token_axis(self, hook_name: str, activation: Tensor) -> None:
        """Refuse activations that cannot be shifted.

        Args:
            hook_name: Where they come from.
            activation: The activations.

        Raises:
            ShapeError: Lengths differ and the activations are not `[prompts, tokens, ...]`.
        """
        if self.is_even:
            return
        expected = (len(self), self.width)
        if hook_name.endswith(WITHOUT_TOKEN_AXIS) or tuple(activation.shape[:2]) != expected:
            raise ShapeError(
                hook_name,
                tuple(activation.shape),
                expected=f"activations of shape ({len(self)} prompts, {self.width} tokens, …)",
                remedy="With this hook, hand in prompts of one length, or one prompt per call.",
            )

    def _turn(self, values: Tensor, by: Tensor) -> Tensor:
        columns = ((self._columns() + by) % self.width).to(values.device)
        return values[torch.arange(len(self), device=values.device)[:, None], columns]

    def _columns(self) -> Tensor:
        return torch.arange(self.width, device=self.token_ids.device)

    def _lengths(self) -> Tensor:
        return torch.tensor(self.lengths, device=self.token_ids.device)[:, None]

    def _real_like(self, values: Tensor) -> Tensor:
        return self.real.view(len(self), self.width, *[1] * (values.ndim - 2)).to(values.device)


def read_prompts(model: HookedModel, input: Any, argument: str = "input") -> PromptBatch:
    """Read prompts of any form.

    Texts are tokenised one by one, so each has the ids it has alone. A tensor that begins with the tokenizer's pad
    token is padded on the left, and the padding is dropped; one that leaves open what is padding is refused.
    A list of ids `[tokens]` is taken as it is.

    Args:
        model: The language model.
        input: A text, token ids `[tokens]` or `[prompts, tokens]`, a list of texts or of ids `[tokens]`, or
            `TokenizedPrompts`.
        argument: Name of the argument for errors.

    Returns:
        The prompts, on the model's device.

    Raises:
        PromptError: There is no prompt, an empty one or something else than prompts, or a tensor of ids is padded
            on the right or with a token that is also the beginning or end of a sequence.
        ContextLengthError: A text has more tokens than the model takes.

    Example:
        >>> read_prompts(None, [torch.tensor([4, 5]), torch.tensor([6])]).lengths
        (2, 1)
    """
    if isinstance(input, PromptBatch):
        return input
    if isinstance(input, Tensor):
        rows = _rows_of_tensor(model, input, argument)
    elif isinstance(input, TokenizedPrompts):
        rows = [ids[:length] for ids, length in zip(input.input_ids, input.lengths.tolist(), strict=True)]
    else:
        single = isinstance(input, str) or not isinstance(input, Sequence)
        rows = [_row(model, prompt, argument) for prompt in ([input] if single else input)]
    lengths = tuple(len(row) for row in rows)
    if 0 in (len(rows), *lengths):
        raise PromptError(
            argument,
            f"{len(rows)} prompts of {list(lengths)} tokens",
            expected="prompts of at least one token",
            remedy="Leave out empty prompts.",
        )
    padded = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    return PromptBatch(padded.to(model_device(model)), lengths)


def check_causal(model: HookedModel, prompts: PromptBatch) -> None:
    """Refuse prompts of different lengths for a model that would see their padding.

    Args:
        model: The language model.
        prompts: The prompts.

    Raises:
        PromptError: Lengths differ and the model attends to both sides.

    Example:
        >>> check_causal(None, PromptBatch(torch.tensor([[5, 6, 7], [8, 9, 0]]), (3, 2)))
    """
    config = getattr(getattr(model, "original_model", None), "config", None)
    both_sides = (
        getattr(getattr(model, "cfg", None), "attention_dir", "causal") != "causal"
        or getattr(config, "use_bidirectional_attention", False)
        or getattr(config, "is_encoder_decoder", False)
    )
    if both_sides and not prompts.is_even:
        raise PromptError(
            "input",
            f"prompts of {list(prompts.lengths)} tokens",
            expected="prompts of one length, since the model attends to both sides",
            remedy="Hand in one prompt per call.",
        )


def _row(model: Any, prompt: Any, argument: str) -> Tensor:
    if isinstance(prompt, str):
        token_ids = model.to_tokens(prompt, truncate=False)[0]
        if len(token_ids) > context_length(model):
            raise ContextLengthError(
                argument,
                f"a text of {len(token_ids)} tokens",
                expected=f"at most {context_length(model)}",
                remedy="Shorten the prompt, or take fewer ICL examples.",
            )
        return token_ids
    if isinstance(prompt, Tensor) and prompt.ndim == 1 and not prompt.is_floating_point():
        return prompt
    raise _no_prompt(prompt, argument)


def _rows_of_tensor(model: HookedModel, token_ids: Tensor, argument: str) -> list[Tensor]:
    token_ids = torch.atleast_2d(token_ids)
    if token_ids.ndim != 2 or token_ids.is_floating_point():
        raise _no_prompt(token_ids, argument)
    tokenizer = getattr(model, "tokenizer", None)
    pad = getattr(tokenizer, "pad_token_id", None)
    if pad is None:
        return list(token_ids)
    is_pad = (token_ids == pad).long()
    leading, trailing = (part.cumprod(dim=1).sum(dim=1).tolist() for part in (is_pad, is_pad.flip(1)))
    is_shared = pad in (getattr(tokenizer, "bos_token_id", None), getattr(tokenizer, "eos_token_id", None))
    if any(trailing) or (is_shared and (len(set(leading)) > 1 or max(leading, default=0) > 1)):
        where = "ends in" if any(trailing) else "begins with several or differently many of"
        raise PromptError(
            argument,
            f"a tensor that {where} the pad token {pad}",
            expected="ids without padding, or padded on the left with a token that is nothing else",
            remedy="Hand in texts, or a list of ids [tokens] without padding.",
        )
    return [row if is_shared else row[start:] for row, start in zip(token_ids, leading, strict=True)]


def _no_prompt(given: Any, argument: str) -> PromptError:
    return PromptError(
        argument,
        given,
        expected="a text, token ids [tokens] or [prompts, tokens], or a list of texts or of ids [tokens]",
        remedy="Hand in one of these.",
    )
