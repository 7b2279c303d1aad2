"""Patterns over the SAEs that have names: the bundled suite, local folders, and the releases that SAELens knows."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

from absorb_pl.errors import SaeNotFoundError
from absorb_pl.models.bundled import SPELLER
from absorb_pl.models.closest import closest_names
from absorb_pl.models.placement import local_path
from absorb_pl.saes.functions import is_function_name, split_key
from absorb_pl.saes.name_parts import split_control, split_hook
from absorb_pl.saes.origins import ORIGINS, WILDCARDS, Function


def expand_sae_names(patterns: Sequence[str]) -> list[str]:
    """Replace patterns by the names they select; plain names stay as they are.

    Args:
        patterns: Names for `load_sae`, or shell patterns over `speller/…`, over local folders and files, over
            `<release>/<id>` of SAELens (with wildcards in the release too, where transcoders are passed over and local
            paths come first), or over the keys of a function (`my_saes:load_all/layer_*`). A function that gives
            several SAEs, named without a key, means all of them.

    Returns:
        Names in the order of the patterns, each once.

    Raises:
        SaeNotFoundError: A pattern selects nothing, or there are no patterns.

    Example:
        >>> expand_sae_names(["my/sae", "speller/l1-batchtopk-w1024-*"])[0]
        'my/sae'
        >>> expand_sae_names(["gemma-scope-2b-pt-*/layer_12/width_16k/canonical"])[0]
        'gemma-scope-2b-pt-att-canonical/layer_12/width_16k/canonical'
    """
    names = dict.fromkeys(name for pattern in patterns for name in _matches(pattern))
    if not names:
        raise SaeNotFoundError("saes", list(patterns), expected="at least one SAE", remedy="Name an SAE or a pattern.")
    return list(names)


def _matches(pattern: str) -> list[str]:
    if is_function_name(pattern) and local_path(pattern) is None:
        return _keys(pattern)
    if not WILDCARDS & set(pattern) or _is_there(pattern):
        return [pattern]
    known = next((names for origin in ORIGINS if (names := origin.names(pattern))), [])
    return _selected(pattern, pattern, known)


def _keys(pattern: str) -> list[str]:
    function, key = split_key(pattern)
    if key is not None and not WILDCARDS & set(key):
        return [pattern]
    keys = [name.removeprefix(f"{function}/") for name in Function().names(pattern)]
    return [f"{function}/{name}" for name in _selected(pattern, key or "*", keys)] if keys else [pattern]


def _is_there(name: str) -> bool:
    """Whether a name with brackets is that of a folder, apart from a hook or control after it."""
    return local_path(split_hook(split_control(name)[0])[0]) is not None


def _selected(given: str, pattern: str, known: list[str]) -> list[str]:
    found = [name for name in known if fnmatchcase(name, pattern)]
    if not found:
        releases = [SPELLER, *get_pretrained_saes_directory()]
        raise SaeNotFoundError(
            "saes",
            given,
            expected="a pattern that selects SAEs",
            remedy=f"It selects none of {len(known)} names. Closest: {closest_names(pattern, known)}."
            if known
            else f"No folder and no release matches. Closest releases: {closest_names(pattern, releases)}.",
        )
    return found
