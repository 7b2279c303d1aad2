"""Run a language model with SAEs spliced into its hooks, keeping what is needed for gradients."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from absorb_pl.errors import PromptError
from absorb_pl.models.hooked_model import HookedModel
from absorb_pl.models.language_model import check_hook
from absorb_pl.models.prompt_batch import PromptBatch, check_causal, read_prompts
from absorb_pl.saes.interface import SparseAutoencoder

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
        model_output: Logits `[prompts, tokens, vocab]`, NaN at padding; or the loss, one per prompt `[prompts]` if
            there are several.
        model_activations: Activation at each tracked hook, after any SAE spliced in there; 0 at padding.
        sae_activations: What each SAE saw and made, by hook name; 0 at padding.
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
    model: HookedModel,
    saes: Mapping[str, SparseAutoencoder],
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

    Prompts may differ in length. Each is computed as it is alone, and everything is returned with the prompts'
    ends in the last column and padding in front, so that position -1 is the last token of each: count positions from
    the end. Extra hooks see and return activations in this arrangement too.

    Args:
        model: The language model.
        saes: SAEs by hook name.
        input: A prompt, a list of prompts, token ids `[tokens]` or `[prompts, tokens]`, or a list of ids `[tokens]`;
            see `read_prompts`.
        include_error_term: Add back what the SAE does not reconstruct.
        track_model_hooks: Hooks whose activations are recorded as well.
        return_type: `"logits"`, or `"loss"` for the model's mean next-token loss on each prompt.
        track_grads: Make every recorded activation keep its gradient.
        extra_fwd_hooks: Further `(hook name, function)` pairs, run after the SAEs and the recording.

    Returns:
        The model's output and all recorded activations.

    Raises:
        HookNotFoundError: An SAE, a tracked hook or an extra hook names no hook of the model.
        PromptError: The input is no prompts, or a padded tensor that leaves open what is padding; a loss is asked of a
            prompt of one token; or prompts differ in length and the model attends to both sides.
        ContextLengthError: A text has more tokens than the model takes.
        ShapeError: Prompts differ in length and a hook has no token axis (attention patterns and scores).

    Example:
        >>> from absorb_pl import load_language_model, load_sae
        >>> model, sae = load_language_model("speller"), load_sae("speller/l1-standard-w512-dense")
        >>> run = apply_saes_and_run(model, {"blocks.1.hook_resid_post": sae}, " cat:")
        >>> run.sae_activations["blocks.1.hook_resid_post"].feature_acts.shape
        torch.Size([1, 3, 512])
    """
    tracked_names = list(track_model_hooks or [])
    extra_hooks = list(extra_fwd_hooks or [])
    for name in [*saes, *tracked_names, *(name for name, _ in extra_hooks)]:
        check_hook(model, name)
    prompts = read_prompts(model, input)
    check_causal(model, prompts)
    sae_activations: dict[str, SaeReconstructionCache] = {}
    model_activations: dict[str, Tensor] = {}

    def splice(activation: Tensor, *, name: str, **_: Any) -> Tensor:
        shifted = prompts.shift(activation)
        sae_in = prompts.mask(shifted)
        if track_grads:
            sae_in = _keep_grad(sae_in)
        sae = saes[name]
        # padding is encoded as it comes, since an SAE may divide by a norm, and dropped afterwards
        feature_acts = prompts.mask(sae.encode(shifted.detach().to(sae.W_dec)))
        if track_grads:
            feature_acts = _keep_grad(feature_acts)
        sae_out = prompts.mask(sae.decode(feature_acts).to(sae_in.device))
        sae_error = (sae_in - sae_out).detach()
        if track_grads:
            sae_out, sae_error = _keep_grad(sae_out), _keep_grad(sae_error)
        sae_activations[name] = SaeReconstructionCache(sae_in, feature_acts, sae_out, sae_error)
        spliced = sae_out + sae_error if include_error_term else sae_out
        if sae_in.requires_grad:
            # adds zero, and carries the gradient past the SAE
            spliced = spliced + (sae_in - sae_in.detach())
        return prompts.restore(spliced.to(sae_in.dtype), activation)

    def record(activation: Tensor, *, name: str, **_: Any) -> Tensor:
        prompts.check_token_axis(name, activation)
        aligned = prompts.align(activation)
        model_activations[name] = _keep_grad(aligned) if track_grads else aligned
        return prompts.restore(aligned, activation)

    fwd_hooks = [(name, partial(splice, name=name)) for name in saes]
    fwd_hooks += [(name, partial(record, name=name)) for name in tracked_names]
    fwd_hooks += [(name, _aligned(prompts, name, hook)) for name, hook in extra_hooks]
    with model.hooks(fwd_hooks=fwd_hooks):
        if return_type == "loss":
            return ApplySaesAndRunOutput(_losses(model, prompts), model_activations, sae_activations)
        model_output = prompts.align(model(prompts.token_ids, return_type=return_type), fill=torch.nan)
    return ApplySaesAndRunOutput(model_output, model_activations, sae_activations)


def _keep_grad(tensor: Tensor) -> Tensor:
    tensor.requires_grad_(True)
    tensor.retain_grad()
    return tensor


def _aligned(prompts: PromptBatch, name: str, hook: Callable[..., Tensor | None]) -> Callable[..., Tensor | None]:
    """A hook that sees and returns activations with the prompts' ends in the last column."""
    if prompts.is_even:
        return hook

    def aligned_hook(activation: Tensor, **options: Any) -> Tensor:
        prompts.check_token_axis(name, activation)
        seen = prompts.align(activation)
        changed = hook(seen, **options)
        return prompts.restore(seen if changed is None else changed, activation)

    return aligned_hook


def _losses(model: HookedModel, prompts: PromptBatch) -> Tensor:
    """The model's own mean loss on one prompt, `[]`, or on each of several, `[prompts]`."""
    if min(prompts.lengths) < 2:
        raise PromptError(
            "input",
            f"prompt {prompts.lengths.index(min(prompts.lengths))} of one token",
            expected="at least two tokens, for a next-token loss",
            remedy="Lengthen the prompt, or take a metric of logits.",
        )
    if len(prompts) == 1 and prompts.is_even:
        return model(prompts.token_ids, return_type="loss")
    by_token = model(prompts.token_ids, return_type="loss", loss_per_token=True)
    counts = torch.tensor(prompts.lengths, device=by_token.device) - 1
    predicted = torch.arange(by_token.shape[1], device=by_token.device) < counts[:, None]
    return by_token.masked_fill(~predicted, 0).sum(dim=1) / counts
