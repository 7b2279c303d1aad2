"""Patterns over the SAEs that have names: the bundled suite and the releases that SAELens knows."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from absorb_pl.errors import SaeNotFoundError
from absorb_pl.models.bundled import SPELLER, list_bundled_saes

_WILDCARDS = frozenset("*?[")


def expand_sae_names(patterns: Sequence[str]) -> list[str]:
    """Replace patterns by the names they select; plain names stay as they are.

    Args:
        patterns: Names for `load_sae`, or shell patterns over `speller/…`, over `<release>/<id>` of SAELens
            (the release itself without wildcards) or over local SAELens folders.

    Returns:
        Names in the order of the patterns, each once.

    Raises:
        SaeNotFoundError: A pattern selects nothing, or there are no patterns.

    Example:
        >>> expand_sae_names(["my/sae", "speller/l1-batchtopk-w1024-*"])[0]
        'my/sae'
    """
    names = dict.fromkeys(name for pattern in patterns for name in _matches(pattern))
    if not names:
        raise SaeNotFoundError("saes", list(patterns), expected="at least one SAE", remedy="Name an SAE or a pattern.")
    return list(names)


def _matches(pattern: str) -> list[str]:
    if not _WILDCARDS & set(pattern):
        return [pattern]
    known = _known_names(pattern)
    found = [name for name in known if fnmatchcase(name, pattern)]
    if not found:
        raise SaeNotFoundError(
            "saes",
            pattern,
            expected="a pattern that selects SAEs",
            remedy=f"Among the {len(known)} names looked at are {', '.join(known[:5]) or 'none'}.",
        )
    return found


def _known_names(pattern: str) -> list[str]:
    release = pattern.split("/", 1)[0]
    if release == SPELLER:
        return list_bundled_saes()
    if not _WILDCARDS & set(release):
        from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

        directory = get_pretrained_saes_directory()
        if release in directory:
            return [f"{release}/{sae_id}" for sae_id in directory[release].saes_map]
    root, relative = Path(pattern).expanduser().anchor or ".", Path(pattern).expanduser()
    within = relative.relative_to(root) if relative.is_absolute() else relative
    return sorted(str(path) for path in Path(root).glob(str(within)) if (path / "cfg.json").is_file())
