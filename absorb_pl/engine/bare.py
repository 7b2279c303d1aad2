"""A hooked model's weights in Hugging Face's own modules, run from the middle: no wrappers, no copies, no hooks.

Between the steps of an integrated gradient only one activation changes. Everything before it in depth (earlier blocks)
and in the text (earlier tokens) stays, and need not be run again: blocks before the change are skipped, and keys and
values of the prefix are read (see `prefix_attention`). A bare model is used only if it was seen to give what the
hooked model gives.
"""

import inspect
import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from absorb_pl.engine.prefix_attention import (
    AttentionRun,
    PrefixComplete,
    PrefixStates,
    attention_run,
)
from absorb_pl.engine.unwrapped import unwrapped, wrappers
from absorb_pl.models.hooked_model import HookedModel
from absorb_pl.models.placement import model_device

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class Site:
    """Where a hook's activation is in a bare model.

    Attributes:
        block: First block that must run for it; the number of blocks where none must.
        module: Module inside that block whose input or output it is; None if it is the block's own input.
        is_input: Whether it is that module's input rather than its output.
        shape: Shape of the activation of a token: d_model, or heads and their width.
    """

    block: int
    module: str | None = None
    is_input: bool = False
    shape: tuple[int, ...] = ()


class _Read(Exception):
    """Ends a run: the residual wanted last has been read."""


@dataclass
class _Pass:
    """What the blocks do in the run under way.

    Attributes:
        start: First block that runs.
        residual: Residual that enters it; that of the blocks before where it is None.
        read: Blocks whose input is wanted.
        found: Their inputs.
    """

    start: int = 0
    residual: Tensor | None = None
    read: frozenset[int] = frozenset()
    found: dict[int, Tensor] = field(default_factory=dict)


