"""Attention over a prefix that many runs share and over each run's own tokens, without copying the prefix.

Registered with transformers' `AttentionInterface`, so that Hugging Face's own modules project, rotate and normalise and
only the weighted sum is ours. Shapes: w prefixes, r runs, h query heads, k key/value heads, g = h / k, p prefix
tokens, s a run's own tokens, d head width.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AttentionInterface

PREFIX_ATTENTION = "absorb_pl_prefix"


@dataclass
class PrefixStates:
    """Keys and values of prefixes of equal length, by number of the layer.

    Attributes:
        keys: `[prefixes, key/value heads, tokens, d_head]`, as they enter the dot product.
        values: The same of the values.
    """

    keys: dict[int, Tensor] = field(default_factory=dict)
    values: dict[int, Tensor] = field(default_factory=dict)


class PrefixComplete(Exception):
    """Ends the run of a prefix: the last layer's keys and values are in."""


@dataclass(frozen=True)
class AttentionRun:
    """What the attention of a run reads or keeps.

    Attributes:
        states: Filled when a prefix is run, read when what follows it is.
        keep_until: Last layer whose keys and values are to be kept; None when `states` are read.
        width: Number of tokens of the prefixes.
        prefixes: Which of the prefixes are read.
        runs_of: How many runs in a row belong to each of them.
    """

    states: PrefixStates
    keep_until: int | None = None
    width: int = 0
    prefixes: slice | Tensor = field(default_factory=lambda: slice(None))
    runs_of: tuple[int, ...] = ()


_RUN: ContextVar[AttentionRun | None] = ContextVar("run", default=None)


@contextmanager
def attention_run(run: AttentionRun) -> Iterator[None]:
    """Let attention read or keep prefix states inside a `with` block.

    Args:
        run: What it reads or keeps.
    """
    token = _RUN.set(run)
    try:
        yield
    finally:
        _RUN.reset(token)


