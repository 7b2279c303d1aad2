"""Prefixes of prompts: run what comes before a word once, and only the word and what follows for every change.

Between the steps of an integrated gradient, or from one ablated latent to the next, only the activation at
the word's position changes. In a causal model the tokens before it are not touched, so their keys and values
are computed once and kept, and the blocks below the change need no second run; every (word, step) or (word, latent)
pair then runs the few tokens from the word on through the blocks after the hook (see `engine.bare`). A model that
cannot be run in this way runs whole sequences through the same code, with the same results.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from absorb_pl.engine.bare import AttentionRun, BareModel, PrefixStates, Site, bare_model, put_at
from absorb_pl.errors import AbsorbError, HookNotFoundError, PromptError
from absorb_pl.functional.precision import at_least_float32
from absorb_pl.matrix_products import fast_products
from absorb_pl.models.hooked_model import HookedModel
from absorb_pl.models.language_model import check_hook
from absorb_pl.models.placement import model_device
from absorb_pl.ranges import Count, check_ranges
from absorb_pl.words.positions import TokenizedPrompts

Engine = Literal["auto", "suffix", "whole"]


@dataclass(frozen=True)
class SharedPrefix:
    """What the runs of a bucket start from.

    Attributes:
        bare: The model without its hooks.
        states: Keys and values of the distinct prefixes.
        width: Number of their tokens.
        entries: Which of the prefixes belongs to each prompt.
        sites: Where the hooks are in the bare model.
        residuals: What enters the block of each site, `[rows, tokens, d_model]`, by block.
    """

    bare: BareModel
    states: PrefixStates
    width: int
    entries: Int[Tensor, " rows"]
    sites: dict[str, Site]
    residuals: dict[int, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class PrefixBucket:
    """Prompts with equally many tokens before the word and equally many from the word on.

    Attributes:
        rows: Which prompts these are.
        token_ids: Tokens still to be run: from the word on, or all of them.
        index: Where the word is in `token_ids`.
        shared: What is kept of the tokens before and the blocks below; None if whole sequences are run.
        activations: Clean activations at the word, by hook name, `[rows, d_model]`.
    """

    rows: Int[Tensor, " rows"]
    token_ids: Int[Tensor, "rows tokens"]
    index: int
    shared: SharedPrefix | None
    activations: dict[str, Tensor]


@dataclass(frozen=True)
class WordPrefix:
    """What the runs of a set of prompts share: prefix states and clean activations at the words.

    Attributes:
        buckets: Prompts grouped by the lengths of prefix and suffix.
        hook_names: Hooks whose activations are held.
        engine: Whether prefixes are kept (`"suffix"`) or whole sequences are run (`"whole"`).
    """

    buckets: tuple[PrefixBucket, ...]
    hook_names: tuple[str, ...]
    engine: Literal["suffix", "whole"]


@fast_products()
def compute_prefix(
    model: HookedModel,
    prompts: TokenizedPrompts,
    hook_names: Sequence[str],
    *,
    rows: Sequence[int] | None = None,
    engine: Engine = "auto",
    batch_size: Count = 64,
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
        engine: `"suffix"` insists on running suffixes alone, `"whole"` runs whole sequences, `"auto"` takes suffixes
            where that was seen to give the model's own output on one of the prompts.
        batch_size: Most sequences in one run of the model.

    Returns:
        The prefix caches and clean activations.

    Raises:
        HookNotFoundError: The model lacks one of the hooks.
        PromptError: A word's position is outside its prompt, or `rows` names no prompt.
        AbsorbError: `engine="suffix"` with a model that cannot be run in this way.

    Example:
        >>> from absorb_pl import load_language_model
        >>> model = load_language_model("speller")
        >>> from absorb_pl.words import SpellingPrompt, tokenize_prompts
        >>> texts = [SpellingPrompt(" cat:", " C", " cat", 4), SpellingPrompt(" dog:", " D", " dog", 4)]
        >>> prompts = tokenize_prompts(model.tokenizer, texts, prepend_bos=True)
        >>> prefix = compute_prefix(model, prompts, ["blocks.1.hook_resid_post", "blocks.2.hook_resid_post"])
        >>> prefix.engine, prefix.buckets[0].activations["blocks.2.hook_resid_post"].shape
        ('suffix', torch.Size([2, 128]))
    """
    check_ranges(compute_prefix, locals())
    for name in hook_names:
        check_hook(model, name)
    chosen = _chosen_rows(prompts, rows)
    device = model_device(model)
    ids, lengths, positions = (
        tensor.to(device) for tensor in (prompts.input_ids, prompts.lengths, prompts.word_positions)
    )
    chosen = chosen.to(device)
    bare, sites = _choose_engine(model, hook_names, ids, lengths, positions, chosen, engine)
    buckets = []
    for length in positions[chosen].unique().tolist():
        members = chosen[positions[chosen] == length]
        for inside, shared in _shared_prefixes(bare, sites, ids[members, :length], batch_size):
            kept = members[inside]
            for total in lengths[kept].unique().tolist():
                same = lengths[kept] == total
                rows_here = kept[same]
                if shared is None:
                    buckets.append(
                        _whole_bucket(model, hook_names, rows_here, ids[rows_here, :total], length, batch_size)
                    )
                else:
                    part = replace(shared, entries=shared.entries[same])
                    buckets.append(_suffix_bucket(part, rows_here, ids[rows_here, length:total], batch_size))
    return WordPrefix(tuple(buckets), tuple(hook_names), "whole" if bare is None else "suffix")