class BareModel:
    """Runs a causal language model from any block on, after prefixes whose keys and values are known.

    Made by `bare_model`.

    Args:
        model: A `TransformerBridge`.

    Raises:
        Exception: Whatever Hugging Face raises if an architecture cannot be taken out of its wrappers.
    """

    def __init__(self, model: Any) -> None:
        self.module = unwrapped(model.original_model)
        self._accepted = set(inspect.signature(self.module.forward).parameters)
        names = {component: name for name, component in wrappers(model.original_model, self.module).items()}
        unembedding = self.module.get_output_embeddings()
        if unembedding is not None and unembedding not in set(model.original_model.modules()):
            # A slice of the hidden states is not contiguous, which makes its product several times slower.
            unembedding.register_forward_pre_hook(lambda _, args: _first(args, args[0].contiguous()) if args else None)
        self._block_names = [names[block] for block in model.blocks]
        self._sites: dict[str, tuple[Site | None, int]] = {}  # and the length of the longest text it was tried on
        self._pass = _Pass()
        for number, name in enumerate(self._block_names):
            block = self.module.get_submodule(name)
            block.forward = partial(self._run_block, number, block.forward)

    @property
    def num_blocks(self) -> int:
        """Number of blocks."""
        return len(self._block_names)

    def site(self, model: Any, hook_name: str, token_ids: Int[Tensor, "1 tokens"], position: int) -> Site | None:
        """Find a hook of the hooked model, and see whether both models give the same when it is changed.

        Args:
            model: The hooked model.
            hook_name: Name of one of its hooks.
            token_ids: A prompt to try, on the first call for a hook.
            position: Token to change.

        Returns:
            Where the hook's activation is; None if it is no block's nor its modules' input or output, or the models
            do not agree.
        """
        length = token_ids.shape[1]
        site, tried_on = self._sites.get(hook_name, (None, 0))
        if hook_name not in self._sites or (site is not None and length > tried_on):
            site = self._find(model, model.hook_dict[hook_name])
            site = site and self._tried(model, hook_name, site, token_ids, position)
            self._sites[hook_name] = site, length
        return site

    def _find(self, model: Any, point: Any) -> Site | None:
        components = wrappers(model.original_model, self.module)
        for number, name in enumerate(self._block_names):
            block = components[name]
            if point is block.hook_in:
                return Site(number)
            if point is block.hook_out:
                return Site(number + 1)
            for path, component in components.items():
                if path.startswith(f"{name}.") and (point is component.hook_in or point is component.hook_out):
                    return Site(number, path, point is component.hook_in)
        return None

    @torch.no_grad()
    def _tried(self, model: Any, hook_name: str, site: Site, token_ids: Tensor, position: int) -> Site | None:
        """The site with its shape; None if the hooked model gives something else there or from there on."""
        clean: list[Tensor] = []

        def halve(activation: Tensor, **_: Any) -> Tensor:
            clean.append(activation[:, position].to(token_ids.device))
            return put_at(activation, position, activation[:, position] / 2)

        last_only = {"logits_to_keep": 1} if "logits_to_keep" in self._accepted else {}
        with model.hooks(fwd_hooks=[(hook_name, halve)]):
            expected = model.original_model(token_ids, **last_only).logits[:, -1]
        try:
            found, read = self._changed(site, token_ids, position, clean[0])
        except torch.OutOfMemoryError:
            raise
        except _OTHER_LAYOUT as error:
            _warn_of_whole_sequences(model, f"at {hook_name}: {type(error).__name__}: {error}")
            return None
        if _close(found, expected) and _close(read, clean[0]):
            return replace(site, shape=tuple(clean[0].shape[1:]))
        _warn_of_whole_sequences(model, f"from {hook_name} on it gives other logits than in its wrappers")
        return None

    def _changed(self, site: Site, token_ids: Tensor, position: int, clean: Tensor) -> tuple[Tensor, Tensor]:
        """Last logits with half of the activation at a token, and the activation there."""
        run = AttentionRun(PrefixStates(), width=position)
        if position:
            run = AttentionRun(self.prefix_states(token_ids[:, :position]), runs_of=(1,), width=position)
        rest = token_ids[:, position:]
        residuals, activations = self.read(rest, run, [site])
        found = self.logits(rest, run, site, residuals[site.block], clean / 2, 0)[:, -1]
        return found, activations[site][:, 0].reshape(clean.shape)

    @torch.no_grad()
    def prefix_states(self, token_ids: Int[Tensor, "prefixes tokens"]) -> PrefixStates:
        """Run prefixes as far as their keys and values need it.

        Args:
            token_ids: Prefixes of equal length.
        """
        run = AttentionRun(PrefixStates(), keep_until=self.num_blocks - 1)
        try:
            self._forward(token_ids, run, _Pass())
        except PrefixComplete:
            return run.states
        raise RuntimeError("the model's attention did not offer its last layer's keys and values")

    @torch.no_grad()
    def read(
        self, token_ids: Int[Tensor, "runs tokens"], run: AttentionRun, sites: Sequence[Site]
    ) -> tuple[dict[int, Tensor], dict[Site, Tensor]]:
        """Run tokens after their prefixes and read, no deeper than needed.

        Args:
            token_ids: The tokens.
            run: Their prefixes.
            sites: Where to read.

        Returns:
            What enters the block of each site, by block, and the activation at each site, heads side by side; all
            `[runs, tokens, width]`.
        """
        found: dict[Site, Tensor] = {}
        with ExitStack() as stack:
            for site in sites:
                if site.module is not None:
                    stack.enter_context(self._hooked(site, partial(found.__setitem__, site)))
            last = max(site.block + (site.module is not None) for site in sites)
            reading = _Pass(read=frozenset({last, *(site.block for site in sites)}))
            try:
                self._forward(token_ids, run, reading)
            except _Read:
                entering = {site.block: reading.found[site.block].to(token_ids.device) for site in sites}
                return entering, {
                    site: found[site].to(token_ids.device) if site in found else entering[site.block] for site in sites
                }
        raise RuntimeError("the model did not run the blocks that were to be read")

    def logits(
        self,
        token_ids: Int[Tensor, "runs tokens"],
        run: AttentionRun,
        site: Site,
        residual: Float[Tensor, "runs tokens d_model"],
        values: Float[Tensor, "runs ..."],
        index: int,
        *,
        last_only: bool = True,
    ) -> Float[Tensor, "runs kept vocab"]:
        """Run tokens after their prefixes from a site's block on, with another activation at one token.

        Args:
            token_ids: The tokens.
            run: Their prefixes.
            site: Where to put the activation.
            residual: What enters the site's block.
            values: The activation, one per run; gradients reach it.
            index: At which of the tokens.
            last_only: Give the last token's logits alone.
        """
        if site.module is None:
            return self._forward(
                token_ids, run, _Pass(start=site.block, residual=put_at(residual, index, values)), last_only
            )
        with self._hooked(site, lambda clean: put_at(clean, index, values.reshape(len(values), *clean.shape[2:]))):
            return self._forward(token_ids, run, _Pass(start=site.block, residual=residual), last_only)

    def _forward(self, token_ids: Tensor, run: AttentionRun, blocks: _Pass, last_only: bool = True) -> Tensor:
        positions = torch.arange(run.width, run.width + token_ids.shape[1], device=token_ids.device)
        options: dict[str, Any] = {"position_ids": positions[None], "use_cache": False}
        if last_only and "logits_to_keep" in self._accepted:
            options["logits_to_keep"] = 1
        self._pass = blocks
        try:
            with attention_run(run):
                return self.module(token_ids, **options).logits[:, slice(-1, None) if last_only else slice(None)]
        finally:
            self._pass = _Pass()

    def _run_block(
        self, number: int, forward: Callable[..., Any], hidden_states: Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        blocks = self._pass
        if number < blocks.start:
            assert blocks.residual is not None
            return blocks.residual
        if number == blocks.start and blocks.residual is not None:
            hidden_states = blocks.residual
        self._read(number, hidden_states)
        output = forward(hidden_states, *args, **kwargs)
        if number + 1 == self.num_blocks:
            self._read(self.num_blocks, output)
        return output

    def _read(self, number: int, residual: Tensor) -> None:
        if number in self._pass.read:
            self._pass.found[number] = residual
            if number == max(self._pass.read):
                raise _Read

    def _hooked(self, site: Site, see: Callable[[Tensor], Tensor | None]) -> Any:
        assert site.module is not None
        module = self.module.get_submodule(site.module)
        if site.is_input:
            return module.register_forward_pre_hook(lambda _, args: _first(args, see(args[0])))
        return module.register_forward_hook(
            lambda _, __, output: _first(output, see(output[0] if isinstance(output, tuple) else output))
        )


_OTHER_LAYOUT = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)
"""What goes wrong at modules that take or give something else than they do in most models."""

