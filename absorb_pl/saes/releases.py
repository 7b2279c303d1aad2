"""SAEs that SAELens knows by release and id: load one, and read off what their names say."""

import re
from collections.abc import Callable, Iterator
from typing import Any

from huggingface_hub.errors import HfHubHTTPError
from sae_lens import SAE
from sae_lens.loading.pretrained_sae_loaders import NAMED_PRETRAINED_SAE_LOADERS, get_conversion_loader_name
from sae_lens.loading.pretrained_saes_directory import PretrainedSAELookup, get_pretrained_saes_directory

from absorb_pl.errors import AbsorbError
from absorb_pl.models.bundled import SPELLER
from absorb_pl.models.closest import closest_names
from absorb_pl.models.language_model import hub_is_unreachable
from absorb_pl.saes.bundled import list_bundled_saes
from absorb_pl.saes.folders import not_found
from absorb_pl.saes.gemma_scope import gemma_scope_2_hub_loader
from absorb_pl.saes.properties import refuse_transcoder
from absorb_pl.saes.settings import check_settings, checked_loader

_THOUSANDS = {"k": 2**10, "m": 2**20}
_WIDTH = re.compile(r"(?:width[_-]|[-_]w|v5[_-])(\d+)([km])(?![a-z0-9])|2pow(\d+)|(?:hook_\w+?_|_ds)(\d{3,})")
_HOOK = re.compile(r"(?:blocks\.\d+\.)[\w.]*?hook_(?:resid_(?:pre|mid|post)|attn_out|mlp_out|z)")
_LAYER = re.compile(r"(?:layer_?|blocks\.|^l)(\d+)")
_SITES = (
    (re.compile(r"hook_z"), "attn.hook_z"),
    (re.compile(r"resid_post|[-_]res(?:$|[-_/])|[-_]lxr[-_]|^(?:qwen-scope|goodfire)"), "hook_resid_post"),
    (re.compile(r"attn_out|[-_]att(?:$|[-_/])"), "attn.hook_z"),
    (re.compile(r"mlp_out|[-_]mlp(?:$|[-_/])|[-_]lxm[-_]"), "hook_mlp_out"),
)
_ARCHITECTURES = {
    "connor_rob_hook_z": "standard",
    "deepseek_r1": "standard",
    "gemma_2": "jumprelu",
    "gemma_3": "jumprelu",
    "goodfire": "standard",
    "llama_scope": "jumprelu",
    "llama_scope_r1_distill": "jumprelu",
    "qwen_scope": "topk",
    "temporal": "temporal",
}


