"""Integrated-gradient attribution patching over whole prompts: any positions, several SAEs, model hooks."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from absorb_pl.attribution.gradients import Metric, activation_gradients, check_finite, check_metric
from absorb_pl.attribution.positions import PatchIndices, patch_columns
from absorb_pl.engine.splice import ApplySaesAndRunOutput, FwdHook, apply_saes_and_run
from absorb_pl.errors import PromptError
from absorb_pl.functional.precision import at_least_float32
from absorb_pl.matrix_products import fast_products
from absorb_pl.models.hooked_model import HookedModel
from absorb_pl.models.prompt_batch import PromptBatch, read_prompts
from absorb_pl.ranges import Count, check_ranges
from absorb_pl.saes.interface import SparseAutoencoder
from absorb_pl.saes.rows import encode


@dataclass
class PatchedAttribution:
    """Integrated-gradient scores by hook name, at every position of the prompts.

    Prompts of different lengths end in the last column; padding comes first and holds 0 throughout. Gradients of one
    prompt have no prompt axis, those of several have one.

    Attributes:
        model_attributions: Mean gradient times (corrupted - clean) at each tracked hook,
            `[prompts, tokens, d_model]`.
        model_activations: Clean activation at each tracked hook, `[prompts, tokens, d_model]`.
        model_grads: Mean gradient at each tracked hook, `[tokens, d_model]` or `[prompts, tokens, d_model]`.
        sae_feature_attributions: Mean gradient times (corrupted - clean) of each latent,
            `[prompts, tokens, latents]`.
        sae_feature_activations: Clean latents, `[prompts, tokens, latents]`.
        sae_feature_grads: Mean gradient by each latent, `[tokens, latents]` or `[prompts, tokens, latents]`.
        sae_error_grads: Mean gradient by the SAE's error, `[tokens, d_model]` or `[prompts, tokens, d_model]`; empty
            without error term.
        corrupted_model_activations: As `model_activations` on the corrupted prompts, if there are any.
        corrupted_sae_feature_activations: As `sae_feature_activations` on the corrupted prompts, if there are any.
    """

    model_attributions: dict[str, Tensor]
    model_activations: dict[str, Tensor]
    model_grads: dict[str, Tensor]
    sae_feature_attributions: dict[str, Tensor]
    sae_feature_activations: dict[str, Tensor]
    sae_feature_grads: dict[str, Tensor]
    sae_error_grads: dict[str, Tensor]
    corrupted_model_activations: dict[str, Tensor] | None
    corrupted_sae_feature_activations: dict[str, Tensor] | None


@fast_products()
def calculate_integrated_gradient_attribution_patching(
    model: HookedModel,
    input: Any,
    metric_fn: Metric,
    patch_indices: PatchIndices | None = None,
    corrupted_input: Any | None = None,
    track_hook_points: Sequence[str] | None = None,
    include_saes: Mapping[str, SparseAutoencoder] | None = None,
    return_logits: bool = True,
    include_error_term: bool = True,
    interpolation_steps: Count = 10,
    batch_size: Count = 1,
    extra_fwd_hooks: Sequence[FwdHook] | None = None,
) -> PatchedAttribution:
    """Score latents and activations by integrated gradients from clean to corrupted prompts, or to zero.

    One hook is moved at a time: at the patched positions its latents and SAE error (or its activation, for a
    tracked hook) go together from their clean to their corrupted values, at the points α = i / steps for
    i = 0 … steps - 1, and stay clean at all others. A score is the mean gradient times (corrupted - clean). Gradients
    are taken at every position, patched or not, and so are scores; where the two prompts differ in length, an
    unpatched position has no counterpart and scores 0. The method is that of Sparse Feature Circuits
    (arXiv 2403.19647), names and results those of the function of this name in the code of
    arXiv 2409.14507.

    While one SAE is moved, the others keep their error terms and so leave the model as it is. (The published
    function drops them there, so its scores with several SAEs are those of another model.)

    Several prompts are scored in one call as each is alone. Points on their paths run together, `batch_size` of all
    (point, prompt) pairs at a time; the metric is given all prompts at one point of the path, in order.

    Args:
        model: The language model.
        input: A prompt, a list of prompts, token ids `[tokens]` or `[prompts, tokens]`, or a list of ids `[tokens]`;
            prompts may differ in length.
        metric_fn: From logits `[prompts, tokens, vocab]` or loss to one value per prompt (see `Metric`).
        patch_indices: Positions to move in every prompt: one, several, or pairs (clean position, corrupted position),
            from the prompt's own end if negative; all if not given.
        corrupted_input: The prompts to move towards, one for each prompt; zero if not given.
        track_hook_points: Model hooks to score as well.
        include_saes: SAEs by hook name.
        return_logits: Give the metric logits rather than the loss; of one prompt, losses are computed a step at a time.
        include_error_term: Move the SAE's error along with its latents; without it, SAEs stand in for the model
            as they are.
        interpolation_steps: Number of points on the path.
        batch_size: Most (point, prompt) pairs in one run of the model.
        extra_fwd_hooks: Further `(hook name, function)` pairs, run after the SAEs in every run of the model.

    Returns:
        Scores, activations and mean gradients by hook name.

    Raises:
        HookNotFoundError: An SAE, a tracked hook or an extra hook names no hook of the model.
        PromptError: The input is no prompts, or a padded tensor that leaves open what is padding; a position is
            outside its prompt; there are not as many corrupted prompts as prompts; or two of them differ in length
            and no positions are given.
        ContextLengthError: A text has more tokens than the model takes.
        ShapeError: The metric does not return one value per prompt, or a hook has no token axis.
        NonFiniteError: The metric is NaN or infinite.
        AbsorbError: `interpolation_steps` or `batch_size` is not positive.

    Example:
        >>> from absorb_pl import load_language_model, load_sae
        >>> model, sae = load_language_model("speller"), load_sae("speller/l1-standard-w512-dense")
        >>> answer = model.tokenizer.encode(" C")[-1]
        >>> found = calculate_integrated_gradient_attribution_patching(
        ...     model,
        ...     " cat:",
        ...     lambda logits: logits[:, -1, answer],
        ...     patch_indices=-2,
        ...     include_saes={"blocks.1.hook_resid_post": sae},
        ... )
        >>> found.sae_feature_attributions["blocks.1.hook_resid_post"][0, -2].argmin()
        tensor(487)
    """
    check_ranges(calculate_integrated_gradient_attribution_patching, locals())
    saes = dict(include_saes or {})
    prompts = read_prompts(model, input)
    corrupted_prompts = None if corrupted_input is None else read_prompts(model, corrupted_input, "corrupted_input")
    if corrupted_prompts is not None and len(corrupted_prompts) != len(prompts):
        raise PromptError(
            "corrupted_input",
            f"{len(corrupted_prompts)} prompts",
            expected=f"one for each of {len(prompts)} prompts",
            remedy="Repeat a corrupted prompt that serves several.",
        )
    patch = _Patch(prompts, corrupted_prompts, *patch_columns(patch_indices, prompts, corrupted_prompts))

    def record(batch: PromptBatch) -> ApplySaesAndRunOutput:
        with torch.no_grad():
            return apply_saes_and_run(
                model,
                saes,
                batch,
                include_error_term=include_error_term,
                track_model_hooks=track_hook_points,
                return_type="logits" if return_logits else "loss",
                extra_fwd_hooks=extra_fwd_hooks,
            )

    clean = record(prompts)
    corrupted = None if corrupted_prompts is None else record(corrupted_prompts)
    clean_output = at_least_float32(clean.model_output)

    def mean_gradient(name: str, start: Tensor, end: Tensor) -> Tensor:
        standing = {} if include_error_term else {hook: sae for hook, sae in saes.items() if hook != name}

        def run(members: list[int], point: Tensor) -> Tensor:
            return apply_saes_and_run(
                model,
                standing,
                prompts.select(members),
                include_error_term=False,
                return_type="logits" if return_logits else "loss",
                extra_fwd_hooks=[(name, _instead(point)), *(extra_fwd_hooks or [])],
            ).model_output

        rows = batch_size if return_logits or len(prompts) > 1 else 1
        return _mean_gradient(model, run, metric_fn, clean_output, start, end, interpolation_steps, rows)

    model_grads, model_attributions = {}, {}
    for name, activation in clean.model_activations.items():
        other = None if corrupted is None else corrupted.model_activations[name]
        gradient = mean_gradient(name, activation, patch.moved(activation, other))
        model_attributions[name] = gradient * patch.difference(activation, other)
        model_grads[name] = patch.without_axis_of_one(gradient)
    sae_grads, sae_attributions, error_grads = {}, {}, {}
    for name, cache in clean.sae_activations.items():
        other = None if corrupted is None else corrupted.sae_activations[name]
        # padding is encoded as ones, since an SAE may divide by a norm
        acts = prompts.mask(encode(saes[name], prompts.mask(cache.sae_in, fill=1.0))).requires_grad_()
        with activation_gradients(model):
            moved = patch.moved(acts.detach(), None if other is None else other.feature_acts)
            decoded, end = saes[name].decode(torch.stack([acts, moved])).to(cache.sae_in.device)
        start, end = decoded.detach(), end.detach()
        if include_error_term:
            error = cache.sae_in - start
            start = cache.sae_in
            end = end + patch.moved(error, None if other is None else other.sae_error)
        gradient = mean_gradient(name, start, end)
        (by_latent,) = torch.autograd.grad(decoded, acts, gradient.to(decoded))
        by_latent = at_least_float32(by_latent)
        difference = patch.difference(acts.detach(), None if other is None else other.feature_acts)
        sae_attributions[name] = by_latent * difference
        sae_grads[name] = patch.without_axis_of_one(by_latent)
        if include_error_term:
            error_grads[name] = patch.without_axis_of_one(gradient)
    return PatchedAttribution(
        model_attributions=model_attributions,
        model_activations=clean.model_activations,
        model_grads=model_grads,
        sae_feature_attributions=sae_attributions,
        sae_feature_activations=_latents(clean),
        sae_feature_grads=sae_grads,
        sae_error_grads=error_grads,
        corrupted_model_activations=None if corrupted is None else corrupted.model_activations,
        corrupted_sae_feature_activations=None if corrupted is None else _latents(corrupted),
    )


@dataclass(frozen=True)
class _Patch:
    """Which positions of which prompts are moved, and where to."""

    clean: PromptBatch
    corrupted: PromptBatch | None
    rows: list[int]
    columns: list[int]
    end_columns: list[int]

    def moved(self, clean: Tensor, corrupted: Tensor | None) -> Tensor:
        """The clean values with those at the patched positions moved to their ends."""
        moved = clean.clone()
        moved[self.rows, self.columns] = 0 if corrupted is None else corrupted[self.rows, self.end_columns].to(clean)
        return moved

    def difference(self, clean: Tensor, corrupted: Tensor | None) -> Tensor:
        """Corrupted - clean at every position, position by position if nothing is paired."""
        if corrupted is None or self.corrupted is None:
            return -at_least_float32(clean)
        counterpart = clean.clone()
        for row, lengths in enumerate(zip(self.clean.lengths, self.corrupted.lengths, strict=True)):
            if lengths[0] == lengths[1]:
                counterpart[row, -lengths[0] :] = corrupted[row, -lengths[0] :].to(clean)
        return at_least_float32(self.moved(counterpart, corrupted)) - at_least_float32(clean)

    def without_axis_of_one(self, gradient: Tensor) -> Tensor:
        """Gradients of one prompt, `[tokens, ...]`, or of several, `[prompts, tokens, ...]`."""
        return gradient[0] if len(self.clean) == 1 else gradient


def _latents(run: ApplySaesAndRunOutput) -> dict[str, Tensor]:
    return {name: cache.feature_acts for name, cache in run.sae_activations.items()}


def _mean_gradient(
    model: HookedModel,
    run: Callable[[list[int], Tensor], Tensor],
    metric_fn: Metric,
    clean_output: Tensor,
    start: Tensor,
    end: Tensor,
    steps: int,
    batch_size: int,
) -> Tensor:
    """Mean gradient by the activation at a hook, `[prompts, tokens, ...]`, on the way from start to end."""
    start, end = at_least_float32(start), at_least_float32(end)
    count = len(start)
    alphas = torch.arange(steps, device=start.device, dtype=start.dtype) / steps
    gradients = []
    with activation_gradients(model):
        # step by step, and within a step prompt by prompt
        for pairs in torch.arange(steps * count).split(batch_size):
            members = pairs % count
            alpha = alphas[pairs // count].view(-1, *[1] * (start.ndim - 1))
            point = (start[members] + alpha * (end - start)[members]).requires_grad_()
            output = at_least_float32(run(members.tolist(), point))
            values = _metric_of_pairs(metric_fn, output, pairs, clean_output)
            gradients.append(torch.autograd.grad(values.sum(), point)[0])
    return torch.cat(gradients).unflatten(0, (steps, count)).mean(dim=0)


def _metric_of_pairs(metric_fn: Metric, output: Tensor, pairs: Tensor, clean_output: Tensor) -> Tensor:
    """The metric of (step, prompt) pairs; it is given all prompts of a step, those not run as they are when clean."""
    if clean_output.ndim == 0:
        values = check_metric(metric_fn(output), 1)
        check_finite(values)
        return values
    count = len(clean_output)
    output = output.view(len(pairs), *clean_output.shape[1:])
    values = []
    for members, part in _steps(pairs, output, count):
        whole = part if len(part) == count else clean_output.index_copy(0, members.to(part.device), part)
        values.append(check_metric(metric_fn(whole), count)[members])
    metric = torch.cat(values)
    check_finite(metric)
    return metric


def _steps(pairs: Tensor, output: Tensor, count: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Cut consecutive (step, prompt) pairs and what belongs to them between steps."""
    sizes = torch.unique_consecutive(pairs // count, return_counts=True)[1].tolist()
    return zip((pairs % count).split(sizes), output.split(sizes), strict=True)


def _instead(point: Tensor) -> Callable[..., Tensor]:
    def hook_fn(activation: Tensor, **_: Any) -> Tensor:
        return point.to(activation)

    return hook_fn