def prefix_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention as transformers asks for it, with the prefix of the current `attention_run` before it.

    Masks are made here: transformers makes none for an attention that registers none.

    Args:
        module: The attention module; its `layer_idx` says which states belong to it.
        query: `[runs, heads, tokens, d_head]`.
        key: `[runs, key/value heads, tokens, d_head]`.
        value: The same of the values.
        attention_mask: None.
        scaling: Factor of the dot products; 1 / √d_head if not given.
        softcap: Bound of the dot products, by tanh.
        sliding_window: How far back a token looks, itself included; as far as there is if not given.

    Returns:
        `[runs, tokens, heads, d_head]`, and no attention pattern.

    Raises:
        PrefixComplete: The states of the last layer are kept.
    """
    del attention_mask
    run = _RUN.get()
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    states = None
    if run is not None and run.keep_until is not None:
        run.states.keys[module.layer_idx], run.states.values[module.layer_idx] = key, value
        if module.layer_idx == run.keep_until:
            raise PrefixComplete
    elif run is not None and module.layer_idx in run.states.keys:
        kept = run.states.keys[module.layer_idx], run.states.values[module.layer_idx]
        prefixes = run.prefixes if isinstance(run.prefixes, slice) else run.prefixes.to(key.device)
        states = kept[0][prefixes], kept[1][prefixes]
    if states is None and softcap is None:
        mask = None if sliding_window is None else visible(key.shape[2], 0, sliding_window, query)
        attended = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, mask, is_causal=mask is None, scale=scale, enable_gqa=query.shape[1] != key.shape[1]
        )
    elif states is None:
        attended = attend(query, key, value, scaling=scale, softcap=softcap, sliding_window=sliding_window)
    else:
        assert run is not None
        attended = attend_after_prefix(
            query, key, value, *states, run.runs_of, scaling=scale, softcap=softcap, sliding_window=sliding_window
        )
    return attended.transpose(1, 2), None


def attend_after_prefix(
    query: Float[Tensor, "runs heads tokens d_head"],
    key: Float[Tensor, "runs kv_heads tokens d_head"],
    value: Float[Tensor, "runs kv_heads tokens d_head"],
    prefix_key: Float[Tensor, "prefixes kv_heads before d_head"],
    prefix_value: Float[Tensor, "prefixes kv_heads before d_head"],
    runs_of: Sequence[int],
    *,
    scaling: float,
    softcap: float | None = None,
    sliding_window: int | None = None,
) -> Float[Tensor, "runs heads tokens d_head"]:
    """Attention of tokens to the prefix before them and, causally, to one another.

    softmax over [q · prefix keys, q · own keys], with the runs of a prefix side by side as further rows of one matrix
    product, so that a prefix's keys are read once however many runs follow it.

    Args:
        query: Queries.
        key: Keys of the runs' own tokens.
        value: Their values.
        prefix_key: Keys of the prefixes.
        prefix_value: Their values.
        runs_of: How many runs in a row belong to each prefix.
        scaling: Factor of the dot products.
        softcap: Bound of the dot products, by tanh.
        sliding_window: How far back a token looks, itself included.

    Returns:
        The weighted sums of values.

    Example:
        >>> query, key, value = torch.randn(3, 4, 2, 2, 8, generator=torch.Generator().manual_seed(0)).unbind()
        >>> before = torch.randn(1, 2, 5, 8, generator=torch.Generator().manual_seed(1))
        >>> attend_after_prefix(query, key, value, before, before, [4], scaling=1.0).shape
        torch.Size([4, 2, 2, 8])
    """
    rows, heads, tokens, _ = query.shape
    before = prefix_key.shape[2]
    rows_q = _by_prefix(_fold_heads(query, key.shape[1]), runs_of)
    own_scores = _by_prefix(_fold_heads(query, key.shape[1]) @ key.transpose(2, 3), runs_of)
    products = torch.cat([rows_q @ prefix_key.transpose(2, 3), own_scores], dim=-1) * scaling
    weights = _causal_weights(products, tokens, softcap, sliding_window)
    attended = _from_prefix(weights[..., :before] @ prefix_value, runs_of, rows)
    own = _from_prefix(weights[..., before:], runs_of, rows) @ value
    return (attended + own).reshape(rows, heads, tokens, -1)


def attend(
    query: Float[Tensor, "runs heads tokens d_head"],
    key: Float[Tensor, "runs kv_heads tokens d_head"],
    value: Float[Tensor, "runs kv_heads tokens d_head"],
    *,
    scaling: float,
    softcap: float | None,
    sliding_window: int | None,
) -> Float[Tensor, "runs heads tokens d_head"]:
    """Causal attention of tokens to one another, with dot products bounded by tanh.

    Args and results are those of `attend_after_prefix`, without a prefix.
    """
    products = _fold_heads(query, key.shape[1]) @ key.transpose(2, 3) * scaling
    weights = _causal_weights(products, query.shape[2], softcap, sliding_window)
    return (weights @ value).reshape(query.shape)


def visible(tokens: int, before: int, sliding_window: int | None, like: Tensor) -> Tensor:
    """Which of `before` earlier tokens and `tokens` own ones each own token sees, `[tokens, before + tokens]`.

    Args:
        tokens: Number of own tokens.
        before: Number of tokens before them.
        sliding_window: How far back a token looks, itself included; as far as there is if None.
        like: A tensor on the device wanted.

    Example:
        >>> visible(2, 2, 2, torch.zeros(0)).int()
        tensor([[0, 1, 1, 0],
                [0, 0, 1, 1]], dtype=torch.int32)
    """
    place = torch.arange(before + tokens, device=like.device)
    distance = place[before:, None] - place
    seen = distance >= 0
    return seen if sliding_window is None else seen & (distance < sliding_window)


def _causal_weights(products: Tensor, tokens: int, softcap: float | None, sliding_window: int | None) -> Tensor:
    """Attention weights of scaled dot products `[..., rows · tokens, before + tokens]`, softmax in float32 at least."""
    if softcap is not None:
        products = softcap * torch.tanh(products / softcap)
    seen = visible(tokens, products.shape[-1] - tokens, sliding_window, products)
    hidden = products.unflatten(-2, (-1, tokens)).masked_fill(~seen, -torch.inf).flatten(-3, -2)
    return hidden.softmax(dim=-1, dtype=torch.promote_types(hidden.dtype, torch.float32)).to(products.dtype)


def _fold_heads(query: Tensor, kv_heads: int) -> Tensor:
    """`[r, h, s, d]` to `[r, k, g·s, d]`: heads that share keys become rows of one matrix."""
    return query.unflatten(1, (kv_heads, -1)).flatten(2, 3)


def _by_prefix(rows: Tensor, runs_of: Sequence[int]) -> Tensor:
    """`[r, k, m, n]` to `[w, k, most runs · m, n]`: the runs of a prefix side by side, padded with zeros."""
    if len(set(runs_of)) == 1:
        grouped = rows.unflatten(0, (len(runs_of), runs_of[0]))
    else:
        grouped = pad_sequence(list(rows.split(list(runs_of))), batch_first=True)
    return grouped.transpose(1, 2).flatten(2, 3)


def _from_prefix(grouped: Tensor, runs_of: Sequence[int], rows: int) -> Tensor:
    """The way back from `_by_prefix`."""
    most = max(runs_of)
    apart = grouped.unflatten(2, (most, -1)).transpose(1, 2)
    if len(set(runs_of)) > 1:
        counts = torch.tensor(runs_of, device=grouped.device)
        return apart[torch.arange(most, device=grouped.device) < counts[:, None]]
    return apart.reshape(rows, *apart.shape[2:])


AttentionInterface.register(PREFIX_ATTENTION, prefix_attention)