_MADE: WeakKeyDictionary[Any, tuple[tuple[Any, ...], BareModel | None]] = WeakKeyDictionary()


def bare_model(model: Any) -> BareModel | None:
    """The bare model of a hooked one, made once and again when the hooked model's weights are others.

    Args:
        model: A TransformerLens model.

    Returns:
        The bare model; None for models that are no `TransformerBridge`, have hooks attached, cannot be taken out of
        their wrappers, or whose attention does not offer keys and values of a prefix (a warning says why).
    """
    hf_model = getattr(model, "original_model", None)
    if hf_model is None or any(point.has_hooks() for point in model.hook_dict.values()):
        return None
    weights = tuple((id(weight), weight.data_ptr(), weight._version) for weight in _tensors(hf_model))
    made = _MADE.get(model)
    if made is None or made[0] != weights:
        made = _MADE[model] = weights, _try_to_make(model)
    return made[1]


def _tensors(hf_model: nn.Module) -> Iterable[Tensor]:
    yield from hf_model.parameters()
    yield from hf_model.buffers()


def _try_to_make(model: HookedModel) -> BareModel | None:
    try:
        bare = BareModel(model)
        bare.prefix_states(torch.zeros(1, 1, dtype=torch.long, device=model_device(model)))
        return bare
    except torch.OutOfMemoryError:
        raise
    except _OTHER_LAYOUT as error:
        _warn_of_whole_sequences(model, f"{type(error).__name__}: {error}")
        return None


def _warn_of_whole_sequences(model: Any, reason: str) -> None:
    name = type(model.original_model).__name__
    _LOGGER.warning(
        "%s cannot be run from the middle (%s); whole sequences are run instead, with the same results.", name, reason
    )


def _close(found: Tensor, expected: Tensor) -> bool:
    # norms and softmaxes compute in float32 in models of any wider type
    eps = max(torch.finfo(expected.dtype).eps, torch.finfo(torch.float32).eps)
    tolerance = eps**0.5 * expected.abs().max()
    return bool((found - expected).abs().max() <= tolerance)


def put_at(
    activation: Float[Tensor, "runs tokens ..."], index: int, values: Float[Tensor, "runs ..."]
) -> Float[Tensor, "runs tokens ..."]:
    """Put other activations at one token and let gradients reach them.

    Args:
        activation: Activations of all tokens.
        index: The token.
        values: What to put there, one per run.

    Example:
        >>> put_at(torch.zeros(1, 3, 1), 1, torch.tensor([[7.0]])).flatten()
        tensor([0., 7., 0.])
    """
    middle = values.unsqueeze(1).to(activation)
    return torch.cat([activation[:, :index], middle, activation[:, index + 1 :]], dim=1)


def _first(whole: Any, first: Tensor | None) -> Any:
    if first is None:
        return None
    return (first, *whole[1:]) if isinstance(whole, tuple) else first
