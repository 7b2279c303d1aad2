"""Prefixes of prompts: run what comes before a word once, and only the word and what follows for every change.

Between the steps of an integrated gradient, or from one ablated latent to the next, only the activation at
the word's position changes. In a causal model the tokens before it are not touched, so their keys and values
are computed once and kept; every (word, step) or (word, latent) pair then runs the few tokens from the word on.
A model without a cache that can be shared in this way runs whole sequences through the same code, with the
same results.
"""

import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from absorb_pl.attribution.gradients import at_least_float32
from absorb_pl.errors import AbsorbError, PromptError
from absorb_pl.models.language_model import check_hook
from absorb_pl.models.splice import FwdHook
from absorb_pl.words import TokenizedPrompts

Engine = Literal["auto", "suffix", "whole"]


@dataclass(frozen=True)
class PrefixBucket:
    """Prompts with equally many tokens before the word and equally many from the word on.

    Attributes:
        rows: Which prompts these are.
        token_ids: Tokens still to be run: from the word on, or all of them.
        index: Where the word is in `token_ids`.
        cache: Keys and values of the distinct prefixes; none when nothing comes before `token_ids`.
        cache_rows: Which entry of `cache` belongs to each prompt.
        activations: Clean activations at the word, by hook name, `[rows, d_model]`.
    """

    rows: Int[Tensor, " rows"]
    token_ids: Int[Tensor, "rows tokens"]
    index: int
    cache: DynamicCache | None
    cache_rows: Int[Tensor, " rows"]
    activations: dict[str, Tensor]


@dataclass(frozen=True)
class WordPrefix:
    """What the runs of a set of prompts share: prefix caches and clean activations at the words.

    Attributes:
        buckets: Prompts grouped by the lengths of prefix and suffix.
        hook_names: Hooks whose activations are held.
        engine: Whether prefixes are cached (`"suffix"`) or whole sequences are run (`"whole"`).
    """

    buckets: tuple[PrefixBucket, ...]
    hook_names: tuple[str, ...]
    engine: Literal["suffix", "whole"]


def compute_prefix(
    model: Any,
    prompts: TokenizedPrompts,
    hook_names: Sequence[str],
    *,
    rows: Sequence[int] | None = None,
    engine: Engine = "auto",
    batch_size: int = 64,
) -> WordPrefix:
    """Run what comes before each word once, and read the clean activations at the words.

    Prompts that begin with the same tokens share one run and one cache entry, so with one in-context prefix
    for all words that prefix is run once. The caches of all prompts asked for are held together, about
    `2 × layers × prefix tokens × key/value width` numbers a distinct prefix: ask for thousands of prompts in
    portions.

    Args:
        model: The language model.
        prompts: Prompts and the positions of their words.
        hook_names: Hooks to read at the word; SAEs on any of them can be scored from the result.
        rows: Indices of the prompts to prepare, all of them if not given.
        engine: `"suffix"` insists on key/value caches, `"whole"` does without, `"auto"` takes caches if the
            model has them and they reproduce its output on one of the prompts.
        batch_size: Most sequences in one run of the model.

    Returns:
        The prefix caches and clean activations.

    Raises:
        HookNotFoundError: The model lacks one of the hooks.
        PromptError: A word's position is outside its prompt, or `rows` names no prompt.
        AbsorbError: `engine="suffix"` with a model whose cache cannot be shared.

    Example:
        >>> def example(model, prompts, sae_at_1, sae_at_2, metric):
        ...     hooks = ["blocks.1.hook_resid_post", "blocks.2.hook_resid_post"]
        ...     prefix = compute_prefix(model, prompts, hooks)
        ...     return [
        ...         word_integrated_gradients(model, sae, prompts, metric, hook_name=hook, prefix=prefix)
        ...         for hook, sae in zip(hooks, [sae_at_1, sae_at_2])
        ...     ]
    """
    for name in hook_names:
        check_hook(model, name)
    chosen = _chosen_rows(prompts, rows)
    device = _device(model)
    ids, lengths, positions = (
        tensor.to(device) for tensor in (prompts.input_ids, prompts.lengths, prompts.word_positions)
    )
    chosen = chosen.to(device)
    with torch.no_grad():
        used = _choose_engine(model, ids, lengths, positions, chosen, engine)
        buckets = []
        for length in positions[chosen].unique().tolist():
            members = chosen[positions[chosen] == length]
            for cache, inside, cache_rows in _prefix_caches(model, ids[members, :length], used, batch_size):
                kept = members[inside]
                for total in lengths[kept].unique().tolist():
                    same = lengths[kept] == total
                    start = 0 if cache is None else length
                    bucket = PrefixBucket(
                        rows=kept[same],
                        token_ids=ids[kept[same], start:total],
                        index=length - start,
                        cache=cache,
                        cache_rows=cache_rows[same],
                        activations={},
                    )
                    bucket.activations.update(_clean_activations(model, bucket, hook_names, batch_size))
                    buckets.append(bucket)
    return WordPrefix(tuple(buckets), tuple(hook_names), used)