def load_release(name: str, device: str, dtype: str, converter: Callable[..., Any] | None = None) -> SAE[Any]:
    """Load an SAE of a SAELens release.

    Args:
        name: `<release>/<id>`.
        device: A torch device.
        dtype: Dtype of the weights.
        converter: A SAELens `PretrainedSaeHuggingfaceLoader` to use in place of the release's own.

    Returns:
        The SAE.

    Raises:
        SaeNotFoundError: There is no such release or id, or the hub cannot be reached.
        SaeArchitectureError: The release holds transcoders.
    """
    require_release(name)
    release, _, sae_id = name.partition("/")
    refuse_transcoder(name, _kind(get_pretrained_saes_directory()[release], sae_id))
    try:
        loader = checked_loader(name, converter or _hub_loader(release))
        sae = SAE.from_pretrained(release, sae_id, device=device, dtype=dtype, converter=loader)
        check_settings(sae)
        return sae
    except AbsorbError:
        raise
    except (HfHubHTTPError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        if hub_is_unreachable(error):
            reason = "The Hugging Face hub cannot be reached and its local cache does not hold the SAE."
        else:
            reason = f"It does not load: {str(error).strip()}."
        raise not_found(name, reason) from error


def require_release(name: str) -> None:
    """Refuse names that SAELens's directory does not hold.

    Args:
        name: `<release>/<id>`.

    Raises:
        SaeNotFoundError: There is no such release or id; the message names the closest ones.

    Example:
        >>> require_release("gpt2-small-res-jb/blocks.0.hook_resid_pre")
    """
    directory = get_pretrained_saes_directory()
    release, _, sae_id = name.partition("/")
    if release not in directory:
        if release.strip() == SPELLER:
            raise not_found(name, f"Closest: {closest_names(name, list_bundled_saes())}.")
        near = closest_names(release, directory)
        raise not_found(name, f"There is no such folder and no such release. Closest releases: {near}.")
    ids = directory[release].saes_map
    if sae_id not in ids:
        raise not_found(name, f"Closest ids of this release: {closest_names(sae_id, ids)}.")


def release_names(release: str | None = None) -> Iterator[str]:
    """Names of the SAEs in SAELens's directory.

    Args:
        release: One release; None for all of them, without transcoders.

    Yields:
        `<release>/<id>`.

    Example:
        >>> next(release_names("gpt2-small-res-jb"))
        'gpt2-small-res-jb/blocks.0.hook_resid_pre'
    """
    directory = get_pretrained_saes_directory()
    for known in directory if release is None else [release]:
        for sae_id in directory[known].saes_map:
            if release is not None or not _is_transcoder(directory[known], sae_id):
                yield f"{known}/{sae_id}"


def describe_release(name: str) -> dict[str, Any]:
    """Say what SAELens's directory and the names in it tell of an SAE, without fetching it.

    Args:
        name: `<release>/<id>`.

    Returns:
        `release, model, hook_name, layer, d_sae, published_l0, architecture`; None if the names do not say.

    Example:
        >>> described = describe_release("gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82")
        >>> described["hook_name"], described["d_sae"], described["published_l0"], described["architecture"]
        ('blocks.12.hook_resid_post', 16384, 82, 'jumprelu')
    """
    release, _, sae_id = name.partition("/")
    lookup = get_pretrained_saes_directory()[release]
    text = f"{release}/{sae_id}/{lookup.saes_map[sae_id]}"
    transcoder = _is_transcoder(lookup, sae_id)
    found = _LAYER.search(sae_id)
    layer = None if found is None else int(found[1])
    return {
        "release": release,
        "model": lookup.model,
        "hook_name": None if transcoder else _hook(text, sae_id, layer),
        "layer": layer,
        "d_sae": _width(text),
        "published_l0": lookup.expected_l0.get(sae_id) or None,
        "architecture": "transcoder" if transcoder else _ARCHITECTURES.get(lookup.conversion_func or ""),
    }


def _hub_loader(release: str) -> Callable[..., Any]:
    kind = get_conversion_loader_name(release)
    # SAELens asks the hub for the shapes of Gemma Scope 2, even where all files are in the local cache.
    return gemma_scope_2_hub_loader if kind == "gemma_3" else NAMED_PRETRAINED_SAE_LOADERS[kind]


def _kind(lookup: PretrainedSAELookup, sae_id: str) -> str:
    return f"{lookup.release}-{lookup.conversion_func}-{lookup.saes_map[sae_id]}"


def _is_transcoder(lookup: PretrainedSAELookup, sae_id: str) -> bool:
    return "transcoder" in _kind(lookup, sae_id)


def _hook(text: str, sae_id: str, layer: int | None) -> str | None:
    if "embedding" in text:
        return "hook_embed"
    if found := _HOOK.search(sae_id):
        return found[0].replace(".hook_z", ".attn.hook_z") if ".attn." not in found[0] else found[0]
    site = next((site for pattern, site in _SITES if pattern.search(text)), None)
    return None if layer is None or site is None else f"blocks.{layer}.{site}"


def _width(text: str) -> int | None:
    found = _WIDTH.search(text)
    if found is None:
        return None
    number, unit, power, plain = found.groups()
    if unit:
        return _rounded(int(number), unit)
    return 2 ** int(power) if power else int(plain)


def _rounded(number: int, unit: str) -> int:
    """Width that a shortened number means: `16k` is 2¹⁴, `65k` is 2¹⁶, `131k` is 2¹⁷, `80k` is 80 · 2¹⁰."""
    decimal = number * 1000 ** (1 if unit == "k" else 2)
    power = 2 ** round(decimal).bit_length()
    near = [width for width in (power // 2, power) if width // 1000 ** (1 if unit == "k" else 2) == number]
    return near[0] if near else number * _THOUSANDS[unit]
