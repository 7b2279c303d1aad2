"""The suffix engine at work: integrated gradients of single words' latents, many words per run."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from absorb_pl.attribution.gradients import activation_gradients, check_metric
from absorb_pl.engine.prefix import Engine, PrefixBucket, WordPrefix, bucket_logits, compute_prefix
from absorb_pl.errors import HookNotFoundError, PromptError
from absorb_pl.functional.precision import at_least_float32
from absorb_pl.matrix_products import fast_products
from absorb_pl.models.hooked_model import HookedModel
from absorb_pl.ranges import Count, check_ranges
from absorb_pl.saes.interface import SparseAutoencoder
from absorb_pl.saes.portions import rows_at_once
from absorb_pl.saes.properties import sae_hook_name
from absorb_pl.saes.rows import encode
from absorb_pl.words.positions import TokenizedPrompts

WordMetric = Callable[[Tensor, Tensor], Tensor]
"""`metric(last_logits [rows, vocab], rows [rows]) -> [rows]`; `rows` says which prompt each row is of."""


_MATRICES = 16
"""Most matrices of words × latents that scoring holds at the same time, with what has been scored so far."""


@dataclass(frozen=True)
class WordScores:
    """Latents at the words and their integrated-gradient scores, float32 or better.

    Attributes:
        activations: Latents at each word.
        scores: Mean gradient times (0 - activation); negative where the latent helps the metric.
        error_scores: The same for the SAE's error; with `scores` it sums to the change of the metric.
        gradients: Mean gradient of the metric by the activation at the word.
        attributions: Gradient at the word as it is (α = 0) times activation, the score of
            `calculate_feature_attribution`; positive where the latent helps the metric.
    """

    activations: Float[Tensor, "words latents"]
    scores: Float[Tensor, "words latents"]
    error_scores: Float[Tensor, " words"]
    gradients: Float[Tensor, "words ..."]
    attributions: Float[Tensor, "words latents"]


def word_integrated_gradients(
    model: HookedModel,
    sae: SparseAutoencoder,
    prompts: TokenizedPrompts,
    metric: WordMetric,
    *,
    hook_name: str | None = None,
    steps: Count = 6,
    prefix: WordPrefix | None = None,
    rows: Sequence[int] | None = None,
    batch_size: Count = 64,
    engine: Engine = "auto",
) -> WordScores:
    """Score every latent of an SAE at every word by integrated gradients towards zero.

    At the word, latents f and SAE error run together from their values to zero, all else stays as it is:

        x(α) = decode((1 - α) f) + (1 - α) error,  α = i / steps,  i = 0 … steps - 1
        score = mean over i of ∂metric/∂f at x(α), times (0 - f)

    These are the scores that the absorption rule rests on of the paper (arXiv 2409.14507), there with 6 steps, at
    the word's own position.

    Only the activation x needs a gradient: `decode` is affine, so x(α) lies on the line from the activation
    to `decode(0)`, and the latents' gradients are the mean gradient of x taken back through `decode` once.

    What is returned are whole matrices of words × latents. For a wide SAE ask for a few words at a time and keep what
    is needed of each: `words_at_once(sae)` says how many, and no more are worked on at once here.

    Args:
        model: The language model.
        sae: The SAE.
        prompts: Prompts and the positions of their words.
        metric: From last-position logits and the prompt each row is of (both on the model's device), one
            value per row.
        hook_name: Hook the SAE reads; the one it stores if not given.
        steps: Number of points on the path.
        prefix: From `compute_prefix`, to share it between SAEs; computed in portions if not given.
        rows: Indices of the prompts to score, in the order wanted; all of them if not given.
        batch_size: Most sequences in one run of the model, and most words encoded at once.
        engine: How to run, see `compute_prefix`; only read when `prefix` is not given.

    Returns:
        Activations and scores, one row per prompt asked for.

    Raises:
        HookNotFoundError: The model lacks the hook, or `prefix` does not hold it.
        PromptError: A word's position is outside its prompt, or `prefix` lacks a prompt asked for.
        ShapeError: The metric does not return one value per row.
        AbsorbError: `steps` or `batch_size` is not positive.

    Example:
        >>> from absorb_pl import load_language_model, load_sae
        >>> model, sae = load_language_model("speller"), load_sae("speller/l1-standard-w512-dense")
        >>> from absorb_pl.words import SpellingPrompt, tokenize_prompts
        >>> texts = [SpellingPrompt(" cat:", " C", " cat", 4), SpellingPrompt(" dog:", " D", " dog", 4)]
        >>> prompts = tokenize_prompts(model.tokenizer, texts, prepend_bos=True)
        >>> answers = torch.tensor([model.tokenizer.encode(letter)[-1] for letter in (" C", " D")])
        >>> def metric(last_logits, rows):
        ...     return last_logits.gather(1, answers[rows, None])[:, 0]
        >>> word_integrated_gradients(model, sae, prompts, metric).scores.argmin(dim=1)
        tensor([487, 442])
    """
    check_ranges(word_integrated_gradients, locals())
    hook_name = hook_name or sae_hook_name(sae)

    def visit(bucket: PrefixBucket, members: Tensor) -> Iterable[tuple[Tensor, ...]]:
        for part in members.split(words_at_once(sae)):
            scores = _integrate(model, sae, bucket, part, hook_name, metric, steps, batch_size)
            yield from zip(*scores, strict=True)

    found = visit_words(model, prompts, hook_name, rows, visit, prefix=prefix, engine=engine, batch_size=batch_size)
    return WordScores(*(torch.stack(part) for part in zip(*found, strict=True)))


def words_at_once(sae: SparseAutoencoder) -> int:
    """How many words' latents are scored at once, so that a wide SAE takes no more than `CHUNK_BYTES` of memory.

    Args:
        sae: The SAE.

    Returns:
        A number of words, at least one.

    Example:
        >>> from types import SimpleNamespace
        >>> words_at_once(SimpleNamespace(W_dec=torch.empty(2**16, 0))), words_at_once(
        ...     SimpleNamespace(W_dec=torch.empty(2**20, 0))
        ... )
        (128, 8)
    """
    return rows_at_once(sae.W_dec.shape[0], max(4, sae.W_dec.element_size()), _MATRICES)


@fast_products()
def visit_words(
    model: HookedModel,
    prompts: TokenizedPrompts,
    hook_name: str,
    rows: Sequence[int] | None,
    visit: Callable[[PrefixBucket, Tensor], Iterable[Any]],
    *,
    prefix: WordPrefix | None,
    engine: Engine,
    batch_size: int,
) -> list[Any]:
    """Call a function with portions of the words asked for and bring its results into their order.

    Args:
        model: The language model.
        prompts: Prompts and the positions of their words.
        hook_name: Hook whose clean activations are needed.
        rows: Indices of the prompts, all of them if not given.
        visit: Called with a bucket and at most `batch_size` places in it; gives one result a place.
        prefix: Holds the buckets; computed for `batch_size` prompts at a time if not given.
        engine: For `compute_prefix`, if the prefix is not given.
        batch_size: Most places in one call.

    Returns:
        One result per prompt asked for.

    Raises:
        HookNotFoundError: `prefix` does not hold the hook.
        PromptError: No prompt is asked for, or one that `prefix` or `prompts` lacks.
    """
    order = list(range(len(prompts))) if rows is None else [int(row) for row in rows]
    if not order:
        raise PromptError("rows", order, expected="at least one prompt", remedy="Hand in a prompt.")
    wanted = sorted(set(order))
    if prefix is None:
        portions = [wanted[start : start + batch_size] for start in range(0, len(wanted), batch_size)]
        prefixes = (
            compute_prefix(model, prompts, [hook_name], rows=portion, engine=engine, batch_size=batch_size)
            for portion in portions
        )
    else:
        _check_prefix(prefix, hook_name, wanted)
        prefixes = iter([prefix])
    found = {}
    for part in prefixes:
        for bucket in part.buckets:
            chosen = torch.isin(bucket.rows, torch.tensor(wanted, device=bucket.rows.device))
            places = chosen.nonzero().flatten()
            for members in places.split(batch_size) if len(places) else ():
                found.update(zip(bucket.rows[members].tolist(), visit(bucket, members), strict=True))
    return [found[row] for row in order]


def _check_prefix(prefix: WordPrefix, hook_name: str, wanted: list[int]) -> None:
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
            "rows", min(missing), expected="prompts that `prefix` holds", remedy="Compute the prefix for them too."
        )


def _integrate(
    model: HookedModel,
    sae: SparseAutoencoder,
    bucket: PrefixBucket,
    members: Tensor,
    hook_name: str,
    metric: WordMetric,
    steps: int,
    batch_size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Activations, scores, error scores, mean gradients and attributions of some words of a bucket."""
    x = at_least_float32(bucket.activations[hook_name][members])
    with activation_gradients(model):
        latents = encode(sae, x).requires_grad_()
        decoded, origin = sae.decode(torch.stack([latents, torch.zeros_like(latents)]))
        end = origin.detach().to(x)
        words = torch.arange(len(members), device=x.device).repeat_interleave(steps)
        alphas = (torch.arange(steps, device=x.device, dtype=x.dtype) / steps).repeat(len(members))
        gradients = []
        # the steps of a word side by side in one run, as far as that allows it
        size = batch_size if batch_size < steps else batch_size - batch_size % steps
        for part in torch.arange(len(words), device=x.device).split(size):
            alpha = alphas[part].view(-1, *[1] * (x.ndim - 1))
            point = ((1 - alpha) * x[words[part]] + alpha * end[words[part]]).requires_grad_()
            runs = members[words[part]]
            logits = bucket_logits(model, bucket, runs, hook_name, point)[:, -1]
            values = check_metric(metric(logits, bucket.rows[runs]), len(runs))
            gradients.append(torch.autograd.grad(values.sum(), point)[0])
        by_step = torch.cat(gradients).unflatten(0, (len(members), steps))
        mean = by_step.mean(dim=1)
        (latent_gradients,) = torch.autograd.grad(decoded, latents, mean.to(decoded), retain_graph=True)
        (first_gradients,) = torch.autograd.grad(decoded, latents, by_step[:, 0].to(decoded))
    activations = at_least_float32(latents.detach())
    error = x - decoded.detach().to(x)
    scores = latent_gradients * -activations
    return activations, scores, (mean * -error).flatten(1).sum(dim=1), mean, first_gradients * activations