def bucket_logits(
    model: Any,
    bucket: PrefixBucket,
    members: Int[Tensor, " runs"],
    *,
    fwd_hooks: Sequence[FwdHook] = (),
    last_only: bool = True,
) -> Float[Tensor, "runs tokens vocab"]:
    """Run prompts of a bucket and give their logits in float32 or better.

    Args:
        model: The language model.
        bucket: The bucket.
        members: Places in the bucket, repeated as often as there are runs of a prompt.
        fwd_hooks: Hooks to attach; they see the tokens of `bucket.token_ids` only.
        last_only: Give the last position alone, rather than all of `bucket.token_ids`.

    Returns:
        Logits; `tokens` is 1 with `last_only`.

    Example:
        >>> def example(model, prefix):
        ...     bucket = prefix.buckets[0]
        ...     return bucket_logits(model, bucket, torch.arange(len(bucket.rows)))
    """
    cache = None if bucket.cache is None else _select_cache(bucket.cache, bucket.cache_rows[members])
    with model.hooks(fwd_hooks=list(fwd_hooks)):
        return at_least_float32(_forward(model, bucket.token_ids[members], cache, last_only))


def replace_at(index: int, values: Float[Tensor, "runs ..."]) -> Callable[..., Tensor]:
    """A forward hook that puts other activations at one position and lets gradients reach them.

    Args:
        index: The position.
        values: What to put there, one row a run.

    Returns:
        The hook function.

    Example:
        >>> hook = replace_at(1, torch.tensor([[7.0]]))
        >>> hook(torch.zeros(1, 3, 1)).flatten()
        tensor([0., 7., 0.])
    """

    def hook_fn(activation: Tensor, **_: Any) -> Tensor:
        middle = values.unsqueeze(1).to(activation.dtype)
        return torch.cat([activation[:, :index], middle, activation[:, index + 1 :]], dim=1)

    return hook_fn


def _hf_model(model: Any) -> Any | None:
    return getattr(model, "original_model", None)


def _device(model: Any) -> torch.device:
    module = _hf_model(model) or model
    return next(module.parameters()).device if isinstance(module, nn.Module) else torch.device("cpu")


def _forward(model: Any, token_ids: Tensor, cache: DynamicCache | None, last_only: bool = True) -> Tensor:
    kept = slice(-1, None) if last_only else slice(None)
    hf_model = _hf_model(model)
    if hf_model is None:
        return model(token_ids)[:, kept]
    accepted = inspect.signature(hf_model.forward).parameters
    options = {"logits_to_keep": int(last_only), "use_cache": cache is not None}
    options = {name: value for name, value in options.items() if name in accepted}
    if cache is not None:
        options["past_key_values"] = cache
    return hf_model(token_ids, **options).logits[:, kept]


def _select_cache(cache: DynamicCache, rows: Tensor) -> DynamicCache:
    chosen = copy.copy(cache)
    chosen.layers = [copy.copy(layer) for layer in cache.layers]
    chosen.batch_select_indices(rows)
    return chosen


