"""A hooked model's Hugging Face modules without their wrappers, over the very same weights."""

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent
from transformers import PreTrainedModel
from transformers.activations import AccurateGELUActivation, FastGELUActivation, NewGELUActivation

from absorb_pl.engine.prefix_attention import PREFIX_ATTENTION
from absorb_pl.models.divided import divide_alike

_WRAPPED = "._original_component"

_GELU_BY_TANH = (AccurateGELUActivation, FastGELUActivation, NewGELUActivation)
"""0.5 x (1 + tanh(√(2/π) (x + 0.044715 x³))) in eight operations, for which PyTorch has one."""


def unwrapped(hf_model: PreTrainedModel) -> PreTrainedModel:
    """Make the model anew from Hugging Face's modules, over the very parameters and buffers of a wrapped one.

    Args:
        hf_model: A `TransformerBridge`'s `original_model`.

    Returns:
        The model in evaluation mode, with `prefix_attention`, on the same devices.

    Raises:
        KeyError: The wrapped model lacks one of the parameters.
    """
    with torch.device("meta"):
        module = type(hf_model)(copy.deepcopy(hf_model.config))
    parameters = _by_plain_name(hf_model.named_parameters(remove_duplicate=False))
    buffers = _by_plain_name(hf_model.named_buffers(remove_duplicate=False))
    for name, _ in list(module.named_parameters(remove_duplicate=False)):
        _owner(module, name).register_parameter(name.rpartition(".")[2], parameters[name])
    for name, _ in list(module.named_buffers(remove_duplicate=False)):
        _owner(module, name).register_buffer(name.rpartition(".")[2], buffers[name], persistent=False)
    for name, layer in _replaced_layers(hf_model, module).items():
        setattr(_owner(module, name), name.rpartition(".")[2], layer)
    for name, layer in list(module.named_modules()):
        if isinstance(layer, _GELU_BY_TANH):
            setattr(_owner(module, name), name.rpartition(".")[2], nn.GELU(approximate="tanh"))
    module.set_attn_implementation(PREFIX_ATTENTION)
    divide_alike(module, hf_model)
    return module.eval()


def _replaced_layers(hf_model: nn.Module, module: nn.Module) -> dict[str, nn.Module]:
    """Layers that are of another kind in a model than its architecture has, such as quantised ones, by plain name."""
    made = {name: type(layer) for name, layer in module.named_modules() if isinstance(layer, nn.Linear)}
    return {
        name: layer
        for name, layer in _by_plain_name(hf_model.named_modules()).items()
        if name in made and type(layer) is not made[name] and not isinstance(layer, GeneralizedComponent)
    }


def _by_plain_name(named: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    return {name.replace(_WRAPPED, ""): tensor for name, tensor in named}


def _owner(module: nn.Module, name: str) -> nn.Module:
    return module.get_submodule(name.rpartition(".")[0])


def wrappers(hf_model: nn.Module, module: nn.Module) -> dict[str, GeneralizedComponent]:
    """The wrappers of a hooked model by the name of the module that each one wraps.

    Args:
        hf_model: A `TransformerBridge`'s `original_model`.
        module: What `unwrapped` made of it.
    """
    modules = dict(module.named_modules())
    owners = {id(weight): name.rpartition(".")[0] for name, weight in module.named_parameters()}
    found = {}
    for path, component in hf_model.named_modules():
        if not isinstance(component, GeneralizedComponent):
            continue
        name = path.replace(_WRAPPED, "")
        if name not in modules:  # wrappers may have names of their own; their weights tell
            wrapped = component.original_component
            weights = [] if wrapped is None else wrapped.parameters(recurse=False)
            name = next((owners[id(weight)] for weight in weights if id(weight) in owners), name)
        if name in modules:
            found[name] = component
    return found
