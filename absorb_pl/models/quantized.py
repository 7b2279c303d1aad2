"""Language models whose linear layers have 8 or 4 bits a weight, by bitsandbytes, so that larger ones fit."""

import logging
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from absorb_pl.errors import AbsorbError, ModelProcessingError

QUANTIZED_DTYPES = ("int8", "nf4")
"""Dtypes of quantised weights: 8-bit integers (LLM.int8, arXiv 2208.07339), and 4-bit normal floats (QLoRA's,
arXiv 2305.14314). All that is not a linear layer's weight is bfloat16 then; `int8` also quantises what the weights are
multiplied with."""

COMPUTED_IN = torch.bfloat16
_PACKS = "support_avx512bf16_for_cpu"


def require_bitsandbytes(dtype: str) -> None:
    """Check that what quantises weights is installed.

    Args:
        dtype: One of `QUANTIZED_DTYPES`.

    Raises:
        AbsorbError: It is not.
    """
    if find_spec("bitsandbytes") is None:
        raise AbsorbError(
            "dtype",
            dtype,
            expected="bitsandbytes to be installed, which quantises weights",
            remedy='Install it: `pip install "absorb-pl[quantized]"`.',
        )


def load_quantized(name: str, dtype: str, placement: Mapping[str, Any]) -> PreTrainedModel:
    """Load a causal model and quantise its linear layers.

    Args:
        name: A folder in Hugging Face format, or a name on the hub.
        dtype: One of `QUANTIZED_DTYPES`.
        placement: Where it goes, as arguments of `from_pretrained`.

    Example:
        >>> from absorb_pl import load_language_model
        >>> model = load_language_model("speller", dtype="nf4")
        >>> type(model.original_model.lm_head).__name__, is_quantized(model)
        ('UnembeddingBridge', True)
    """
    # It tells of each layer that computes in float16.
    logging.getLogger("bitsandbytes.autograd").setLevel(logging.ERROR)
    how: dict[str, Any] = {"load_in_8bit": True}
    if dtype == "nf4":
        how = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": COMPUTED_IN}
    model = AutoModelForCausalLM.from_pretrained(
        name,
        quantization_config=BitsAndBytesConfig(**how),
        dtype=COMPUTED_IN,
        attn_implementation="eager",
        **placement,
    )
    keep_gradients(model)
    return model


def require_quantized(name: str, dtype: str, model: Any) -> None:
    """Check that a model has quantised layers and runs.

    Args:
        name: Name that it was asked for by.
        dtype: One of `QUANTIZED_DTYPES`.
        model: A TransformerLens model around what `load_quantized` gave.

    Raises:
        AbsorbError: No layer could be quantised, or it does not run.
    """
    weights = [getattr(layer, "weight", None) for layer in model.original_model.modules()]
    if not any(hasattr(weight, "SCB") or hasattr(weight, "quant_state") for weight in weights):
        raise not_quantized(name, dtype, "none of its layers is one that bitsandbytes quantises")
    try:
        with torch.no_grad():
            model.original_model(torch.zeros(1, 1, dtype=torch.long, device=model.original_model.device))
    except RuntimeError as error:
        raise not_quantized(name, dtype, error) from error


def not_quantized(name: str, dtype: str, reason: object) -> AbsorbError:
    """The error for a model that loads and cannot be quantised.

    Args:
        name: Name that it was asked for by.
        dtype: One of `QUANTIZED_DTYPES`.
        reason: What failed.
    """
    return AbsorbError(
        "dtype",
        dtype,
        expected=f"a model that runs with quantised weights, but {name} does not",
        remedy="Load it in bfloat16. Models that hold queries, keys and values in one matrix are taken apart by "
        f"TransformerLens, which quantised weights do not allow. Here: {str(reason).strip().splitlines()[0]}",
    )


def keep_gradients(model: Any) -> None:
    """Keep bitsandbytes from packing 4-bit weights for inference, which gradients do not pass.

    It does so on CPUs that compute in bfloat16, in the first run without gradients; gradients are 0 from there on.

    Args:
        model: A Hugging Face model, or what wraps one.

    Raises:
        AbsorbError: It has packed them already.
    """
    for layer in model.modules() if is_quantized(model) else ():
        if hasattr(layer, _PACKS):
            setattr(layer, _PACKS, False)
            if getattr(getattr(layer.weight, "quant_state", None), "packing_format_for_cpu", False):
                raise AbsorbError(
                    "model",
                    type(model).__name__,
                    expected="4-bit weights that gradients pass; these were packed for inference when the model ran",
                    remedy="Load the model by its name with `dtype` nf4, or hand it in before it has run.",
                )


def is_quantized(model: Any) -> bool:
    """Tell whether a language model's weights are quantised.

    Args:
        model: A TransformerLens model.
    """
    return getattr(getattr(model, "original_model", model), "quantization_method", None) is not None


def quantized_dtype(model: Any) -> str | None:
    """Which of `QUANTIZED_DTYPES` a language model has; None if none of them.

    Args:
        model: A TransformerLens model.
    """
    hf_config = getattr(getattr(model, "original_model", model), "config", None)
    config: Any = getattr(hf_config, "quantization_config", None)
    if getattr(config, "load_in_8bit", False):
        return "int8"
    return "nf4" if getattr(config, "load_in_4bit", False) and config.bnb_4bit_quant_type == "nf4" else None


def refuse_processing(model: Any, steps: str) -> None:
    """Refuse to process quantised weights, which cannot be folded or centred.

    Args:
        model: A TransformerLens model.
        steps: What was asked for.

    Raises:
        ModelProcessingError: The model is quantised.
    """
    if is_quantized(model):
        raise ModelProcessingError(
            "model",
            model.cfg.model_name,
            expected=f"weights that can be processed ({steps}), but they are quantised",
            remedy="Load it with `dtype` float32 or bfloat16 (`model_dtype` in a study).",
        )
