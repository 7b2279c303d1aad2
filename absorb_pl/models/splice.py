"""Run a language model with SAEs spliced into its hooks, keeping what is needed for gradients."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from absorb_pl.models.language_model import check_hook
from absorb_pl.models.sae import require_rows

FwdHook = tuple[str, Callable[..., Tensor | None]]


class SaeReconstructionCache(NamedTuple):
    """What an SAE saw and made at its hook during one run.

    Attributes:
        sae_in: Activations that came to the hook, `[prompts, tokens, d_model]`.
        feature_acts: Latents, `[prompts, tokens, latents]`.
        sae_out: The reconstruction, shaped as `sae_in`.
        sae_error: `sae_in - sae_out`, a constant to gradients.
    """

    sae_in: Tensor
    feature_acts: Tensor
    sae_out: Tensor
    sae_error: Tensor


@dataclass
class ApplySaesAndRunOutput:
    """Outcome of `apply_saes_and_run`.

    Attributes:
        model_output: Logits `[prompts, tokens, vocab]`, or the loss.
        model_activations: Activation at each tracked hook, behind any SAE spliced in there.
        sae_activations: What each SAE saw and made, by hook name.
    """

    model_output: Tensor
    model_activations: dict[str, Tensor]
    sae_activations: dict[str, SaeReconstructionCache]

    def tracked(self) -> list[Tensor]:
        """All recorded activations: the model's, then four tensors an SAE."""
        recorded = list(self.model_activations.values())
        for cache in self.sae_activations.values():
            recorded.extend(cache)
        return recorded

    def zero_grad(self) -> None:
        """Forget the gradients of the output and of every recorded activation."""
        self.model_output.grad = None
        for tensor in self.tracked():
            tensor.grad = None


def apply_saes_and_run(
    model: Any,
    saes: Mapping[str, Any],
    input: Any,
    include_error_term: bool = True,
    track_model_hooks: Sequence[str] | None = None,
    return_type: Literal["logits", "loss"] = "logits",
    track_grads: bool = False,
    extra_fwd_hooks: Sequence[FwdHook] | None = None,
) -> ApplySaesAndRunOutput:
    """Run the model with each SAE's reconstruction in place of the activation at its hook.

    With the error term the model's output is unchanged. Backwards, the activation that came to a hook
    receives the gradient of what left it, as if nothing had been spliced in, so that SAEs at several hooks do not dim
    one another's gradients; the latents receive theirs through the decoder. This is the arrangement of the
    function of this name in the code of the paper (arXiv 2409.14507).

    Args:
        model: The language model.
        saes: SAEs by hook name.
        input: A prompt, a list of prompts, or token ids `[prompts, tokens]`.
        include_error_term: Add back what the SAE does not reconstruct.
        track_model_hooks: Hooks whose activations are recorded as well.
        return_type: `"logits"`, or `"loss"` for the model's mean next-token loss.
        track_grads: Make every recorded activation keep its gradient.
        extra_fwd_hooks: Further `(hook name, function)` pairs, run behind the SAEs and the recording.

    Returns:
        The model's output and all recorded activations.

    Raises:
        HookNotFoundError: An SAE, a tracked hook or an extra hook names no hook of the model.

    Example:
        >>> def example(model, sae):
        ...     hook = "blocks.1.hook_resid_post"
        ...     run = apply_saes_and_run(model, {hook: sae}, " cat has the first letter:")
        ...     return run.sae_activations[hook].feature_acts
    """
    tracked_names = list(track_model_hooks or [])
    extra_hooks = list(extra_fwd_hooks or [])
    for name in [*saes, *tracked_names, *(name for name, _ in extra_hooks)]:
        check_hook(model, name)
    sae_activations: dict[str, SaeReconstructionCache] = {}
    model_activations: dict[str, Tensor] = {}

    def splice(sae_in: Tensor, *, name: str, **_: Any) -> Tensor:
        if track_grads:
            sae_in = _keep_grad(sae_in)
        sae = saes[name]
        feature_acts = sae.encode(sae_in.detach().to(sae.W_dec))
        if track_grads:
            feature_acts = _keep_grad(feature_acts)
        sae_out = sae.decode(feature_acts).to(sae_in.device)
        sae_error = (sae_in - sae_out).detach()
        if track_grads:
            sae_out, sae_error = _keep_grad(sae_out), _keep_grad(sae_error)
        sae_activations[name] = SaeReconstructionCache(sae_in, feature_acts, sae_out, sae_error)
        spliced = sae_out + sae_error if include_error_term else sae_out
        if sae_in.requires_grad:
            # adds zero, and carries the gradient past the SAE
            spliced = spliced + (sae_in - sae_in.detach())
        return spliced.to(sae_in.dtype)

    def record(activation: Tensor, *, name: str, **_: Any) -> Tensor:
        model_activations[name] = _keep_grad(activation) if track_grads else activation
        return activation

    fwd_hooks = [(name, partial(splice, name=name)) for name in saes]
    fwd_hooks += [(name, partial(record, name=name)) for name in tracked_names]
    with model.hooks(fwd_hooks=[*fwd_hooks, *extra_hooks]):
        model_output = model(input, return_type=return_type)
    return ApplySaesAndRunOutput(model_output, model_activations, sae_activations)


def encode(sae: Any, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Latents of activations on the SAE's own device and in its precision, without gradients.

    An SAE that normalises its input keeps the norm for the next `decode`, and for one only.

    Args:
        sae: Anything with `encode`, `decode` and `W_dec`.
        x: Activations at its hook, `[..., d_model]`.

    Returns:
        Latents, `[..., latents]`.

    Raises:
        SaeArchitectureError: Single rows are given to an SAE whose latents depend on earlier tokens.

    Example:
        >>> import torch
        >>> from types import SimpleNamespace
        >>> encode(SimpleNamespace(W_dec=torch.eye(2), encode=torch.relu), torch.tensor([1.0, -2.0]))
        tensor([1., 0.])
    """
    if x.ndim == 2:
        require_rows(sae)
    with torch.no_grad():
        return sae.encode(x.to(sae.W_dec)).detach()


def _keep_grad(tensor: Tensor) -> Tensor:
    tensor.requires_grad_(True)
    tensor.retain_grad()
    return tensor
