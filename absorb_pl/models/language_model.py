"""Language models: load one by name, and ask it about its hooks, its context and its tokenizer."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled
from transformer_lens.model_bridge import TransformerBridge
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from absorb_pl.errors import HookNotFoundError, ModelNotFoundError, ModelWeightsError
from absorb_pl.models.bundled import SPELLER, speller_path
from absorb_pl.models.divided import division_among, keep_in_place, refused_division, require_divided
from absorb_pl.models.hooked_model import HookedModel
from absorb_pl.models.next_token import has_next_token_logits
from absorb_pl.models.placement import (
    LOAD_ERRORS,
    check_device,
    check_model_dtype,
    local_folder,
    own_memory,
    read_tensors,
    require_finite,
)
from absorb_pl.models.processing import let_weights_follow, process_model
from absorb_pl.models.quantized import (
    QUANTIZED_DTYPES,
    load_quantized,
    not_quantized,
    require_bitsandbytes,
    require_quantized,
)
from absorb_pl.ranges import Count, check_ranges

_NUMBER = re.compile(r"\.\d+\.")


def load_language_model(
    name: str,
    *,
    device: str = "cpu",
    dtype: str = "float32",
    processing: Sequence[str] = (),
    n_devices: Count = 1,
) -> TransformerBridge:
    """Load a language model, in evaluation mode and without gradients.

    Causal models and encoders (BERT) are taken: whatever `TransformerBridge` boots and gives a residual stream.
    A checkpoint must hold all weights, but for a head that nothing reads, such as that of a bare `BertModel`: it is
    drawn from a fixed seed, so that the model is the same each time, and `has_next_token_logits` does not count it.

    Args:
        name: `"speller"` for the bundled model, a folder in Hugging Face format, or a name on the Hugging
            Face hub. A folder comes before a hub name that reads the same.
        device: A torch device.
        dtype: Dtype of the weights: `float32`, `float64`, `bfloat16` or `float16`; or `int8` or `nf4` for linear layers
            of 8 or 4 bits a weight (causal models alone, see `absorb_pl.models.quantized`).
        processing: What SAEs ask for, from `sae_processing`.
        n_devices: Number of GPUs to divide the layers among, for models that one GPU does not hold. Such a model stays
            where it is: it is not moved with what holds it.

    Returns:
        The model with TransformerLens hooks and raw Hugging Face weights; nothing is folded, centred or converted
        but what `processing` names.

    Raises:
        ModelNotFoundError: If the name is none of the three, the hub cannot be reached, or the model is an
            encoder-decoder, which has two residual streams.
        ModelProcessingError: If the model cannot be given the processing.
        ModelWeightsError: If the checkpoint lacks weights or has more layers than its configuration, or its tokenizer
            has words beyond the embeddings.
        NonFiniteError: If a weight is NaN or infinite.
        AbsorbError: If the device or dtype is unknown here, there are not so many GPUs, or the model's layers cannot be
            divided among them.

    Example:
        >>> load_language_model("no-such-folder/")
        Traceback (most recent call last):
            ...
        absorb_pl.errors.ModelNotFoundError: `name` was 'no-such-folder/', expected 'speller', ...
    """
    check_ranges(load_language_model, locals())
    weights_dtype = check_model_dtype(dtype)
    if dtype in QUANTIZED_DTYPES:
        require_bitsandbytes(dtype)
    device = check_device(device)
    division = division_among(n_devices, device)
    folder = _folder_of(name)
    if folder is None and (name.startswith((".", "/", "~")) or name.endswith("/")):
        raise _not_found(name, "There is no such folder.")
    if folder is not None and not (folder / "config.json").is_file():
        raise _not_found(name, "There is no config.json in this folder.")
    quantized = None
    try:
        with _without_progress_bars(), _told_of_weights() as told, torch.random.fork_rng(_devices(device, n_devices)):
            torch.manual_seed(0)
            source = name if folder is None else str(folder)
            placed = division or {"device": device}
            if dtype in QUANTIZED_DTYPES:
                quantized = load_quantized(source, dtype, division or {"device_map": {"": device}})
                placed = {} if division else placed  # the bridge finds out where the layers are
            model = TransformerBridge.boot_transformers(source, dtype=weights_dtype, hf_model=quantized, **placed)
    except LOAD_ERRORS as error:
        if division and (refused := refused_division(name, n_devices, error)) is not None:
            raise refused from error
        if quantized is not None:
            raise not_quantized(name, dtype, error) from error
        raise _not_found(name, _why(error, is_folder=folder is not None)) from error
    if getattr(model.original_model.config, "is_encoder_decoder", False):
        raise _not_found(name, "It is an encoder-decoder; causal models and encoders have one residual stream.")
    if quantized is not None:
        if not has_next_token_logits(model):
            raise not_quantized(name, dtype, "it is no causal model")
        require_quantized(name, dtype, model)
        _require_finite_files(name, folder)
    if division:
        require_divided(name, n_devices, model)
    keep_in_place(model)
    own_memory(model)
    _require_sizes(name, model)
    _require_weights(name, model, told)
    _require_embeddings(name, model)
    require_finite(name, dict(model.original_model.named_parameters()))
    model.eval()
    model.original_model.requires_grad_(False)
    if processing:
        process_model(model, processing)
    return model


def resolve_model(model: Any, *, dtype: str = "float32", processing: Sequence[str] = (), n_devices: Count = 1) -> Any:
    """A language model by its name, or one that is given itself.

    One that is given keeps where it is if it is divided among GPUs, and moves as a whole otherwise (see
    `absorb_pl.models.processing.let_weights_follow`).

    Args:
        model: Name for `load_language_model`, or a `TransformerBridge`.
        dtype: Dtype of a model that is loaded.
        processing: What SAEs ask for, of a model that is loaded.
        n_devices: Number of GPUs to divide the layers of such a model among.

    Example:
        >>> resolve_model(resolve_model("speller")).cfg.n_layers
        4
    """
    if isinstance(model, str):
        return load_language_model(model, dtype=dtype, processing=processing, n_devices=n_devices)
    keep_in_place(model)
    let_weights_follow(model)
    return model


def full_name(name: str) -> str:
    """What a model that is loaded by a name calls itself.

    Args:
        name: Name for `load_language_model`.

    Returns:
        The folder as an absolute path, or the name on the hub.

    Example:
        >>> full_name("google/gemma-2-2b"), full_name(full_name("speller")) == full_name("speller")
        ('google/gemma-2-2b', True)
    """
    return str(_folder_of(name) or name)


def check_hook(model: Any, hook_name: str) -> None:
    """Check that a model has a hook of this name, aliases included.

    Args:
        model: A TransformerLens model.
        hook_name: A name such as `blocks.1.hook_resid_post`.

    Raises:
        HookNotFoundError: If there is none; the message names the closest ones.

    Example:
        >>> from types import SimpleNamespace
        >>> model = SimpleNamespace(hook_dict={"blocks.1.hook_resid_post": None})
        >>> check_hook(model, "blocks.9.hook_resid_post")
        Traceback (most recent call last):
            ...
        absorb_pl.errors.HookNotFoundError: ... Closest: blocks.1.hook_resid_post.
    """
    hooks = model.hook_dict
    if hook_name not in hooks:
        closest = get_close_matches(hook_name, hooks, n=3, cutoff=0.3)
        raise HookNotFoundError(
            "hook_name",
            hook_name,
            expected="a hook of the model",
            remedy=f"Closest: {', '.join(closest)}." if closest else "List them with `model.hook_dict`.",
        )


def context_length(model: HookedModel) -> int:
    """Give the most tokens that a model takes at once.

    Args:
        model: A TransformerLens model.

    Returns:
        Number of tokens, the beginning-of-sequence token included.

    Example:
        >>> from types import SimpleNamespace
        >>> context_length(SimpleNamespace(cfg=SimpleNamespace(n_ctx=1024)))
        1024
    """
    return int(model.cfg.n_ctx)


def _folder_of(name: str) -> Path | None:
    return speller_path() if name == SPELLER else local_folder(name)


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    enabled = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            transformers_logging.enable_progress_bar()


@contextmanager
def _told_of_weights() -> Iterator[dict[str, list[str]]]:
    """Note weights that a checkpoint lacks, which Hugging Face draws at random, and layers beyond the configuration's.

    It only logs them.
    """
    told: dict[str, list[str]] = {"missing": [], "beyond": []}
    load = PreTrainedModel.__dict__["from_pretrained"]

    def noting(cls: type[PreTrainedModel], *args: Any, **kwargs: Any) -> PreTrainedModel:
        model, said = load.__func__(cls, *args, **{**kwargs, "output_loading_info": True})
        layers = {_NUMBER.sub(".", key) for key in model.state_dict() if _NUMBER.search(key)}
        told["missing"].extend(said["missing_keys"])
        told["beyond"].extend(key for key in said["unexpected_keys"] if _NUMBER.sub(".", key) in layers)
        return model

    PreTrainedModel.from_pretrained = classmethod(noting)  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield told
    finally:
        PreTrainedModel.from_pretrained = load


def _require_finite_files(name: str, folder: Path | None) -> None:
    """Refuse files with weights that are NaN or infinite, which quantised weights do not show."""
    folder = folder or Path(str(try_to_load_from_cache(name, "config.json"))).parent
    for file in (*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")):
        require_finite(name, read_tensors(file, "cpu"))


def _require_sizes(name: str, model: Any) -> None:
    config = model.original_model.config.get_text_config()
    least = {"num_hidden_layers": 1, "num_attention_heads": 1}
    least |= dict.fromkeys(("layer_norm_epsilon", "layer_norm_eps", "rms_norm_eps"), 0)
    for key, smallest in least.items():
        value = getattr(config, key, None)
        if isinstance(value, int | float) and value < smallest:
            raise _not_found(name, f"The folder does not load: {key} is {value}, not at least {smallest}.")


def _require_weights(name: str, model: Any, told: dict[str, list[str]]) -> None:
    wrapped, missing, beyond = model.original_model, told["missing"], sorted(told["beyond"])
    if beyond:
        raise ModelWeightsError(
            "name",
            name,
            expected=f"as many layers as the checkpoint has, but {len(beyond)} weights such as {beyond[0]} are beyond",
            remedy="Put the model's own config.json into its folder; part of the model would be measured instead.",
        )
    if not has_next_token_logits(model):  # then its head is never read, and a bare model need not have one
        missing = [key for key in missing if key.startswith(f"{wrapped.base_model_prefix}.")]
    if missing:
        named = ", ".join(sorted(missing)[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise ModelWeightsError(
            "name",
            name,
            expected=f"a checkpoint with all weights of {type(wrapped).__name__}, but it lacks {named}",
            remedy="Copy or save the model again; weights drawn at random would be measured instead.",
        )


def _require_embeddings(name: str, model: Any) -> None:
    """Refuse tokenizers whose words go beyond the embeddings; added tokens that prompts never hold may."""
    tokenizer, rows = model.tokenizer, len(model.original_model.get_input_embeddings().weight)
    if tokenizer is None or len(tokenizer) <= rows:
        return
    added = set(tokenizer.added_tokens_decoder) - {tokenizer.bos_token_id}
    beyond = sorted(token for token in tokenizer.get_vocab().values() if token >= rows and token not in added)
    if beyond:
        raise ModelWeightsError(
            "name",
            name,
            expected=f"a tokenizer whose ids stay below {rows}, the number of embeddings, but it has {len(beyond)} "
            f"tokens beyond, the largest {beyond[-1]}",
            remedy="Put the model's own tokenizer files into its folder, or resize its embeddings.",
        )


def _devices(device: str, n_devices: int) -> list[torch.device]:
    """The devices besides the CPU whose random state a model's loading may touch."""
    if n_devices > 1:
        return [torch.device("cuda", number) for number in range(torch.cuda.device_count())]
    placed = torch.device(device)
    return [placed] if placed.type == "cuda" else []


def _why(error: BaseException, *, is_folder: bool) -> str:
    reason = str(error).strip().split("\n")[0]
    if not is_folder and hub_is_unreachable(error):
        return "The Hugging Face hub cannot be reached and its local cache does not hold the model."
    return f"{'The folder' if is_folder else 'That name'} does not load: {reason}"


def hub_is_unreachable(error: BaseException | None) -> bool:
    """Tell whether an error, or one that it was raised from, is a failure to reach the Hugging Face hub.

    Args:
        error: The error.

    Returns:
        True for offline mode, a broken connection, or a file that is not in the cache and cannot be fetched.

    Example:
        >>> hub_is_unreachable(ValueError("bad name")), hub_is_unreachable(ConnectionError())
        (False, True)
    """
    while error is not None:
        if isinstance(error, ConnectionError | LocalEntryNotFoundError | OfflineModeIsEnabled):
            return True
        error = error.__cause__ or error.__context__
    return False


def _not_found(name: str, reason: str) -> ModelNotFoundError:
    return ModelNotFoundError(
        "name",
        name,
        expected=f"{SPELLER!r}, a folder in Hugging Face format or a name on the Hugging Face hub",
        remedy=f"{reason} A local folder needs config.json, weights and tokenizer files.",
    )
