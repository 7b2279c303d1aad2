"""Integrated-gradient attribution patching over whole prompts: any positions, several SAEs, model hooks."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from absorb_pl.attribution.gradients import Metric, activation_gradients, at_least_float32, check_metric
from absorb_pl.attribution.prefix import one_prompt, resolve_position
from absorb_pl.attribution.suffix import check_positive
from absorb_pl.errors import PromptError
from absorb_pl.models.splice import ApplySaesAndRunOutput, apply_saes_and_run, encode

PatchIndices = int | tuple[int, int] | Sequence[int | tuple[int, int]]


@dataclass
class PatchedAttribution:
    """Integrated-gradient scores by hook name, at every position of the prompt.

    Attributes:
        model_attributions: Mean gradient times (corrupted - clean) at each tracked hook,
            `[1, tokens, d_model]`.
        model_activations: Clean activation at each tracked hook, `[1, tokens, d_model]`.
        model_grads: Mean gradient at each tracked hook, `[tokens, d_model]`.
        sae_feature_attributions: Mean gradient times (corrupted - clean) of each latent,
            `[1, tokens, latents]`.
        sae_feature_activations: Clean latents, `[1, tokens, latents]`.
        sae_feature_grads: Mean gradient by each latent, `[tokens, latents]`.
        sae_error_grads: Mean gradient by the SAE's error, `[tokens, d_model]`; empty without error term.
        corrupted_model_activations: As `model_activations` on the corrupted prompt, if there is one.
        corrupted_sae_feature_activations: As `sae_feature_activations` on the corrupted prompt, if there is one.
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


def calculate_integrated_gradient_attribution_patching(
    model: Any,
    input: Any,
    metric_fn: Metric,
    patch_indices: PatchIndices | None = None,
    corrupted_input: Any | None = None,
    track_hook_points: Sequence[str] | None = None,
    include_saes: Mapping[str, Any] | None = None,
    return_logits: bool = True,
    include_error_term: bool = True,
    interpolation_steps: int = 10,
    batch_size: int = 1,
) -> PatchedAttribution:
    """Score latents and activations by integrated gradients from the clean to the corrupted prompt, or to zero.

    One hook is moved at a time: at the patched positions its latents and SAE error (or its activation, for a
    tracked hook) go together from their clean to their corrupted values, at the points α = i / steps for
    i = 0 … steps - 1, and stay clean at all others. A score is the mean gradient times (corrupted - clean). Gradients
    are taken at every position, patched or not, and so are scores; where the two prompts differ in length, an
    unpatched position has no counterpart and scores 0. The method is that of Sparse Feature Circuits
    (arXiv 2403.19647), names and results those of the function of this name in the code of
    arXiv 2409.14507.

    While one SAE is moved, the others keep their error terms and so leave the model as it is. (The published
    function drops them there, so its scores with several SAEs are those of another model.)

    Args:
        model: The language model.
        input: A prompt, a list of one, or token ids `[1, tokens]`.
        metric_fn: From logits `[rows, tokens, vocab]` (in float32 or better) or loss to one value a row.
        patch_indices: Positions to move: one, several, or pairs (clean position, corrupted position), from the
            end if negative; all if not given.
        corrupted_input: The prompt to move towards; zero if not given.
        track_hook_points: Model hooks to score as well.
        include_saes: SAEs by hook name.
        return_logits: Give the metric logits rather than the loss; losses are computed a step at a time.
        include_error_term: Move the SAE's error along with its latents; without it, SAEs stand in for the model
            as they are.
        interpolation_steps: Number of points on the path.
        batch_size: Most points in one run of the model.

    Returns:
        Scores, activations and mean gradients by hook name.

    Raises:
        HookNotFoundError: An SAE or a tracked hook names no hook of the model.
        PromptError: A position is outside its prompt, there are several prompts, or the prompts differ in
            length and no positions are given.
        ShapeError: The metric does not return one value a row.
        AbsorbError: `interpolation_steps` or `batch_size` is not positive.

    Example:
        >>> def example(model, sae, token):
        ...     hook = "blocks.1.hook_resid_post"
        ...     found = calculate_integrated_gradient_attribution_patching(
        ...         model,
        ...         " cat has the first letter:",
        ...         lambda logits: logits[:, -1, token],
        ...         patch_indices=-6,
        ...         include_saes={hook: sae},
        ...         interpolation_steps=6,
        ...         batch_size=6,
        ...     )
        ...     return found.sae_feature_attributions[hook][0, -6].argmin()
    """
    check_positive(interpolation_steps=interpolation_steps, batch_size=batch_size)
    saes = dict(include_saes or {})
    tokens = one_prompt(model, input)
    corrupted_tokens = None if corrupted_input is None else one_prompt(model, corrupted_input)
    length = tokens.shape[1]
    end_length = length if corrupted_tokens is None else corrupted_tokens.shape[1]
    pairs = _patch_pairs(patch_indices, length, end_length)

    def record(prompt: Tensor) -> ApplySaesAndRunOutput:
        with torch.no_grad():
            return apply_saes_and_run(
                model,
                saes,
                prompt,
                include_error_term=include_error_term,
                track_model_hooks=track_hook_points,
            )

    clean = record(tokens)
    corrupted = None if corrupted_tokens is None else record(corrupted_tokens)

    def mean_gradient(name: str, start: Tensor, end: Tensor) -> Tensor:
        standing = {} if include_error_term else {hook: sae for hook, sae in saes.items() if hook != name}
        rows = batch_size if return_logits else 1
        return _mean_gradient(
            model, standing, tokens, metric_fn, name, start, end, interpolation_steps, rows, return_logits
        )

    model_grads, model_attributions = {}, {}
    for name, activation in clean.model_activations.items():
        other = None if corrupted is None else corrupted.model_activations[name]
        end = _moved(activation, other, pairs)
        model_grads[name] = mean_gradient(name, activation, end)
        model_attributions[name] = model_grads[name] * _difference(activation, other, pairs)
    sae_grads, sae_attributions, error_grads = {}, {}, {}
    for name, cache in clean.sae_activations.items():
        other = None if corrupted is None else corrupted.sae_activations[name]
        acts = encode(saes[name], cache.sae_in).requires_grad_()
        with activation_gradients(model):
            moved = _moved(acts.detach(), None if other is None else other.feature_acts, pairs)
            decoded, end = saes[name].decode(torch.stack([acts, moved])).to(cache.sae_in.device)
        start, end = decoded.detach(), end.detach()
        if include_error_term:
            error = cache.sae_in - start
            start = cache.sae_in
            end = end + _moved(error, None if other is None else other.sae_error, pairs)
        gradient = mean_gradient(name, start, end)
        (by_latent,) = torch.autograd.grad(decoded, acts, gradient[None].to(decoded))
        sae_grads[name] = at_least_float32(by_latent[0])
        difference = _difference(acts.detach(), None if other is None else other.feature_acts, pairs)
        sae_attributions[name] = sae_grads[name] * difference
        if include_error_term:
            error_grads[name] = gradient
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


