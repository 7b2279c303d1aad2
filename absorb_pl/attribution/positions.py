"""Positions that users give, counted from either end, in prompts of different lengths."""

from collections.abc import Sequence
from typing import Any

from absorb_pl.errors import PromptError
from absorb_pl.models.prompt_batch import PromptBatch

PatchIndices = int | tuple[int, int] | Sequence[int | tuple[int, int]]
"""Positions to patch: one, several, or pairs (clean position, corrupted position)."""


def resolve_position(argument: str, position: int, length: int, prompt: int | None = None) -> int:
    """Count a position from the first token.

    Args:
        argument: Name of the argument it came in.
        position: The position, from the end if negative.
        length: Number of tokens.
        prompt: Which of several prompts this is, for the error.

    Returns:
        The position, at least 0.

    Raises:
        PromptError: It is outside the prompt.

    Example:
        >>> resolve_position("patch_indices", -1, 5)
        4
    """
    if not -length <= position < length:
        which = "a prompt" if prompt is None else f"prompt {prompt}"
        raise PromptError(
            argument,
            position,
            expected=f"a position in {which} of {length} tokens",
            remedy=f"Use {-length} to {length - 1}.",
        )
    return position % length


def patch_columns(
    indices: PatchIndices | None, clean: PromptBatch, corrupted: PromptBatch | None
) -> tuple[list[int], list[int], list[int]]:
    """Find the patched positions of every prompt once the prompts' ends share a column.

    Args:
        indices: Positions, the same for every prompt, from its own end if negative; all if not given.
        clean: The prompts to patch.
        corrupted: The prompts that they are patched from, if any.

    Returns:
        Prompt, column in the clean and column in the corrupted batch of each patched position.

    Raises:
        PromptError: A position is outside its prompt, or no positions are given and the two prompts differ in length.

    Example:
        >>> import torch
        >>> batch = PromptBatch(torch.tensor([[5, 6, 7], [8, 9, 0]]), (3, 2))
        >>> patch_columns([0, (-1, 0)], batch, None)
        ([0, 0, 1, 1], [0, 2, 1, 2], [0, 0, 1, 1])
    """
    ends = clean if corrupted is None else corrupted
    rows, columns, end_columns = [], [], []
    for row, (length, end_length) in enumerate(zip(clean.lengths, ends.lengths, strict=True)):
        prompt = row if len(clean) > 1 else None
        for start, end in _pairs(indices, length, end_length, prompt):
            rows.append(row)
            columns.append(clean.width - length + resolve_position("patch_indices", start, length, prompt))
            end_columns.append(ends.width - end_length + resolve_position("patch_indices", end, end_length, prompt))
    return rows, columns, end_columns


def _pairs(indices: PatchIndices | None, length: int, end_length: int, prompt: int | None) -> list[tuple[int, int]]:
    if indices is None:
        if length != end_length:
            which = "the prompts have" if prompt is None else f"the two of prompt {prompt} have"
            raise PromptError(
                "patch_indices",
                None,
                expected=f"positions, since {which} {length} and {end_length} tokens",
                remedy="Pair positions of the two prompts: [(clean, corrupted), …].",
            )
        return [(position, position) for position in range(length)]
    given: Any = indices
    listed = [given] if _is_pair(given) or not isinstance(given, Sequence) else list(given)
    pairs = [index if _is_pair(index) else (index, index) for index in listed]
    return [(int(start), int(end)) for start, end in pairs]


def _is_pair(index: Any) -> bool:
    return isinstance(index, tuple) and len(index) == 2
