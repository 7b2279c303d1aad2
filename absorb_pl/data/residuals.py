"""Residual activations at the words, or at all tokens, read in one forward pass that stops after the deepest hook."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from absorb_pl.engine.bare import bare_model
from absorb_pl.engine.prefix_attention import AttentionRun, PrefixStates
from absorb_pl.matrix_products import fast_products
from absorb_pl.models.next_token import has_next_token_logits


class _AllRead(Exception):
    """Ends a forward pass once every hook asked for has fired."""


@fast_products()
@torch.no_grad()
def read_residuals(
    model: Any,
    input_ids: Int[Tensor, "prompts tokens"],
    attention_mask: Bool[Tensor, "prompts tokens"],
    positions: Int[Tensor, " prompts"],
    hook_names: Sequence[str],
) -> dict[str, Float[Tensor, "prompts d_hook"]]:
    """Activations at one position of each prompt, for several hooks at once.

    The pass ends as soon as the last of the hooks has fired, whatever the model's architecture, so layers after
    the deepest hook and the unembedding cost nothing. A model that reads from left to right is not given the tokens
    after the last of the positions either.

    Args:
        model: A `TransformerBridge`.
        input_ids: Right-padded token ids.
        attention_mask: True at tokens, False at padding.
        positions: Where to read in each prompt.
        hook_names: TransformerLens hook names; heads of a hook with a head axis are laid side by side.

    Returns:
        One matrix per hook, in the model's dtype.
    """
    prompts = torch.arange(len(positions), device=input_ids.device)
    if has_next_token_logits(model):
        seen = int(positions.max()) + 1
        input_ids, attention_mask = input_ids[:, :seen], attention_mask[:, :seen]
    # Without padding the mask is left out, so that a batch does not depend on which other batches were padded.
    mask = None if bool(attention_mask.all()) else attention_mask

    def at_positions(activations: Tensor) -> Tensor:
        return activations[prompts.to(activations.device), positions.to(activations.device)].flatten(1)

    return _read(model, input_ids, mask, hook_names, at_positions)


@fast_products()
@torch.no_grad()
def read_contexts(
    model: Any, input_ids: Int[Tensor, "contexts tokens"], hook_names: Sequence[str]
) -> dict[str, Float[Tensor, "contexts tokens d_hook"]]:
    """Activations at all tokens of contexts without padding, for several hooks at once; the pass ends as above.

    Models that can be run out of their wrappers (`bare_model`) are, which takes less time; whether they can is tried on
    the first context, all of the model, and again on longer ones. Hooks of TransformerLens are heard; such as are
    placed on Hugging Face's modules by other ways are not.

    Args:
        model: A `TransformerBridge`.
        input_ids: Token ids.
        hook_names: TransformerLens hook names; heads of a hook with a head axis are laid side by side.

    Returns:
        One tensor per hook, in the model's dtype.
    """
    bare = bare_model(model) if has_next_token_logits(model) else None
    if bare is not None:
        sites = {name: bare.site(model, name, input_ids[:1], input_ids.shape[1] // 2) for name in hook_names}
        known = [site for site in sites.values() if site is not None]
        if len(known) == len(sites):
            _, found = bare.read(input_ids, AttentionRun(PrefixStates()), known)
            return {name: found[site] for name, site in zip(sites, known, strict=True)}
    return _read(model, input_ids, None, hook_names, lambda activations: activations.flatten(2))


def _read(
    model: Any,
    input_ids: Tensor,
    mask: Tensor | None,
    hook_names: Sequence[str],
    pick: Callable[[Tensor], Tensor],
) -> dict[str, Tensor]:
    """What `pick` takes of the activations of each hook, in a pass that ends after the last of them."""
    found: dict[str, Tensor] = {}

    def keep(activations: Tensor, name: str, **_: Any) -> None:
        found[name] = pick(activations).to(input_ids.device)
        if len(found) == len(hook_names):
            raise _AllRead

    fwd_hooks = [(name, partial(keep, name=name)) for name in hook_names]
    options = {"use_cache": False} if hasattr(model.original_model.config, "use_cache") else {}
    try:
        with model.hooks(fwd_hooks=fwd_hooks):
            model.original_model(input_ids=input_ids, attention_mask=mask, **options)
    except _AllRead:
        pass
    return found
