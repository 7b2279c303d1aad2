"""Ablation of single words' latents on the suffix engine, many (word, latent) pairs per run."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from rich.progress import track
from torch import Tensor

from absorb_pl.attribution.gradients import check_metric
from absorb_pl.attribution.suffix import WordMetric, visit_words, words_at_once
from absorb_pl.engine.prefix import Engine, PrefixBucket, WordPrefix, bucket_logits
from absorb_pl.errors import AbsorbError, ShapeError
from absorb_pl.functional.absorption import SILENT
from absorb_pl.functional.precision import at_least_float32
from absorb_pl.models.hooked_model import HookedModel
from absorb_pl.ranges import Count, NotNegative, check_ranges
from absorb_pl.saes.interface import SparseAutoencoder
from absorb_pl.saes.properties import sae_hook_name
from absorb_pl.saes.rows import encode
from absorb_pl.words.positions import TokenizedPrompts

DeltaModifier = Callable[[Tensor, Sequence[int]], Tensor]
"""From the vectors about to be added, `[pairs, d_model]`, and their latents to vectors of the same shape."""


@dataclass(frozen=True)
class WordAblations:
    """Change of the metric when one latent is removed at one word, a row a (word, latent) pair.

    Attributes:
        rows: Which prompt the pair is of, in the order in which prompts were asked for.
        latents: Which latent was removed.
        scores: metric without the latent - metric; negative where the latent helps the metric.
        original: The metric with nothing removed, one value per prompt asked for.
    """

    rows: Int[Tensor, " pairs"]
    latents: Int[Tensor, " pairs"]
    scores: Float[Tensor, " pairs"]
    original: Float[Tensor, " words"]


def word_ablations(
    model: HookedModel,
    sae: SparseAutoencoder,
    prompts: TokenizedPrompts,
    metric: WordMetric,
    latents: Sequence[int] | None = None,
    *,
    hook_name: str | None = None,
    prefix: WordPrefix | None = None,
    rows: Sequence[int] | None = None,
    firing_threshold: NotNegative = SILENT,
    modify_ablation_deltas_fn: DeltaModifier | None = None,
    batch_size: Count = 64,
    engine: Engine = "auto",
) -> WordAblations:
    """Remove latents one at a time at every word and measure what the metric loses.

    What is removed is the latent's own part of the reconstruction, decode(f_j e_j) - decode(0); the SAE's
    error and all other latents stay. This is the ablation effect of the paper (arXiv 2409.14507).

    Args:
        model: The language model.
        sae: The SAE.
        prompts: Prompts and the positions of their words.
        metric: From last-position logits and the prompt each row is of (both on the model's device), one
            value per row.
        latents: Latents to remove at every word; if not given, those that fire there.
        hook_name: Hook the SAE reads; the one it stores if not given.
        prefix: From `compute_prefix`, to share it between SAEs; computed in portions if not given.
        rows: Indices of the prompts to score, in the order wanted; all of them if not given.
        firing_threshold: A latent fires if it is further from 0 than this.
        modify_ablation_deltas_fn: May change the vectors about to be added, given them and their latents.
        batch_size: Most sequences in one run of the model, and most words encoded at once.
        engine: How to run, see `compute_prefix`; only read when `prefix` is not given.

    Returns:
        One row a (word, latent) pair, in the order of the prompts asked for, then of latents.

    Raises:
        HookNotFoundError: The model lacks the hook, or `prefix` does not hold it.
        PromptError: A word's position is outside its prompt, or `prefix` lacks a prompt asked for.
        ShapeError: The metric does not return one value per row, or the modified vectors have another shape.
        AbsorbError: A latent is outside the SAE, or `batch_size` is not positive.

    Example:
        >>> from absorb_pl import load_language_model, load_sae
        >>> model, sae = load_language_model("speller"), load_sae("speller/l1-standard-w512-dense")
        >>> from absorb_pl.words import SpellingPrompt, tokenize_prompts
        >>> texts = [SpellingPrompt(" cat:", " C", " cat", 4), SpellingPrompt(" dog:", " D", " dog", 4)]
        >>> prompts = tokenize_prompts(model.tokenizer, texts, prepend_bos=True)
        >>> answers = torch.tensor([model.tokenizer.encode(letter)[-1] for letter in (" C", " D")])
        >>> def metric(last_logits, rows):
        ...     return last_logits.gather(1, answers[rows, None])[:, 0]
        >>> found = word_ablations(model, sae, prompts, metric)
        >>> worst = found.scores.argmin()
        >>> found.rows[worst], found.latents[worst]
        (tensor(1), tensor(442))
    """
    check_ranges(word_ablations, locals())
    check_latents(sae, latents)
    hook_name = hook_name or sae_hook_name(sae)

    @torch.no_grad()
    def visit(bucket: PrefixBucket, members: Tensor) -> Iterable[tuple[Tensor, Tensor, Tensor]]:
        def measure(runs: Tensor, values: Tensor) -> Tensor:
            logits = bucket_logits(model, bucket, runs, hook_name, values)[:, -1]
            return check_metric(metric(logits, bucket.rows[runs]), len(runs))

        pairs = ablate_bucket(
            sae,
            bucket,
            members,
            hook_name,
            measure,
            latents=latents,
            firing_threshold=firing_threshold,
            modify_ablation_deltas_fn=modify_ablation_deltas_fn,
            batch_size=batch_size,
        )
        unchanged = measure(members, bucket.activations[hook_name][members])
        for (removed, metrics), original in zip(pairs, unchanged, strict=True):
            yield removed, metrics - original, original

    found = visit_words(model, prompts, hook_name, rows, visit, prefix=prefix, engine=engine, batch_size=batch_size)
    order = range(len(prompts)) if rows is None else rows
    return WordAblations(
        rows=torch.cat([torch.full_like(part[0], row) for row, part in zip(order, found, strict=True)]),
        latents=torch.cat([part[0] for part in found]),
        scores=torch.cat([part[1] for part in found]),
        original=torch.stack([part[2] for part in found]),
    )


def check_latents(sae: SparseAutoencoder, latents: Sequence[int] | None) -> None:
    """Refuse latents the SAE does not have.

    Args:
        sae: The SAE.
        latents: Indices; negative ones are refused too.

    Raises:
        AbsorbError: An index is outside the SAE.

    Example:
        >>> from types import SimpleNamespace
        >>> check_latents(SimpleNamespace(W_dec=torch.zeros(4, 2)), [0, 3])
    """
    if latents is None:
        return
    width = sae.W_dec.shape[0]
    for latent in latents:
        if not 0 <= latent < width:
            raise AbsorbError(
                "latents", latent, expected=f"indices below {width}", remedy="Drop latents the SAE does not have."
            )


def ablate_bucket(
    sae: SparseAutoencoder,
    bucket: PrefixBucket,
    members: Tensor,
    hook_name: str,
    measure: Callable[[Tensor, Tensor], Tensor],
    *,
    latents: Sequence[int] | None,
    firing_threshold: float,
    modify_ablation_deltas_fn: DeltaModifier | None,
    batch_size: int,
    show_progress: bool = False,
) -> list[tuple[Tensor, Tensor]]:
    """Remove latents one at a time at some words of a bucket.

    Args:
        sae: The SAE.
        bucket: The bucket.
        members: Places in it.
        hook_name: Hook the SAE reads.
        measure: From places and the activations to put there to the metric, one value per run.
        latents: Latents to remove at every word; those that fire there if None.
        firing_threshold: A latent fires if it is further from 0 than this.
        modify_ablation_deltas_fn: May change the vectors about to be added.
        batch_size: Most pairs in one run of the model.
        show_progress: Show a progress bar.

    Returns:
        For each word, the latents removed and the metric without each of them.
    """
    x = at_least_float32(bucket.activations[hook_name][members])
    if latents is None:
        word_of, latent_of = _firing(sae, x, firing_threshold)
    else:
        every = torch.tensor(list(latents), dtype=torch.long, device=x.device)
        word_of = torch.arange(len(members), device=x.device).repeat_interleave(len(every))
        latent_of = every.repeat(len(members))
    metrics = [x.new_empty(0)]
    starts = range(0, len(word_of), batch_size)
    for start in track(starts, description="latents", disable=not show_progress):
        words, removed = word_of[start : start + batch_size], latent_of[start : start + batch_size]
        parts = zip(words.split(words_at_once(sae)), removed.split(words_at_once(sae)), strict=True)
        deltas = torch.cat([_removal(sae, x[word], latent) for word, latent in parts])
        if modify_ablation_deltas_fn is not None:
            deltas = _same_shape(modify_ablation_deltas_fn(deltas, removed.tolist()), deltas)
        metrics.append(measure(members[words], x[words] + deltas))
    values = torch.cat(metrics)
    return [(latent_of[word_of == place], values[word_of == place]) for place in range(len(members))]


def _firing(sae: SparseAutoencoder, x: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Which latents fire at which words: the words' places in `x`, ascending, and the latents."""
    pairs, start = [], 0
    for part in x.split(words_at_once(sae)):
        words, latents = (encode(sae, part).abs() > threshold).nonzero().to(x.device).unbind(dim=1)
        pairs.append((start + words, latents))
        start += len(part)
    words, latents = zip(*pairs, strict=True)
    return torch.cat(words), torch.cat(latents)


def _removal(sae: SparseAutoencoder, x: Tensor, removed: Tensor) -> Tensor:
    """What to add to activations to take away one latent's part of the reconstruction in each row."""
    acts = encode(sae, x)
    places = removed.to(acts.device)[:, None]
    alone = torch.zeros_like(acts).scatter(1, places, acts.gather(1, places))
    decoded, origin = sae.decode(torch.stack([alone, torch.zeros_like(alone)]))
    return (origin - decoded).to(x)


def _same_shape(changed: Tensor, deltas: Tensor) -> Tensor:
    if changed.shape != deltas.shape:
        raise ShapeError(
            "modify_ablation_deltas_fn",
            tuple(changed.shape),
            expected=f"vectors of shape {tuple(deltas.shape)}",
            remedy="Return one vector for each given.",
        )
    return changed