def bucket_logits(
    model: HookedModel,
    bucket: PrefixBucket,
    members: Int[Tensor, " runs"],
    hook_name: str,
    values: Float[Tensor, "runs ..."],
    *,
    last_only: bool = True,
) -> Float[Tensor, "runs tokens vocab"]:
    """Run prompts of a bucket and give their logits in float32 or better.

    Args:
        model: The language model.
        bucket: The bucket.
        members: Places in the bucket, repeated as often as there are runs of a prompt.
        hook_name: One of the bucket's hooks.
        values: The activation to put there at the word, one per run; gradients reach it. The bucket's
            own activations change nothing.
        last_only: Give the last position alone, rather than all of `bucket.token_ids`.

    Returns:
        Logits; `tokens` is 1 with `last_only`.

    Example:
        >>> from absorb_pl import load_language_model
        >>> model = load_language_model("speller")
        >>> from absorb_pl.words import SpellingPrompt, tokenize_prompts
        >>> texts = [SpellingPrompt(" cat:", " C", " cat", 4), SpellingPrompt(" dog:", " D", " dog", 4)]
        >>> prompts = tokenize_prompts(model.tokenizer, texts, prepend_bos=True)
        >>> hook = "blocks.1.hook_resid_post"
        >>> bucket = compute_prefix(model, prompts, [hook]).buckets[0]
        >>> bucket_logits(model, bucket, torch.arange(2), hook, bucket.activations[hook]).shape
        torch.Size([2, 1, 4750])
    """
    shared = bucket.shared
    if shared is None:
        with model.hooks(fwd_hooks=[(hook_name, replace_at(bucket.index, values))]):
            logits = _forward(model, bucket.token_ids[members])
            return at_least_float32(logits[:, -1:] if last_only else logits)
    order, run = _in_prefix_order(shared, members)
    site = shared.sites[hook_name]
    logits = shared.bare.logits(
        bucket.token_ids[members[order]],
        run,
        site,
        shared.residuals[site.block][members[order]],
        values[order],
        bucket.index,
        last_only=last_only,
    )
    return at_least_float32(logits)[order.argsort()]


def _in_prefix_order(shared: SharedPrefix, members: Tensor) -> tuple[Tensor, AttentionRun]:
    """The order that brings the runs of a prefix side by side, and what their attention reads."""
    entries = shared.entries[members]
    order = entries.argsort(stable=True)
    prefixes, runs_of = entries[order].unique_consecutive(return_counts=True)
    first, last = int(prefixes[0]), int(prefixes[-1])
    everything = last - first + 1 == len(prefixes)
    return order, AttentionRun(
        shared.states,
        width=shared.width,
        prefixes=slice(first, last + 1) if everything else prefixes,
        runs_of=tuple(runs_of.tolist()),
    )


def replace_at(index: int, values: Float[Tensor, "runs ..."]) -> Callable[..., Tensor]:
    """A forward hook that puts other activations at one position and lets gradients reach them.

    Args:
        index: The position.
        values: What to put there, one row per run.

    Returns:
        The hook function.

    Example:
        >>> hook = replace_at(1, torch.tensor([[7.0]]))
        >>> hook(torch.zeros(1, 3, 1)).flatten()
        tensor([0., 7., 0.])
    """

    def hook_fn(activation: Tensor, **_: Any) -> Tensor:
        return put_at(activation, index, values)

    return hook_fn


