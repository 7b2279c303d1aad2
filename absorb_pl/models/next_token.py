"""Whether a model says what comes next, which whatever reads its answers asks first."""

from typing import Any

from absorb_pl.errors import NotCausalError


def has_next_token_logits(model: Any) -> bool:
    """Tell whether a model says at each token what comes next: a causal model with a trained unembedding.

    Encoders (BERT) see the tokens after a word and answer about masked ones, and denoising models (Dream, LLaDA)
    do alike. A checkpoint of a bare model (`LlamaModel`) has no unembedding, unless that is the embedding
    (`GPT2Model`). Probes and rules that project need none of it; rules and figures that ask for the answer do.

    Args:
        model: A TransformerLens model.

    Returns:
        Whether `model(ids)[:, -1]` are trained logits of the next token.

    Example:
        >>> from types import SimpleNamespace
        >>> has_next_token_logits(SimpleNamespace(cfg=SimpleNamespace(attention_dir="bidirectional")))
        False
    """
    wrapped = getattr(model, "original_model", None)
    if wrapped is None:
        return getattr(model.cfg, "attention_dir", "causal") == "causal"
    config = wrapped.config
    if getattr(config, "is_encoder_decoder", False) or not model.adapter.supports_generation:
        return False
    stored = config.architectures or [type(wrapped).__name__]
    bare = all(name.endswith("Model") and not name.endswith("LMHeadModel") for name in stored)
    return not bare or bool(getattr(config, "tie_word_embeddings", False))


def require_next_token_logits(model: Any, what: str) -> None:
    """Refuse a model without next-token logits.

    Args:
        model: A TransformerLens model.
        what: What reads the logits, such as `"the absorption rule 'paper'"`.

    Raises:
        NotCausalError: The model is an encoder, denoises, or has no trained unembedding.

    Example:
        >>> from types import SimpleNamespace
        >>> encoder = SimpleNamespace(cfg=SimpleNamespace(attention_dir="bidirectional", architecture="Encoder"))
        >>> require_next_token_logits(encoder, "the absorption rule 'paper'")
        Traceback (most recent call last):
            ...
        absorb_pl.errors.NotCausalError: `model` was 'Encoder', expected a causal language model ...
    """
    if not has_next_token_logits(model):
        architecture = getattr(model.cfg, "architecture", None) or type(model).__name__
        raise NotCausalError(
            "model",
            architecture,
            expected=f"a causal language model with a trained unembedding, whose next-token logits {what} reads",
            remedy="Use a rule that only projects activations, or a causal model.",
        )
