"""The language model as an SAE knew it: which processing of weights and prompts its metadata ask for."""

from typing import Any

from jaxtyping import Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from absorb_pl.errors import ModelProcessingError
from absorb_pl.models.hooked_model import HookedModel
from absorb_pl.models.processing import NO_BOS, PROCESSING_STEPS, WEIGHT_STEPS, describe_processing, model_processing
from absorb_pl.saes.interface import SparseAutoencoder

# What leaves activations as they are, or is a study's own setting (`model_dtype`).
_WITHOUT_EFFECT = {
    "attn_implementation",
    "cache_dir",
    "default_padding_side",
    "device",
    "device_map",
    "dtype",
    "local_files_only",
    "low_cpu_mem_usage",
    "move_to_device",
    "n_devices",
    "token",
    "torch_dtype",
    "trust_remote_code",
    "verbose",
}


def sae_processing(sae: SparseAutoencoder) -> tuple[str, ...]:
    """Read off an SAE's metadata how the model was processed that made the activations it was trained on.

    SAELens loads models without processing, so what `model_from_pretrained_kwargs` does not name or calls false was not
    done.

    Args:
        sae: Any SAE; one without metadata asks for nothing.

    Returns:
        Some of `PROCESSING_STEPS`, in their order.

    Raises:
        ModelProcessingError: It was trained on what cannot be given here: other weights of the model, or one head of
            its attention.

    Example:
        >>> from types import SimpleNamespace
        >>> metadata = SimpleNamespace(model_from_pretrained_kwargs={"center_writing_weights": True, "fold_ln": False})
        >>> sae_processing(SimpleNamespace(cfg=SimpleNamespace(metadata=metadata)))
        ('center_writing_weights',)
    """
    metadata = _metadata(sae)
    options = dict(getattr(metadata, "model_from_pretrained_kwargs", None) or {})
    if getattr(metadata, "prepend_bos", None) is False or options.pop("default_prepend_bos", None) is False:
        options[NO_BOS] = True
    for name, value in options.items():
        if name not in PROCESSING_STEPS and name not in _WITHOUT_EFFECT and value:
            raise ModelProcessingError(
                f"model_from_pretrained_kwargs[{name!r}]",
                value,
                expected=f"processing that can be given: {', '.join(WEIGHT_STEPS)}",
                remedy="The SAE was trained on a model loaded otherwise. Put such a model into a folder, name the "
                "folder as the model, and take the entry out of the SAE's cfg.json.",
            )
    if (head := getattr(metadata, "hook_head_index", None)) is not None:
        raise ModelProcessingError(
            "hook_head_index",
            head,
            expected="None: SAEs read all heads of a hook",
            remedy="Use an SAE of the whole hook; one of a single head reads activations that no hook gives here.",
        )
    return tuple(name for name in PROCESSING_STEPS if options.get(name))


def trained_positions(sae: SparseAutoencoder) -> range | None:
    """Read off an SAE's metadata which positions of a text it was trained on (`seqpos_slice`).

    Args:
        sae: Any SAE.

    Returns:
        The positions, the beginning-of-sequence token counted; None for all.

    Example:
        >>> from types import SimpleNamespace
        >>> metadata = SimpleNamespace(seqpos_slice=[1, None], context_size=8)
        >>> trained_positions(SimpleNamespace(cfg=SimpleNamespace(metadata=metadata)))
        range(1, 8)
    """
    metadata = _metadata(sae)
    bounds = getattr(metadata, "seqpos_slice", None)
    if not bounds or all(bound is None for bound in bounds):
        return None
    return range(*slice(*bounds).indices(getattr(metadata, "context_size", None) or 2**31))


def check_positions(trained: range | None, positions: Int[Tensor, " words"], name: str = "the SAE") -> None:
    """Check that words stand where an SAE was trained to read.

    Args:
        trained: What `trained_positions` gives of the SAE.
        positions: Position of each word in its prompt, the beginning-of-sequence token counted.
        name: What to call the SAE.

    Raises:
        ModelProcessingError: Some do not.

    Example:
        >>> import torch
        >>> check_positions(range(1, 8), torch.tensor([3, 9]))
        Traceback (most recent call last):
            ...
        absorb_pl.errors.ModelProcessingError: `seqpos_slice of the SAE` was range(1, 8), expected the positions ...
    """
    if trained is None:
        return
    if outside := sorted({*positions.tolist()} - {*trained}):
        raise ModelProcessingError(
            f"seqpos_slice of {name}",
            trained,
            expected=f"the positions of all words; {outside} are not among them",
            remedy="The SAE was trained on other positions. Take more or fewer in-context examples "
            "(`task.max_icl_examples`).",
        )


def check_processing(model: HookedModel, sae: SparseAutoencoder) -> None:
    """Check that a model has the processing that an SAE asks for.

    Only of a `TransformerBridge` can it be told; another model is taken to be what it should be.

    Args:
        model: The language model.
        sae: The SAE.

    Raises:
        ModelProcessingError: It has another.

    Example:
        >>> from absorb_pl.models import load_language_model
        >>> from absorb_pl.saes import load_sae
        >>> check_processing(load_language_model("speller"), load_sae("speller/l1-standard-w512-dense"))
    """
    if isinstance(model, TransformerBridge):
        check_given_processing(model_processing(model), sae)


def check_given_processing(given: tuple[str, ...], sae: SparseAutoencoder) -> None:
    """Check that what was done to a model is what an SAE asks for.

    Args:
        given: Some of `PROCESSING_STEPS`, in their order.
        sae: The SAE.

    Raises:
        ModelProcessingError: It is something else.
    """
    wanted = sae_processing(sae)
    if wanted == given:
        return
    raise ModelProcessingError(
        "model",
        f"one with {describe_processing(given) or 'weights as they are'}",
        expected=f"{describe_processing(wanted) or 'weights as they are'}, as the SAE's metadata say",
        remedy=f"Load it with `load_language_model(name, processing={list(wanted)})`; a study does so by "
        "itself. SAEs that ask for different processing need a model each.",
    )


def _metadata(sae: SparseAutoencoder) -> Any:
    cfg = getattr(sae, "cfg", None) or getattr(getattr(sae, "sae", None), "cfg", None)
    return getattr(cfg, "metadata", None)
