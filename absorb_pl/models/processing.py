"""The language model as an SAE knew it: which processing of weights and prompts its metadata ask for, and giving it."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge

from absorb_pl.errors import ModelProcessingError
from absorb_pl.models.hooked_model import HookedModel
from absorb_pl.models.quantized import refuse_processing

WEIGHT_STEPS = ("center_writing_weights", "center_unembed", "fold_ln", "fold_value_biases")
"""What is done to weights, by TransformerLens's names."""
NO_BOS = "no_bos"
"""Prompts begin without a beginning-of-sequence token."""
PROCESSING_STEPS = (*WEIGHT_STEPS, NO_BOS)

_GIVEN: WeakKeyDictionary[Any, tuple[str, ...]] = WeakKeyDictionary()


def process_model(model: TransformerBridge, steps: Sequence[str]) -> None:
    """Give a model the processing that SAEs ask for, in place; its next-token probabilities stay.

    Weights are processed by TransformerBridge's compatibility mode. On models with RMS norms, which would not give the
    same with centred weights, TransformerLens centres nothing, neither here nor when such an SAE was trained.

    Args:
        model: The model, as loaded.
        steps: Some of `PROCESSING_STEPS`.

    Raises:
        ModelProcessingError: A step is unknown, or cannot be given to this architecture.

    Example:
        >>> from absorb_pl.models import load_language_model
        >>> model = load_language_model("speller")
        >>> process_model(model, ["no_bos"])
        >>> model_processing(model), model.cfg.default_prepend_bos
        (('no_bos',), False)
    """
    steps = tuple(name for name in PROCESSING_STEPS if name in set(steps)) + tuple(set(steps) - set(PROCESSING_STEPS))
    weights = {name: name in steps for name in WEIGHT_STEPS}
    for name in steps:
        supported = getattr(model.adapter, f"supports_{name}", True)
        if name not in PROCESSING_STEPS or not supported:
            raise _not_given(model, name, f"{type(model.adapter).__name__} does not support it")
    if any(weights.values()):
        refuse_processing(model, ", ".join(steps))
        try:
            model.enable_compatibility_mode(disable_warnings=True, **weights)
        except (AttributeError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            raise _not_given(model, ", ".join(steps), str(error).split("\n")[0]) from error
        model.original_model.requires_grad_(False)
        let_weights_follow(model)
    if NO_BOS in steps:
        model.cfg.default_prepend_bos = False
    _GIVEN[model] = steps


def model_processing(model: HookedModel) -> tuple[str, ...]:
    """Give what was done to a model by `process_model`.

    Args:
        model: A language model.

    Returns:
        Some of `PROCESSING_STEPS`; nothing for a model that was not processed here.

    Example:
        >>> from absorb_pl.models import load_language_model
        >>> model_processing(load_language_model("speller"))
        ()
    """
    return _GIVEN.get(model, ())


def describe_processing(steps: Sequence[str]) -> str:
    """Write processing as tables and folders have it.

    Args:
        steps: Some of `PROCESSING_STEPS`.

    Example:
        >>> describe_processing(["center_writing_weights", "no_bos"])
        'center_writing_weights+no_bos'
    """
    return "+".join(steps)


def let_weights_follow(model: Any) -> None:
    """Let plain attributes that are a module's weights move with it.

    TransformerLens keeps processed weights of gated MLPs as such, which stay where they are when a model is moved.

    Args:
        model: A `TransformerBridge`, processed or not; nothing is done to others.

    Example:
        >>> let_weights_follow(nn.Linear(1, 1))
    """
    for module in getattr(model, "original_model", nn.Module()).modules():
        if "_apply" in vars(module):
            continue
        plain = {name: _place(value) for name, value in vars(module).items() if isinstance(value, Tensor)}
        names = {_place(weight): name for name, weight in module.named_parameters()} if plain else {}
        followed = {name: names[place] for name, place in plain.items() if place in names}
        if followed:
            module._apply = partial(_apply_and_follow, module, module._apply, followed)


def _place(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tensor.shape, tensor.stride()


def _apply_and_follow(
    module: nn.Module, apply: Callable[..., Any], followed: dict[str, str], fn: Callable[..., Any], recurse: bool = True
) -> nn.Module:
    apply(fn, recurse)
    for name, weight in followed.items():
        vars(module)[name] = module.get_parameter(weight).detach()
    return module


def _not_given(model: Any, name: str, reason: str) -> ModelProcessingError:
    return ModelProcessingError(
        "processing",
        name,
        expected=f"processing that TransformerBridge gives {type(model.original_model).__name__}",
        remedy=f"{reason}. The SAE cannot be measured on the activations it was trained on.",
    )
