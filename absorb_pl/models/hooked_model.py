"""What a language model must have to be measured."""

from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

from absorb_pl.errors import AbsorbError
from absorb_pl.models.quantized import keep_gradients


@runtime_checkable
class HookedModel(Protocol):
    """A language model with TransformerLens's hooks; a `TransformerBridge` is one.

    A bridge also has `original_model`, the Hugging Face model that it wraps. Without it the engine runs whole
    sequences (see `absorb_pl.engine.compute_prefix`).

    Attributes:
        cfg: Its configuration, with `d_model`, `model_name` and `device`.
        tokenizer: Its Hugging Face tokenizer.
    """

    cfg: Any
    tokenizer: Any

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Logits `[prompts, tokens, vocab]` of token ids `[prompts, tokens]`."""
        ...

    def hooks(self, *args: Any, **kwargs: Any) -> AbstractContextManager[Any]:
        """Attach forward hooks (`fwd_hooks`) for the length of a `with` block."""
        ...


def check_model(model: object) -> None:
    """Refuse what is no language model with TransformerLens's hooks.

    Args:
        model: What was given as a model.

    Raises:
        AbsorbError: It lacks a member of `HookedModel`, or gradients do not pass its weights.

    Example:
        >>> check_model(3)
        Traceback (most recent call last):
            ...
        absorb_pl.errors.AbsorbError: `model` was 'int', expected a name, or a model with TransformerLens's hooks...
    """
    if not isinstance(model, HookedModel):
        raise AbsorbError(
            "model",
            type(model).__name__,
            expected="a name, or a model with TransformerLens's hooks and a tokenizer",
            remedy="Wrap a Hugging Face model: `TransformerBridge.boot_transformers(name, hf_model=model, "
            "tokenizer=tokenizer, dtype=model.dtype, device=model.device)`.",
        )
    keep_gradients(model)