def _hf_model(model: HookedModel) -> Any | None:
    return getattr(model, "original_model", None)


def _forward(model: HookedModel, token_ids: Tensor) -> Tensor:
    hf_model = _hf_model(model)
    return model(token_ids) if hf_model is None else hf_model(token_ids).logits


def _shared_prefixes(
    bare: BareModel | None, sites: dict[str, Site], prefix_ids: Tensor, batch_size: int
) -> Iterator[tuple[Tensor, SharedPrefix | None]]:
    """Yield (places of some prompts, what they share) for prefixes of one length."""
    everyone = torch.arange(len(prefix_ids), device=prefix_ids.device)
    if bare is None:
        yield everyone, None
        return
    width = prefix_ids.shape[1]
    if width == 0:
        yield everyone, SharedPrefix(bare, PrefixStates(), 0, torch.zeros_like(everyone), sites)
        return
    distinct, entry = prefix_ids.unique(dim=0, return_inverse=True)
    for start in range(0, len(distinct), batch_size):
        portion = distinct[start : start + batch_size]
        inside = everyone[(entry >= start) & (entry < start + len(portion))]
        yield inside, SharedPrefix(bare, bare.prefix_states(portion), width, entry[inside] - start, sites)


def _suffix_bucket(shared: SharedPrefix, rows: Tensor, token_ids: Tensor, batch_size: int) -> PrefixBucket:
    residuals: dict[int, list[Tensor]] = defaultdict(list)
    activations: dict[Site, list[Tensor]] = defaultdict(list)
    for members in torch.arange(len(rows), device=rows.device).split(batch_size):
        order, run = _in_prefix_order(shared, members)
        entering, read = shared.bare.read(token_ids[members[order]], run, list(shared.sites.values()))
        for block, residual in entering.items():
            residuals[block].append(residual[order.argsort()])
        for site, activation in read.items():
            activations[site].append(activation[order.argsort(), 0])
    return PrefixBucket(
        rows,
        token_ids,
        0,
        replace(shared, residuals={block: torch.cat(parts) for block, parts in residuals.items()}),
        {name: torch.cat(activations[site]).unflatten(-1, site.shape) for name, site in shared.sites.items()},
    )


def _whole_bucket(
    model: HookedModel, hook_names: Sequence[str], rows: Tensor, token_ids: Tensor, index: int, batch_size: int
) -> PrefixBucket:
    found: dict[str, list[Tensor]] = {name: [] for name in hook_names}

    def reader(name: str) -> Callable[..., None]:
        def read(activation: Tensor, **_: Any) -> None:
            found[name].append(activation[:, index].detach().clone().to(token_ids.device))

        return read

    with torch.no_grad(), model.hooks(fwd_hooks=[(name, reader(name)) for name in hook_names]):
        for part in token_ids.split(batch_size):
            _forward(model, part)
    for name, parts in found.items():
        if not parts:
            raise HookNotFoundError(
                "hook_names",
                name,
                expected="hooks that the model's forward pass reaches",
                remedy="Use another residual-stream hook, such as that before the next block.",
            )
    return PrefixBucket(rows, token_ids, index, None, {name: torch.cat(parts) for name, parts in found.items()})


def _choose_engine(
    model: HookedModel,
    hook_names: Sequence[str],
    ids: Tensor,
    lengths: Tensor,
    positions: Tensor,
    chosen: Tensor,
    engine: Engine,
) -> tuple[BareModel | None, dict[str, Site]]:
    """The bare model to run suffixes on and where the hooks are in it, or None for whole sequences."""
    if engine == "whole" or len(chosen) == 0:
        return None, {}
    bare = bare_model(model)
    if bare is not None:
        first = chosen[positions[chosen].argmax()]
        prompt, position = ids[first : first + 1, : int(lengths[first])], int(positions[first])
        found = {name: bare.site(model, name, prompt, position) for name in hook_names}
        sites = {name: site for name, site in found.items() if site is not None}
        if len(sites) == len(found):
            return bare, sites
    if engine == "suffix":
        raise AbsorbError(
            "engine",
            engine,
            expected="a causal model of Hugging Face modules, without hooks attached",
            remedy='Leave `engine` at "auto", or say "whole".',
        )
    return None, {}


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
