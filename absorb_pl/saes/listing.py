"""A table of the SAEs that patterns select, made without reading or fetching any weights."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from absorb_pl.errors import AbsorbError
from absorb_pl.models.bundled import SPELLER
from absorb_pl.models.placement import LOAD_ERRORS, local_folder, local_path
from absorb_pl.saes.bundled import bundled_sae_path
from absorb_pl.saes.folders import FILES, not_found, read_config
from absorb_pl.saes.formats import disk_loader
from absorb_pl.saes.functions import is_function_name
from absorb_pl.saes.loading import split_hook
from absorb_pl.saes.names import expand_sae_names
from absorb_pl.saes.releases import describe_release, require_release

COLUMNS = {
    "name": "str",
    "release": "str",
    "model": "str",
    "hook_name": "str",
    "layer": "Int64",
    "d_sae": "Int64",
    "published_l0": "float64",
    "architecture": "str",
}


def list_saes(patterns: Sequence[str]) -> pd.DataFrame:
    """Describe the SAEs that names and patterns select.

    Bundled SAEs and local folders are described by their `cfg.json` alone, whose metadata may hold L0. Of SAELens's
    releases, its directory tells L0, and the rest is read off release, id and path as far as they say. SAEs made by
    functions are listed by name, for only making them would tell more.

    Args:
        patterns: Names or patterns, see `expand_sae_names`.

    Returns:
        One row per SAE, in the order selected: `name, release, model, hook_name, layer, d_sae, published_l0,
        architecture`. What nothing says is missing (`<NA>` or NaN).

    Raises:
        SaeNotFoundError: A pattern selects nothing, or a name means nothing.

    Example:
        >>> row = list_saes(["speller/l1-batchtopk-w1024-*"]).iloc[0]
        >>> row["name"], row["hook_name"], int(row["d_sae"]), row["architecture"]
        ('speller/l1-batchtopk-w1024-medium', 'blocks.1.hook_resid_post', 1024, 'batchtopk')
    """
    rows = [{"name": name, **_describe(name)} for name in expand_sae_names(patterns)]
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    return table.astype({name: dtype for name, dtype in COLUMNS.items() if dtype != "str"})


def layer_of_hook(hook_name: str | None) -> int | None:
    """Number of the block in a hook's name.

    Args:
        hook_name: A TransformerLens hook name.

    Returns:
        The number; None where there is none.

    Example:
        >>> layer_of_hook("blocks.12.hook_resid_post"), layer_of_hook("hook_embed")
        (12, None)
    """
    found = re.search(r"blocks\.(\d+)\.", hook_name or "")
    return int(found[1]) if found else None


def _describe(name: str) -> dict[str, Any]:
    source, hook_name = split_hook(name)
    described = _source(source)
    if hook_name is None:
        return described
    return {**described, "hook_name": hook_name, "layer": layer_of_hook(hook_name)}


def _source(name: str) -> dict[str, Any]:
    bundled = name.startswith(f"{SPELLER}/") and local_folder(name) is None
    path = bundled_sae_path(name) if bundled else local_path(name)
    if path is not None:
        return {"release": SPELLER if bundled else None, **_folder(name, path)}
    if is_function_name(name):
        return {}
    require_release(name)
    return describe_release(name)


def _folder(name: str, path: Path) -> dict[str, Any]:
    try:
        loader = disk_loader(path)
        if loader is None and not (path / FILES[0]).is_file():
            raise not_found(name, f"There is no {FILES[0]} in that folder.")
        config = read_config(path) if loader is None else loader(path, "meta")[0]
    except AbsorbError:
        raise
    except LOAD_ERRORS as error:
        raise not_found(name, f"The folder does not load: {error}.") from error
    # Before its sixth version SAELens kept what is metadata now beside the rest.
    metadata = {**config, **config.get("metadata", {})}
    hook_name = metadata.get("hook_name") or metadata.get("hook_point")
    return {
        "model": metadata.get("model_name"),
        "hook_name": hook_name,
        "layer": layer_of_hook(hook_name),
        "d_sae": config.get("d_sae"),
        "published_l0": metadata.get("l0"),
        "architecture": metadata.get("training_architecture") or config.get("architecture"),
    }
