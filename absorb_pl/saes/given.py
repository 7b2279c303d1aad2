"""SAEs as users give them: by names, as objects, or either under names of their own."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from absorb_pl.errors import AbsorbError
from absorb_pl.models.placement import local_path
from absorb_pl.saes.identity import sae_identity
from absorb_pl.saes.interface import SparseAutoencoder
from absorb_pl.saes.names import expand_sae_names
from absorb_pl.saes.scale import unwrapped_sae

_HASH_DIGITS = 8


def named_saes(saes: Any) -> list[str] | dict[str, Any]:
    """Give each SAE a name.

    Args:
        saes: A name, pattern or path for `load_sae`, an SAE, a list of these, or a mapping from names to these.

    Returns:
        Names and patterns alone as a list; else a mapping from names to names or SAEs. An SAE without a name is called
        after its class and its content.

    Raises:
        AbsorbError: Something is neither a name nor an SAE.

    Example:
        >>> named_saes("speller/*"), named_saes({"mine": "my_folder"})
        (['speller/*'], {'mine': 'my_folder'})
    """
    if isinstance(saes, Mapping):
        several: Any = {name: _as_text(sae) for name, sae in saes.items()}
    else:
        several = [_as_text(sae) for sae in (saes if isinstance(saes, list | tuple) else [saes])]
    for name, sae in several.items() if isinstance(several, dict) else (("", each) for each in several):
        if not isinstance(name, str) or (isinstance(several, dict) and not name):
            raise AbsorbError("saes", name, expected="a text as a name", remedy="Rename this SAE.")
        if not isinstance(sae, str | SparseAutoencoder):
            raise AbsorbError(
                "saes",
                sae,
                expected="names of SAEs, or SAEs with `encode`, `decode` and `W_dec`, in a list or by their names",
                remedy="Name SAEs (`absorb-pl list` shows which there are), or give objects.",
            )
    if isinstance(several, dict):
        return list(several) if all(isinstance(s, str) and s == name for name, s in several.items()) else several
    if all(isinstance(sae, str) for sae in several):
        return several
    named: dict[str, Any] = {}
    for sae in several:
        name = sae if isinstance(sae, str) else _own_name(sae)
        if name in named:
            rank_zero_warn(f"Given more than once and scored once: {name}.")
        named[name] = sae
    return named


def expand_saes(saes: Sequence[str] | Mapping[str, Any]) -> dict[str, Any]:
    """Replace patterns by the names they select, and leave out what is named already.

    Args:
        saes: From `named_saes`.

    Returns:
        Names for `load_sae`, or SAEs, by the names that tables show.

    Raises:
        AbsorbError: A pattern under a name of its own selects several SAEs, or two SAEs have one name.
        SaeNotFoundError: A pattern selects nothing.

    Example:
        >>> expand_saes(["my/sae", "speller/l1-standard-w512-dens*"])
        {'my/sae': 'my/sae', 'speller/l1-standard-w512-dense': 'speller/l1-standard-w512-dense'}
    """
    if not isinstance(saes, Mapping):
        return {name: name for name in distinct_saes([name for each in saes for name in expand_sae_names([each])])}
    found: dict[str, Any] = {}
    for name, sae in saes.items():
        selected = expand_sae_names([sae]) if isinstance(sae, str) else [sae]
        if len(selected) > 1 and name != sae:
            raise AbsorbError(
                f"saes[{name!r}]",
                sae,
                expected=f"one SAE, but it selects {len(selected)}",
                remedy="Give patterns without a name of their own.",
            )
        for each in selected:
            shown = each if name == sae else name
            before = found.setdefault(shown, each)
            if before is not each and not (isinstance(before, str) and isinstance(each, str) and before == each):
                raise AbsorbError("saes", shown, expected="a name for each SAE", remedy="Rename one of the two.")
    return found


def distinct_saes(names: Sequence[str]) -> list[str]:
    """Leave out SAEs that are named already, perhaps written otherwise, and say so.

    Args:
        names: Names for `load_sae`.

    Example:
        >>> distinct_saes(["speller/a", "speller/b"])
        ['speller/a', 'speller/b']
    """
    kept: dict[str, str] = {}
    again = []
    for name in names:
        path, before = local_path(name), len(kept)
        first = kept.setdefault(name if path is None else str(path.resolve()), name)
        if len(kept) == before:
            again.append(name if name == first else f"{name} (as {first})")
    if again:
        rank_zero_warn(f"Named more than once and scored once: {', '.join(again)}.")
    return list(kept.values())


def _as_text(sae: Any) -> Any:
    return str(sae) if isinstance(sae, Path) else sae


def _own_name(sae: SparseAutoencoder) -> str:
    return f"{type(unwrapped_sae(sae)).__name__}-{sae_identity(sae)[:_HASH_DIGITS]}"