def _patch_pairs(indices: PatchIndices | None, length: int, end_length: int) -> tuple[list[int], list[int]]:
    """Clean positions and the corrupted positions they move to."""
    if indices is None:
        if length != end_length:
            raise PromptError(
                "patch_indices",
                None,
                expected=f"positions, since the prompts have {length} and {end_length} tokens",
                remedy="Pair positions of the two prompts: [(clean, corrupted), …].",
            )
        return list(range(length)), list(range(length))
    given: Any = indices
    listed = [given] if _is_pair(given) or not isinstance(given, Sequence) else list(given)
    pairs = [index if _is_pair(index) else (index, index) for index in listed]
    return (
        [resolve_position("patch_indices", int(start), length) for start, _ in pairs],
        [resolve_position("patch_indices", int(end), end_length) for _, end in pairs],
    )


def _is_pair(index: Any) -> bool:
    return isinstance(index, tuple) and len(index) == 2


def _moved(clean: Tensor, corrupted: Tensor | None, pairs: tuple[list[int], list[int]]) -> Tensor:
    """The clean values with those at the patched positions moved to their ends."""
    positions, ends = pairs
    moved = clean.clone()
    moved[:, positions] = 0 if corrupted is None else corrupted[:, ends].to(clean)
    return moved


def _difference(clean: Tensor, corrupted: Tensor | None, pairs: tuple[list[int], list[int]]) -> Tensor:
    """Corrupted - clean at every position, position by position where nothing is paired."""
    if corrupted is None:
        return -at_least_float32(clean)
    counterpart = corrupted if corrupted.shape == clean.shape else clean
    return at_least_float32(_moved(counterpart, corrupted, pairs)) - at_least_float32(clean)


def _latents(run: ApplySaesAndRunOutput) -> dict[str, Tensor]:
    return {name: cache.feature_acts for name, cache in run.sae_activations.items()}


def _mean_gradient(
    model: Any,
    saes: Mapping[str, Any],
    tokens: Tensor,
    metric_fn: Metric,
    hook_name: str,
    start: Tensor,
    end: Tensor,
    steps: int,
    batch_size: int,
    return_logits: bool,
) -> Tensor:
    """Mean gradient by the activation at a hook, `[tokens, d_model]`, on the way from start to end."""
    start, end = at_least_float32(start), at_least_float32(end)
    alphas = torch.arange(steps, device=start.device, dtype=start.dtype) / steps
    gradients = []
    with activation_gradients(model):
        for part in alphas.split(batch_size):
            alpha = part.view(-1, *[1] * (start.ndim - 1))
            point = (start + alpha * (end - start)).requires_grad_()
            output = apply_saes_and_run(
                model,
                saes,
                tokens.expand(len(part), -1),
                include_error_term=False,
                return_type="logits" if return_logits else "loss",
                extra_fwd_hooks=[(hook_name, _instead(point))],
            ).model_output
            values = check_metric(metric_fn(at_least_float32(output)), len(part))
            gradients.append(torch.autograd.grad(values.sum(), point)[0])
    return torch.cat(gradients).mean(dim=0)


def _instead(point: Tensor) -> Callable[..., Tensor]:
    def hook_fn(activation: Tensor, **_: Any) -> Tensor:
        return point.to(activation.dtype)

    return hook_fn