def _prefix_cache(model: Any, prefix_ids: Tensor) -> DynamicCache | None:
    """Keys and values of prefixes, or nothing when the model has none that can be shared."""
    hf_model = _hf_model(model)
    if hf_model is None:
        return None
    config = getattr(hf_model, "config", None)
    accepted = inspect.signature(hf_model.forward).parameters
    if not {"past_key_values", "use_cache"} <= set(accepted):
        return None
    if getattr(config, "is_encoder_decoder", False) or getattr(config, "use_bidirectional_attention", False):
        return None
    options = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
    cache = getattr(hf_model(prefix_ids, use_cache=True, **options), "past_key_values", None)
    plain = (DynamicLayer, DynamicSlidingWindowLayer)
    if not isinstance(cache, DynamicCache) or any(type(layer) not in plain for layer in cache.layers):
        return None
    return cache if cache.get_seq_length() == prefix_ids.shape[1] else None


def _prefix_caches(
    model: Any, prefix_ids: Tensor, engine: str, batch_size: int
) -> Iterator[tuple[DynamicCache | None, Tensor, Tensor]]:
    """Yield (cache, places of the prompts that use it, their entries in it) for prefixes of one length."""
    everyone = torch.arange(len(prefix_ids), device=prefix_ids.device)
    if engine == "whole" or prefix_ids.shape[1] == 0:
        yield None, everyone, everyone
        return
    distinct, entry = prefix_ids.unique(dim=0, return_inverse=True)
    for start in range(0, len(distinct), batch_size):
        portion = distinct[start : start + batch_size]
        inside = everyone[(entry >= start) & (entry < start + len(portion))]
        yield _prefix_cache(model, portion), inside, entry[inside] - start


def _clean_activations(
    model: Any, bucket: PrefixBucket, hook_names: Sequence[str], batch_size: int
) -> dict[str, Tensor]:
    found: dict[str, list[Tensor]] = {name: [] for name in hook_names}

    def reader(name: str) -> Callable[..., None]:
        def read(activation: Tensor, **_: Any) -> None:
            found[name].append(activation[:, bucket.index].detach().clone())

        return read

    everyone = torch.arange(len(bucket.rows), device=bucket.rows.device)
    for members in everyone.split(batch_size):
        bucket_logits(model, bucket, members, fwd_hooks=[(name, reader(name)) for name in hook_names])
    return {name: torch.cat(parts) for name, parts in found.items()}


def _choose_engine(
    model: Any, ids: Tensor, lengths: Tensor, positions: Tensor, chosen: Tensor, engine: Engine
) -> Literal["suffix", "whole"]:
    if engine == "whole" or len(chosen) == 0:
        return "whole"
    first = chosen[positions[chosen].argmax()]
    length, total = int(positions[first]), int(lengths[first])
    if length == 0:
        return "suffix"
    row = ids[first : first + 1, :total]
    cache = _prefix_cache(model, row[:, :length])
    if cache is not None and (engine == "suffix" or _reproduces(model, cache, row, length)):
        return "suffix"
    if engine == "suffix":
        raise AbsorbError(
            "engine",
            engine,
            expected="a model with a key/value cache",
            remedy='Leave `engine` at "auto", or say "whole".',
        )
    return "whole"


def _reproduces(model: Any, cache: DynamicCache, row: Tensor, length: int) -> bool:
    """Whether the model reads its cache: some architectures accept one and pass over it."""
    cached = _forward(model, row[:, length:], _select_cache(cache, torch.zeros(1, dtype=torch.long, device=row.device)))
    whole = _forward(model, row, None)[:, -1]
    tolerance = torch.finfo(whole.dtype).eps ** 0.5 * whole.abs().max()
    return bool((cached[:, -1] - whole).abs().max() <= tolerance)


def _chosen_rows(prompts: TokenizedPrompts, rows: Sequence[int] | None) -> Tensor:
    count = len(prompts.input_ids)
    bad = ((prompts.word_positions < 0) | (prompts.word_positions >= prompts.lengths)).nonzero().flatten()
    if len(bad):
        row = int(bad[0])
        raise PromptError(
            "prompts.word_positions",
            int(prompts.word_positions[row]),
            expected=f"a position inside prompt {row} of {int(prompts.lengths[row])} tokens",
            remedy="Count positions from the first token, 0.",
        )
    if rows is None:
        return torch.arange(count)
    chosen = torch.tensor(list(rows), dtype=torch.long)
    outside = chosen[(chosen < 0) | (chosen >= count)]
    if len(outside):
        raise PromptError(
            "rows", int(outside[0]), expected=f"indices of {count} prompts", remedy="Count prompts from 0."
        )
    return chosen.unique()
