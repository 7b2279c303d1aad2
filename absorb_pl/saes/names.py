"""Patterns over the SAEs that have names: the bundled suite, local folders, and the releases that SAELens knows."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from absorb_pl.errors import SaeNotFoundError
from absorb_pl.models.bundled import SPELLER
from absorb_pl.models.closest import closest_names
from absorb_pl.models.placement import local_path
from absorb_pl.saes.bundled import list_bundled_saes
from absorb_pl.saes.formats import holds_sae
from absorb_pl.saes.functions import call_function, is_function_name, split_key
from absorb_pl.saes.loading import split_control, split_hook
from absorb_pl.saes.releases import release_names

_WILDCARDS = frozenset("*?[")


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
    if not _WILDCARDS & set(pattern) or _is_there(pattern):
        return [pattern]
    known = _known_names(pattern)
    return _selected(pattern, pattern, known)


def _is_there(name: str) -> bool:
    """Whether a name with brackets is that of a folder, a hook or control after it aside."""
    return local_path(split_hook(split_control(name)[0])[0]) is not None


def _selected(given: str, pattern: str, known: list[str]) -> list[str]:
    found = [name for name in known if fnmatchcase(name, pattern)]
    if not found:
        raise SaeNotFoundError(
            "saes",
            given,
            expected="a pattern that selects SAEs",
            remedy=f"It selects none of {len(known)} names. Closest: {closest_names(pattern, known)}."
            if known
            else f"No folder and no release matches. Closest releases: {closest_names(pattern, _releases())}.",
        )
    return found


def _keys(pattern: str) -> list[str]:
    function, key = split_key(pattern)
    if key is not None and not _WILDCARDS & set(key):
        return [pattern]
    made = call_function(function)
    if not isinstance(made, Mapping):
        return [pattern]
    return [f"{function}/{name}" for name in _selected(pattern, key or "*", list(made))]


def _known_names(pattern: str) -> list[str]:
    release = pattern.split("/", 1)[0]
    if release == SPELLER:
        return list_bundled_saes()
    if not _WILDCARDS & set(release):
        if release in _releases():
            return list(release_names(release))
        return _local_names(pattern)
    return _local_names(pattern) or (list(release_names()) if "/" in pattern else [])


def _releases() -> list[str]:
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    return [SPELLER, *get_pretrained_saes_directory()]


def _local_names(pattern: str) -> list[str]:
    root, relative = Path(pattern).expanduser().anchor or ".", Path(pattern).expanduser()
    within = relative.relative_to(root) if relative.is_absolute() else relative
    found = Path(root).glob(str(within))
    named = Path(pattern).suffix  # a pattern over files says so; others select folders
    return sorted(str(path) for path in found if (path.is_dir() or path.suffix == named) and holds_sae(path))
