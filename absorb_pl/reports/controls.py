"""Controls among the SAEs of a study."""

from collections.abc import Mapping

import pandas as pd


def without_controls(tables: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Tables without the rows about controls, whose rates would blur means over SAEs; controls alone stay.

    Args:
        tables: From `study_tables`.
    """
    summary = tables["summary"]
    controls = set(summary.loc[summary["control"] != "", "sae"])
    if controls == set(summary["sae"]):
        return dict(tables)
    return {name: table[~table["sae"].isin(controls)] if "sae" in table else table for name, table in tables.items()}
