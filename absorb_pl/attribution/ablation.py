"""Ablation: what a metric loses when one latent is removed at one position of a prompt."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from absorb_pl.attribution.gradients import Metric, check_finite, check_metric
from absorb_pl.attribution.positions import resolve_position
from absorb_pl.attribution.word_ablation import DeltaModifier, ablate_bucket, check_latents
from absorb_pl.engine.prefix import Engine, bucket_logits, compute_prefix, replace_at
from absorb_pl.engine.splice import FwdHook, SaeReconstructionCache, apply_saes_and_run
from absorb_pl.errors import AbsorbError, PromptError
from absorb_pl.functional.absorption import SILENT
from absorb_pl.functional.precision import at_least_float32
from absorb_pl.matrix_products import fast_products
from absorb_pl.models.hooked_model import HookedModel
from absorb_pl.models.prompt_batch import PromptBatch, read_prompts
from absorb_pl.ranges import Count, NotNegative, check_ranges
from absorb_pl.saes.interface import SparseAutoencoder
from absorb_pl.saes.properties import sae_hook_name
from absorb_pl.words.positions import TokenizedPrompts


@dataclass
class FeatureAblationsOutput:
    """Outcome of `calculate_individual_feature_ablations`.

    Attributes:
        sae_cache: What the SAE saw and made on the prompt.
        ablation_scores: By latent, metric without it - metric.
        original_score: The metric with nothing removed.
    """

    sae_cache: SaeReconstructionCache
    ablation_scores: dict[int, float]
    original_score: float


@fast_products()
def calculate_individual_feature_ablations(
    model: HookedModel,
    input: Any,
    metric_fn: Metric | Sequence[Metric],
    sae: SparseAutoencoder,
    ablate_token_index: int,
    ablate_features: Sequence[int] | None = None,
    return_logits: bool = True,
    batch_size: Count = 25,
    show_progress: bool = False,
    firing_threshold: NotNegative = SILENT,
    modify_ablation_deltas_fn: DeltaModifier | None = None,
    engine: Engine = "auto",
    extra_fwd_hooks: Sequence[FwdHook] | None = None,
) -> FeatureAblationsOutput | list[FeatureAblationsOutput]:
    """Remove latents one at a time at one token of a prompt and measure what the metric loses.

    What attribution estimates, computed, with the sign turned: metric with the latent's own part of the
    reconstruction taken away - metric. The SAE's error and all other latents stay. Names and results are those
    of the function of this name in the code of the paper (arXiv 2409.14507). Tokens before the position are run
    once and shared by all latents. Several prompts are taken one after the other, each by itself.

    Args:
        model: The language model.
        input: A prompt, a list of prompts, token ids `[tokens]` or `[prompts, tokens]`, or a list of ids `[tokens]`.
        metric_fn: From logits `[rows, tokens, vocab]` (in float32 or better) or loss to one value per row. Rows
            are runs of one prompt without one latent each; give a list of metrics, one per prompt, if prompts differ in
            what to measure.
        sae: The SAE; it reads the hook it stores.
        ablate_token_index: The position in every prompt, from the prompt's own end if negative.
        ablate_features: Latents to remove; if not given, all that fire.
        return_logits: Give the metric logits rather than the loss; losses are computed a latent at a time.
        batch_size: Most latents in one run of the model.
        show_progress: Show a progress bar.
        firing_threshold: A latent fires if it is further from 0 than this.
        modify_ablation_deltas_fn: May change the vectors about to be added, given them and their latents.
        engine: How to run, see `compute_prefix`; with extra hooks, whole sequences.
        extra_fwd_hooks: Further `(hook name, function)` pairs, run after the SAE in every run of the model.

    Returns:
        Scores by latent, the metric itself and what the SAE made of the prompt; a list of these for several prompts.

    Raises:
        HookNotFoundError: The SAE's hook or an extra hook is not one of the model, or the SAE stores none.
        PromptError: The input is no prompts, or a padded tensor that leaves open what is padding; the position is
            outside a prompt; or there is another number of metrics than of prompts.
        ContextLengthError: A text has more tokens than the model takes.
        ShapeError: The metric does not return one value per row, or the modified vectors have another shape.
        NonFiniteError: The metric is NaN or infinite.
        AbsorbError: A latent is outside the SAE, `batch_size` is not positive, or `engine="suffix"` with extra hooks.

    Example:
        >>> from absorb_pl import load_language_model, load_sae
        >>> model, sae = load_language_model("speller"), load_sae("speller/l1-standard-w512-dense")
        >>> answer = model.tokenizer.encode(" C")[-1]
        >>> found = calculate_individual_feature_ablations(
        ...     model, " cat:", lambda logits: logits[:, -1, answer], sae, ablate_token_index=-2
        ... )
        >>> min(found.ablation_scores, key=found.ablation_scores.get)
        487
    """
    check_ranges(calculate_individual_feature_ablations, locals())
    check_latents(sae, ablate_features)
    if extra_fwd_hooks and engine == "suffix":
        raise AbsorbError(
            "engine", engine, expected='"auto" or "whole" with extra hooks', remedy="Extra hooks read whole sequences."
        )
    prompts = read_prompts(model, input)
    metrics = list(metric_fn) if isinstance(metric_fn, Sequence) else [metric_fn] * len(prompts)
    if len(metrics) != len(prompts):
        raise PromptError(
            "metric_fn",
            f"{len(metrics)} metrics",
            expected=f"one, or one for each of {len(prompts)} prompts",
            remedy="Give one metric per prompt.",
        )
    positions = [
        resolve_position("ablate_token_index", ablate_token_index, length, row if len(prompts) > 1 else None)
        for row, length in enumerate(prompts.lengths)
    ]
    found = [
        _prompt_ablations(
            model,
            PromptBatch(prompts.token_ids[row : row + 1, :length], (length,)),
            metric,
            sae,
            position,
            ablate_features,
            return_logits=return_logits,
            batch_size=batch_size,
            show_progress=show_progress,
            firing_threshold=firing_threshold,
            modify_ablation_deltas_fn=modify_ablation_deltas_fn,
            engine="whole" if extra_fwd_hooks else engine,
            extra_hooks=list(extra_fwd_hooks or []),
        )
        for row, (length, position, metric) in enumerate(zip(prompts.lengths, positions, metrics, strict=True))
    ]
    return found[0] if len(found) == 1 else found


def _prompt_ablations(
    model: HookedModel,
    prompt: PromptBatch,
    metric_fn: Metric,
    sae: SparseAutoencoder,
    position: int,
    ablate_features: Sequence[int] | None,
    *,
    return_logits: bool,
    batch_size: int,
    show_progress: bool,
    firing_threshold: float,
    modify_ablation_deltas_fn: DeltaModifier | None,
    engine: Engine,
    extra_hooks: list[FwdHook],
) -> FeatureAblationsOutput:
    """Ablations of the latents of one prompt."""
    hook_name = sae_hook_name(sae)
    tokens, length = prompt.token_ids, prompt.width
    return_type = "logits" if return_logits else "loss"
    with torch.no_grad():
        clean = apply_saes_and_run(
            model, {hook_name: sae}, prompt, return_type=return_type, extra_fwd_hooks=extra_hooks
        )
        clean_output = at_least_float32(clean.model_output)
        prompts = TokenizedPrompts(
            input_ids=tokens,
            attention_mask=torch.ones_like(tokens, dtype=torch.bool),
            lengths=torch.tensor([length]),
            word_positions=torch.tensor([position]),
        )
        prefix = compute_prefix(model, prompts, [hook_name], engine=engine if return_logits else "whole")
        (bucket,) = prefix.buckets
        sae_in, acts, *_ = clean.sae_activations[hook_name]
        at_position = sae_in[:, position].to(tokens.device)
        bucket = replace(bucket, activations={hook_name: at_position})
        if ablate_features is None:
            ablate_features = (acts[0, position].abs() > firing_threshold).nonzero().flatten().tolist()

        def measure(runs: Tensor, changed: Tensor) -> Tensor:
            if return_logits and not extra_hooks:
                suffix = bucket_logits(model, bucket, runs, hook_name, changed, last_only=False)
                before = clean_output[:, : length - suffix.shape[1]].expand(len(runs), -1, -1)
                output = torch.cat([before, suffix], dim=1)
            else:
                hooks = [(hook_name, replace_at(position, changed)), *extra_hooks]
                with model.hooks(fwd_hooks=hooks):
                    output = at_least_float32(model(tokens.expand(len(runs), -1), return_type=return_type))
            values = check_metric(metric_fn(output), len(runs))
            check_finite(values)
            return values

        prompt_itself = torch.zeros(1, dtype=torch.long, device=tokens.device)
        original = measure(prompt_itself, at_position)
        [(latents, metrics)] = ablate_bucket(
            sae,
            bucket,
            prompt_itself,
            hook_name,
            measure,
            latents=ablate_features,
            firing_threshold=firing_threshold,
            modify_ablation_deltas_fn=modify_ablation_deltas_fn,
            batch_size=batch_size if return_logits else 1,
            show_progress=show_progress,
        )
    return FeatureAblationsOutput(
        sae_cache=clean.sae_activations[hook_name],
        ablation_scores=dict(zip(latents.tolist(), (metrics - original).tolist(), strict=True)),
        original_score=original.item(),
    )
