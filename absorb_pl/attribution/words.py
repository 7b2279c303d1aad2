"""Integrated gradients and ablations of single words' latents, many words a run, on the suffix engine."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from absorb_pl.attribution.suffix import (
    Engine,
    PrefixBucket,
    WordMetric,
    WordPrefix,
    compute_prefix,
    frozen_parameters,
    last_logits,
    replace_at,
    row_metric,
)
from absorb_pl.errors import AbsorbError, HookNotFoundError, PromptError, ShapeError
from absorb_pl.models.sae import sae_hook_name
from absorb_pl.words import TokenizedPrompts


@dataclass(frozen=True)
class WordScores:
    """Latents at the words and their integrated-gradient scores, float32 or better.

    Attributes:
        activations: Latents at each word.
        scores: Mean gradient times (0 - activation); negative where the latent helps the metric.
        error_scores: The same for the SAE's error; with `scores` it sums to the change of the metric.
        gradients: Mean gradient of the metric by the activation at the word.
    """

    activations: Float[Tensor, "words latents"]
    scores: Float[Tensor, "words latents"]
    error_scores: Float[Tensor, " words"]
    gradients: Float[Tensor, "words ..."]


@dataclass(frozen=True)
class WordAblations:
    """Change of the metric when one latent is removed at one word, a row a (word, latent) pair.

    Attributes:
        rows: Which prompt the pair is of, in the order in which prompts were asked for.
        latents: Which latent was removed.
        scores: metric without the latent - metric; negative where the latent helps the metric.
        original: The metric with nothing removed, one value a prompt asked for.
    """

    rows: Int[Tensor, " pairs"]
    latents: Int[Tensor, " pairs"]
    scores: Float[Tensor, " pairs"]
    original: Float[Tensor, " words"]


def word_integrated_gradients(
    model: Any,
    sae: Any,
    prompts: TokenizedPrompts,
    metric: WordMetric,
    *,
    hook_name: str | None = None,
    steps: int = 6,
    prefix: WordPrefix | None = None,
    rows: Sequence[int] | None = None,
    batch_size: int = 64,
    engine: Engine = "auto",
) -> WordScores:
    """Score every latent of an SAE at every word by integrated gradients towards zero.

    At the word, latents f and SAE error run together from their values to zero, all else stays as it is:

        x(α) = decode((1 - α) f) + (1 - α) error,  α = i / steps,  i = 0 … steps - 1
        score = mean over i of ∂metric/∂f at x(α), times (0 - f)

    These are the scores behind the absorption rule of the paper (arXiv 2409.14507), there with 6 steps, at
    the word's own position.

    Only the activation x needs a gradient: `decode` is affine, so x(α) lies on the line from the activation
    to `decode(0)`, and the latents' gradients are the mean gradient of x taken back through `decode` once.

    Args:
        model: The language model.
        sae: The SAE.
        prompts: Prompts and the positions of their words.
        metric: From last-position logits and the prompt each row is of, one value a row.
        hook_name: Hook the SAE reads; the one it stores if not given.
        steps: Number of points on the path.
        prefix: From `compute_prefix`, to share it between SAEs; computed in portions if not given.
        rows: Indices of the prompts to score, in the order wanted; all of them if not given.
        batch_size: Most sequences in one run of the model, and most words encoded at once.
        engine: How to run, see `compute_prefix`; only read when `prefix` is not given.

    Returns:
        Activations and scores, one row a prompt asked for.

    Raises:
        HookNotFoundError: The model lacks the hook, or `prefix` does not hold it.
        PromptError: A word's position is outside its prompt, or `prefix` lacks a prompt asked for.
        ShapeError: The metric does not return one value a row.
        AbsorbError: `steps` or `batch_size` is not positive.

    Example:
        >>> def example(model, sae, prompts, answer_tokens):
        ...     def metric(last_logits, rows):
        ...         return last_logits.gather(1, answer_tokens[rows, None])[:, 0]
        ...     scores = word_integrated_gradients(model, sae, prompts, metric).scores
        ...     return scores.argmin(dim=-1)
    """
    _check_positive(steps=steps, batch_size=batch_size)
    hook_name = hook_name or sae_hook_name(sae)
    wanted, order = _wanted(prompts, rows)
    found: dict[int, tuple[Tensor, ...]] = {}

    def visit(bucket: PrefixBucket, members: Tensor) -> None:
        scored = _integrate(model, sae, bucket, members, hook_name, metric, steps, batch_size)
        for place, row in enumerate(bucket.rows[members].tolist()):
            found[row] = tuple(part[place] for part in scored)

    _visit(model, prompts, hook_name, wanted, prefix, engine, batch_size, visit)
    return WordScores(*(torch.stack(part) for part in zip(*(found[row] for row in order), strict=True)))


def word_ablations(
    model: Any,
    sae: Any,
    prompts: TokenizedPrompts,
    metric: WordMetric,
    latents: Sequence[int] | None = None,
    *,
    hook_name: str | None = None,
    prefix: WordPrefix | None = None,
    rows: Sequence[int] | None = None,
    modify_removed: Callable[[Tensor], Tensor] | None = None,
    batch_size: int = 64,
    engine: Engine = "auto",
) -> WordAblations:
    """Remove latents one at a time at every word and measure what the metric loses.

    What is removed is the latent's own part of the reconstruction, decode(f_j e_j) - decode(0); the SAE's
    error and all other latents stay. This is the ablation effect of the paper (arXiv 2409.14507).

    Args:
        model: The language model.
        sae: The SAE.
        prompts: Prompts and the positions of their words.
        metric: From last-position logits and the prompt each row is of, one value a row.
        latents: Latents to remove at every word; if not given, those that are not 0 at the word.
        hook_name: Hook the SAE reads; the one it stores if not given.
        prefix: From `compute_prefix`, to share it between SAEs; computed in portions if not given.
        rows: Indices of the prompts to score, in the order wanted; all of them if not given.
        modify_removed: Applied to the vectors about to be subtracted, `[pairs, d_model]`.
        batch_size: Most sequences in one run of the model, and most words encoded at once.
        engine: How to run, see `compute_prefix`; only read when `prefix` is not given.

    Returns:
        One row a (word, latent) pair, in the order of the prompts asked for, then of latents.

    Raises:
        HookNotFoundError: The model lacks the hook, or `prefix` does not hold it.
        PromptError: A word's position is outside its prompt, or `prefix` lacks a prompt asked for.
        ShapeError: The metric does not return one value a row, or `modify_removed` changes the shape.
        AbsorbError: A latent is outside the SAE, or `batch_size` is not positive.

    Example:
        >>> def example(model, sae, prompts, metric):
        ...     ablations = word_ablations(model, sae, prompts, metric)
        ...     return ablations.latents[ablations.scores.argmin()]
    """
    _check_positive(batch_size=batch_size)
    hook_name = hook_name or sae_hook_name(sae)
    check_latents(sae, latents)
    wanted, order = _wanted(prompts, rows)
    found: dict[int, tuple[Tensor, Tensor, Tensor]] = {}

    def visit(bucket: PrefixBucket, members: Tensor) -> None:
        removed = _ablate(model, sae, bucket, members, hook_name, metric, latents, modify_removed, batch_size)
        found.update(removed)

    _visit(model, prompts, hook_name, wanted, prefix, engine, batch_size, visit)
    ids = [found[row][0] for row in order]
    return WordAblations(
        rows=torch.cat([torch.full_like(latent_ids, row) for row, latent_ids in zip(order, ids, strict=True)]),
        latents=torch.cat(ids),
        scores=torch.cat([found[row][1] for row in order]),
        original=torch.stack([found[row][2] for row in order]),
    )


def check_latents(sae: Any, latents: Sequence[int] | None) -> None:
    """Refuse latents the SAE does not have.

    Args:
        sae: The SAE.
        latents: Indices; negative ones are refused too.

    Raises:
        AbsorbError: An index is outside the SAE.

    Example:
        >>> from types import SimpleNamespace as N
        >>> check_latents(N(W_dec=torch.zeros(4, 2), encode=None, decode=None), [0, 3])
    """
    width = sae.W_dec.shape[0]
    for latent in latents or ():
        if not 0 <= latent < width:
            raise AbsorbError(
                "latents",
                latent,
                expected=f"indices below {width}",
                remedy="Drop latents the SAE does not have.",
            )


def _check_positive(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise AbsorbError(name, count, expected="a positive integer", remedy="Use 1 or more.")


def _wanted(prompts: TokenizedPrompts, rows: Sequence[int] | None) -> tuple[list[int], list[int]]:
    order = list(range(len(prompts.input_ids))) if rows is None else [int(row) for row in rows]
    if not order:
        raise PromptError("rows", order, expected="at least one prompt", remedy="Hand in a prompt.")
    return sorted(set(order)), order


def _visit(
    model: Any,
    prompts: TokenizedPrompts,
    hook_name: str,
    wanted: list[int],
    prefix: WordPrefix | None,
    engine: Engine,
    batch_size: int,
    visit: Callable[[PrefixBucket, Tensor], None],
) -> None:
    """Call `visit` with portions of at most `batch_size` wanted prompts of one bucket."""
    if prefix is None:
        for start in range(0, len(wanted), batch_size):
            portion = wanted[start : start + batch_size]
            part = compute_prefix(model, prompts, [hook_name], rows=portion, engine=engine, batch_size=batch_size)
            _visit(model, prompts, hook_name, portion, part, engine, batch_size, visit)
        return
    if hook_name not in prefix.hook_names:
        raise HookNotFoundError(
            "hook_name",
            hook_name,
            expected=f"one of the prefix's hooks, {', '.join(prefix.hook_names)}",
            remedy="Name it when calling `compute_prefix`.",
        )
    missing = set(wanted) - {row for bucket in prefix.buckets for row in bucket.rows.tolist()}
    if missing:
        raise PromptError(
            "rows",
            min(missing),
            expected="prompts that `prefix` holds",
            remedy="Compute the prefix for them too.",
        )
    for bucket in prefix.buckets:
        places = torch.isin(bucket.rows, torch.tensor(wanted, device=bucket.rows.device)).nonzero().flatten()
        for members in places.split(batch_size):
            if len(members):
                visit(bucket, members)


def _integrate(
    model: Any,
    sae: Any,
    bucket: PrefixBucket,
    members: Tensor,
    hook_name: str,
    metric: WordMetric,
    steps: int,
    batch_size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x = _precise(bucket.activations[hook_name][members])
    with torch.enable_grad():
        latents, (decoded, origin) = _decode_twice(sae, x)
        start, end = x, origin.detach().to(x)
        words = torch.arange(len(members), device=x.device).repeat_interleave(steps)
        alphas = (torch.arange(steps, device=x.device, dtype=x.dtype) / steps).repeat(len(members))
        gradients = []
        with frozen_parameters(model):
            for part in torch.arange(len(words), device=x.device).split(batch_size):
                mix = alphas[part].view(-1, *[1] * (x.ndim - 1))
                point = ((1 - mix) * start[words[part]] + mix * end[words[part]]).requires_grad_()
                runs = members[words[part]]
                logits = last_logits(model, bucket, runs, fwd_hooks=[(hook_name, replace_at(bucket.index, point))])
                values = row_metric(metric, logits, bucket.rows[runs])
                gradients.append(torch.autograd.grad(values.sum(), point)[0])
        mean = torch.cat(gradients).unflatten(0, (len(members), steps)).mean(dim=1)
        (latent_gradients,) = torch.autograd.grad(decoded, latents, mean.to(decoded))
    activations = _precise(latents.detach())
    error = x - decoded.detach().to(x)
    return activations, latent_gradients * -activations, (mean * -error).flatten(1).sum(dim=1), mean


@torch.no_grad()
def _ablate(
    model: Any,
    sae: Any,
    bucket: PrefixBucket,
    members: Tensor,
    hook_name: str,
    metric: WordMetric,
    latents: Sequence[int] | None,
    modify_removed: Callable[[Tensor], Tensor] | None,
    batch_size: int,
) -> dict[int, tuple[Tensor, Tensor, Tensor]]:
    x = _precise(bucket.activations[hook_name][members])
    activations = sae.encode(x.to(sae.W_dec))
    if latents is None:
        word_of, latent_of = activations.nonzero().to(x.device).unbind(dim=1)
    else:
        every = torch.tensor(list(latents), dtype=torch.long, device=x.device)
        word_of = torch.arange(len(members), device=x.device).repeat_interleave(len(every))
        latent_of = every.repeat(len(members))
    original = row_metric(metric, last_logits(model, bucket, members), bucket.rows[members])
    scores = [original[:0]]
    for part in torch.arange(len(word_of), device=x.device).split(batch_size):
        if not len(part):
            break
        words, runs = word_of[part], members[word_of[part]]
        _, (alone, origin) = _decode_twice(sae, x[words], only=latent_of[part])
        removed = (alone - origin).to(x)
        changed = removed if modify_removed is None else modify_removed(removed)
        if changed.shape != removed.shape:
            raise ShapeError(
                "modify_removed",
                tuple(changed.shape),
                expected=f"vectors of shape {tuple(removed.shape)}",
                remedy="Return one vector for each given.",
            )
        logits = last_logits(model, bucket, runs, fwd_hooks=[(hook_name, replace_at(bucket.index, x[words] - changed))])
        scores.append(row_metric(metric, logits, bucket.rows[runs]) - original[words])
    all_scores = torch.cat(scores)
    return {
        row: (latent_of[word_of == place], all_scores[word_of == place], original[place])
        for place, row in enumerate(bucket.rows[members].tolist())
    }


def _decode_twice(sae: Any, x: Tensor, *, only: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Latents of x, and decode(latents) stacked on decode(0); with `only`, a row keeps that one latent.

    Both go through one call of `decode`: SAEs that normalise their input keep its norm from `encode` for one.
    """
    with torch.no_grad():
        latents = sae.encode(x.to(sae.W_dec))
        if only is not None:
            latents = torch.zeros_like(latents).scatter(1, only[:, None], latents.gather(1, only[:, None]))
    latents = latents.detach().requires_grad_()
    return latents, sae.decode(torch.stack([latents, torch.zeros_like(latents)]))


def _precise(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
