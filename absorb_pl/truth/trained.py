"""The small SAEs that were trained in known worlds and ship with the package."""

from pathlib import Path

from absorb_pl.errors import SaeNotFoundError
from absorb_pl.models.closest import closest_names

_ASSETS = Path(__file__).parent / "assets"


def list_trained_saes() -> list[str]:
    """Names of the SAEs trained in known worlds: the world, then architecture and sparsity.

    Example:
        >>> all(name.count("/") == 1 for name in list_trained_saes())
        True
    """
    return sorted(f"{file.parents[1].name}/{file.parent.name}" for file in _ASSETS.glob("*/*/cfg.json"))


def trained_sae_path(name: str) -> Path:
    """Folder of an SAE that was trained in a known world, in SAELens's format.

    Args:
        name: World and SAE.

    Raises:
        SaeNotFoundError: There is none of this name; names the nearest.

    Example:
        >>> trained_sae_path("no/such")
        Traceback (most recent call last):
            ...
        absorb_pl.errors.SaeNotFoundError: `name` was 'no/such', expected an SAE trained in a known world...
    """
    known = list_trained_saes()
    if name not in known:
        raise SaeNotFoundError(
            "name",
            name,
            expected="an SAE trained in a known world",
            remedy=f"Nearest: {closest_names(name, known)}.",
        )
    return _ASSETS / name
