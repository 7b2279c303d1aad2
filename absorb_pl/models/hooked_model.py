"""What a language model must have to be measured."""

from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable


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
