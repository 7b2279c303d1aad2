"""Gradients of a metric by SAE latents and model activations, and the attributions they give."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from absorb_pl.engine.splice import FwdHook, SaeReconstructionCache, apply_saes_and_run
from absorb_pl.errors import AbsorbError, NonFiniteError, ShapeError
from absorb_pl.functional.precision import at_least_float32
from absorb_pl.matrix_products import fast_products
from absorb_pl.models.hooked_model import HookedModel
from absorb_pl.models.quantized import keep_gradients
from absorb_pl.saes.interface import SparseAutoencoder

Metric = Callable[[Tensor], Tensor]
"""From the model's output to one value per prompt.

The output is logits `[prompts, tokens, vocab]`, in float32 or better, or the loss: one number for one prompt,
`[prompts]` for several. The prompts' ends share the last column, so `logits[:, -1, token]` reads the last token of
each; padding comes first and holds NaN, so that a metric which reads it is found out.
"""


@dataclass
class AttributionGrads:
    """A run whose recorded activations carry the metric's gradient in `.grad`.

    Attributes:
        metric: What the metric returned.
        model_output: Logits, NaN at padding, or loss.
        model_activations: Activation at each tracked hook, `[prompts, tokens, d_model]`, 0 at padding.
        sae_activations: What each SAE saw and made, by hook name, 0 at padding.
    """

    metric: Tensor
    model_output: Tensor
    model_activations: dict[str, Tensor]
    sae_activations: dict[str, SaeReconstructionCache]


@dataclass
class Attribution:
    """Gradient times activation, by hook name; SAE tensors are `[prompts, tokens, latents]`.

    Prompts of different lengths end in the last column; padding comes first and holds 0 throughout.

    Attributes:
        model_attributions: Gradient times activation at each tracked hook.
        model_activations: Activation at each tracked hook.
        model_grads: Gradient at each tracked hook.
        sae_feature_attributions: Gradient times activation of each latent.
        sae_feature_activations: Activation of each latent.
        sae_feature_grads: Gradient by each latent.
        sae_error_grads: Gradient by the SAE's error, `[prompts, tokens, d_model]`; empty without error term.
    """

    model_attributions: dict[str, Tensor]
    model_activations: dict[str, Tensor]
    model_grads: dict[str, Tensor]
    sae_feature_attributions: dict[str, Tensor]
    sae_feature_activations: dict[str, Tensor]
    sae_feature_grads: dict[str, Tensor]
    sae_error_grads: dict[str, Tensor]


@fast_products()
def calculate_attribution_grads(
    model: HookedModel,
    prompt: Any,
    metric_fn: Metric,
    track_hook_points: Sequence[str] | None = None,
    include_saes: Mapping[str, SparseAutoencoder] | None = None,
    return_logits: bool = True,
    include_error_term: bool = True,
    extra_fwd_hooks: Sequence[FwdHook] | None = None,
) -> AttributionGrads:
    """Run the model with SAEs spliced in and take the metric back to everything recorded.

    Only the recorded activations receive gradients; the parameters' are left as they are.

    Args:
        model: The language model.
        prompt: A prompt, a list of prompts, token ids `[tokens]` or `[prompts, tokens]`, or a list of ids `[tokens]`;
            prompts may differ in length and have the gradients they have alone.
        metric_fn: From logits or loss to one value per prompt (see `Metric`), or one value in all, a sum over prompts.
        track_hook_points: Hooks whose activations are recorded as well.
        include_saes: SAEs by hook name.
        return_logits: Give the metric logits rather than the loss.
        include_error_term: Add back what the SAEs do not reconstruct, so that the output is unchanged.
        extra_fwd_hooks: Further `(hook name, function)` pairs.

    Returns:
        The run, gradients in `.grad`.

    Raises:
        HookNotFoundError: An SAE, a tracked hook or an extra hook names no hook of the model.
        PromptError: The input is no prompts, or a padded tensor that leaves open what is padding.
        ContextLengthError: A text has more tokens than the model takes.
        ShapeError: The metric is neither one value per prompt nor one value, or a hook has no token axis.
        NonFiniteError: The metric is NaN or infinite.

    Example:
        >>> from absorb_pl import load_language_model, load_sae
        >>> model, sae = load_language_model("speller"), load_sae("speller/l1-standard-w512-dense")
        >>> answer = model.tokenizer.encode(" C")[-1]
        >>> run = calculate_attribution_grads(
        ...     model, " cat:", lambda logits: logits[:, -1, answer], include_saes={"blocks.1.hook_resid_post": sae}
        ... )
        >>> run.sae_activations["blocks.1.hook_resid_post"].feature_acts.grad.shape
        torch.Size([1, 3, 512])
    """
    with activation_gradients(model):
        run = apply_saes_and_run(
            model,
            saes=include_saes or {},
            input=prompt,
            include_error_term=include_error_term,
            track_model_hooks=track_hook_points,
            return_type="logits" if return_logits else "loss",
            track_grads=True,
            extra_fwd_hooks=extra_fwd_hooks,
        )
        metric = metric_fn(at_least_float32(run.model_output))
        if metric.ndim:
            check_metric(metric, len(run.model_output) if run.model_output.ndim else 1)
        check_finite(metric)
        run.zero_grad()
        tracked = run.tracked()
        if tracked and metric.requires_grad:
            torch.autograd.backward(metric.sum(), inputs=tracked)
    return AttributionGrads(metric, run.model_output, run.model_activations, run.sae_activations)


def calculate_feature_attribution(
    model: HookedModel,
    input: Any,
    metric_fn: Metric,
    track_hook_points: Sequence[str] | None = None,
    include_saes: Mapping[str, SparseAutoencoder] | None = None,
    return_logits: bool = True,
    include_error_term: bool = True,
    extra_fwd_hooks: Sequence[FwdHook] | None = None,
) -> Attribution:
    """Attribute a metric to SAE latents and model activations: gradient times activation.

    To first order, what the metric would lose if the latent were 0, with the sign turned. The method is that of
    the Transformer Circuits update of March 2024 ("feature heads"), as in the code of the paper
    (arXiv 2409.14507).

    Args:
        model: The language model.
        input: A prompt, a list of prompts, token ids `[tokens]` or `[prompts, tokens]`, or a list of ids `[tokens]`;
            prompts may differ in length and have the gradients they have alone.
        metric_fn: From logits or loss to one value per prompt (see `Metric`), or one value in all, a sum over prompts.
        track_hook_points: Hooks whose activations are attributed to as well.
        include_saes: SAEs by hook name.
        return_logits: Give the metric logits rather than the loss.
        include_error_term: Add back what the SAEs do not reconstruct, so that the output is unchanged.
        extra_fwd_hooks: Further `(hook name, function)` pairs.

    Returns:
        Attributions, activations and gradients by hook name.

    Raises:
        HookNotFoundError: An SAE, a tracked hook or an extra hook names no hook of the model.
        PromptError: The input is no prompts, or a padded tensor that leaves open what is padding.
        ContextLengthError: A text has more tokens than the model takes.
        ShapeError: The metric is neither one value per prompt nor one value, or a hook has no token axis.
        NonFiniteError: The metric is NaN or infinite.

    Example:
        >>> from absorb_pl import load_language_model, load_sae
        >>> model, sae = load_language_model("speller"), load_sae("speller/l1-standard-w512-dense")
        >>> answer = model.tokenizer.encode(" C")[-1]
        >>> found = calculate_feature_attribution(
        ...     model, " cat:", lambda logits: logits[:, -1, answer], include_saes={"blocks.1.hook_resid_post": sae}
        ... )
        >>> found.sae_feature_attributions["blocks.1.hook_resid_post"][0, -2].argmax()
        tensor(487)
    """
    run = calculate_attribution_grads(
        model,
        input,
        metric_fn,
        track_hook_points,
        include_saes=include_saes,
        return_logits=return_logits,
        include_error_term=include_error_term,
        extra_fwd_hooks=extra_fwd_hooks,
    )
    model_grads = {name: _grad(activation) for name, activation in run.model_activations.items()}
    model_activations = {name: act.detach().clone() for name, act in run.model_activations.items()}
    latents = {name: cache.feature_acts for name, cache in run.sae_activations.items()}
    sae_grads = {name: _grad(acts) for name, acts in latents.items()}
    sae_activations = {name: acts.detach().clone() for name, acts in latents.items()}
    errors = run.sae_activations if include_error_term else {}
    return Attribution(
        model_attributions={name: grad * model_activations[name] for name, grad in model_grads.items()},
        model_activations=model_activations,
        model_grads=model_grads,
        sae_feature_attributions={name: grad * sae_activations[name] for name, grad in sae_grads.items()},
        sae_feature_activations=sae_activations,
        sae_feature_grads=sae_grads,
        sae_error_grads={name: _grad(cache.sae_error) for name, cache in errors.items()},
    )


def check_metric(values: Tensor, count: int) -> Float[Tensor, " prompts"]:
    """Insist that a metric gives one value per prompt.

    Args:
        values: What the metric returned.
        count: Number of prompts it was given.

    Returns:
        The values; a bare number becomes a row of one.

    Raises:
        ShapeError: There is another number of values.

    Example:
        >>> check_metric(torch.tensor(2.0), 1)
        tensor([2.])
    """
    if values.shape == () and count == 1:
        return values[None]
    if values.shape != (count,):
        raise ShapeError(
            "metric",
            tuple(values.shape),
            expected=f"one value per prompt, shape ({count},)",
            remedy="Index or reduce over tokens and vocabulary only: `logits[:, -1, token]`.",
        )
    return values


def check_finite(values: Tensor) -> None:
    """Refuse a metric that is NaN or infinite.

    Args:
        values: What the metric returned.

    Raises:
        NonFiniteError: A value is not finite.

    Example:
        >>> check_finite(torch.tensor([1.0, 2.0]))
    """
    if not values.isfinite().all():
        raise NonFiniteError(
            "metric",
            values.detach().flatten().tolist(),
            expected="finite values",
            remedy="Count positions from the end, `logits[:, -1, token]`: padding comes first and holds NaN.",
        )


@contextmanager
def activation_gradients(model: object) -> Iterator[None]:
    """Record gradients of activations, not of the model's parameters, for the length of a `with` block.

    Works inside `torch.no_grad()`, and not inside `torch.inference_mode()`, which cannot be lifted for tensors
    made in it.

    Args:
        model: A module whose parameters to leave out; anything else is left alone.

    Yields:
        Nothing.

    Raises:
        AbsorbError: Inference mode is on, or the model's weights are packed so that gradients are lost.

    Example:
        >>> layer = torch.nn.Linear(2, 2)
        >>> with activation_gradients(layer):
        ...     layer(torch.ones(2)).requires_grad, layer(torch.ones(2, requires_grad=True)).requires_grad
        (False, True)
    """
    keep_gradients(model)
    if torch.is_inference_mode_enabled():
        raise AbsorbError(
            "torch.inference_mode",
            True,
            expected="a place where gradients can be taken",
            remedy="Use `Trainer(inference_mode=False)`, or `torch.no_grad()` around the call.",
        )
    parameters = list(model.parameters()) if isinstance(model, nn.Module) else []
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        with torch.enable_grad():
            yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


def _grad(tensor: Tensor) -> Tensor:
    return torch.zeros_like(tensor) if tensor.grad is None else tensor.grad.detach().clone()
