"""The SAEs that ship inside the package."""

from pathlib import Path

from absorb_pl.errors import SaeNotFoundError
from absorb_pl.models.bundled import ASSETS, SPELLER
from absorb_pl.models.closest import closest_names


def list_bundled_saes() -> list[str]:
    """Return the names of the bundled SAEs, sorted; `load_sae` takes any of them.

    A name says the layer after which the SAE reads, its architecture, its number of latents and how sparse
    it is among its kind; the model card beside the assets has the measured figures.

    Example:
        >>> "speller/l1-batchtopk-w1024-medium" in list_bundled_saes()
        True
    """
    return sorted(f"{SPELLER}/{path.parent.name}" for path in (ASSETS / "saes").glob("*/cfg.json"))


def bundled_sae_path(name: str) -> Path:
    """Return the SAELens folder of a bundled SAE.

    Args:
        name: Full name, `"speller/<sae-name>"`.

    Raises:
        SaeNotFoundError: No bundled SAE has this name; the message names the closest ones.

    Example:
        >>> bundled_sae_path("speller/l1-batchtopk-w1024-medium").name
        'l1-batchtopk-w1024-medium'
    """
    names = list_bundled_saes()
    if name not in names:
        raise SaeNotFoundError(
            "name",
            name,
            expected="the name of a bundled SAE",
            remedy=f"Closest: {closest_names(name, names)}. `absorb-pl list '{SPELLER}/*'` shows all.",
        )
    return ASSETS / "saes" / name.removeprefix(f"{SPELLER}/")
