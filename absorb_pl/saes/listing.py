"""A table of the SAEs that patterns select, made without reading or fetching any weights."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from absorb_pl.saes.name_parts import split_hook
from absorb_pl.saes.names import expand_sae_names
from absorb_pl.saes.origins import origin_of
from absorb_pl.saes.properties import layer_of_hook

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


def _describe(name: str) -> dict[str, Any]:
    source, hook_name = split_hook(name)
    described = origin_of(source).describe(source)
    if hook_name is None:
        return described
    return {**described, "hook_name": hook_name, "layer": layer_of_hook(hook_name)}
