"""The page of a finished study, made again from its tables: for runs of before, and for two runs together."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from absorb_pl.data.drafts import user_path
from absorb_pl.errors import CacheCorruptedError
from absorb_pl.reports.page import write_page
from absorb_pl.study.finished import settings_of_run

_NEEDED = ("summary", "letters", "words")
_COMPARISON = "comparison.parquet"
TWO_RUNS = "comparison.html"
"""Name of the page of two runs together."""


def make_page(run_dir: str | Path, other_run_dir: str | Path | None = None) -> Path:
    """Write the page of a finished study from its tables, and from the comparison of its SAEs if there is one.

    Args:
        run_dir: The run folder of a finished study.
        other_run_dir: That of another study of the same words, whose SAEs come to the same page; it is called
            `comparison.html` then.

    Returns:
        The file.

    Raises:
        CacheCorruptedError: A folder holds no finished study of one model, or its report was cut short.
        OutputFolderError: The folder cannot be written.

    Example:
        >>> make_page("no/such/run")
        Traceback (most recent call last):
            ...
        absorb_pl.errors.CacheCorruptedError: `run_dir` was '...', expected the run folder of a finished...
    """
    folder = user_path(run_dir)
    config, tables = _read(folder)
    comparison = folder / _COMPARISON
    if comparison.is_file():
        tables["comparison"] = pd.read_parquet(comparison)
    if other_run_dir is None:
        return write_page(folder, tables, config)
    other = user_path(other_run_dir)
    other_config, other_tables = _read(other)
    shared = [name for name, one in config["rules"].items() if other_config["rules"].get(name) == one]
    both = {
        name: _by_rules(pd.concat([tables[name], _marked(table, tables, other.name)], ignore_index=True), shared)
        for name, table in other_tables.items()
        if name in tables
    }
    if "comparison" in tables:
        both["comparison"] = tables["comparison"]
    return write_page(folder, both, config, name=TWO_RUNS)


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, pd.DataFrame]]:
    config = settings_of_run(folder, _NEEDED)
    tables = {file.stem: pd.read_parquet(file) for file in sorted((folder / "tables").glob("*.parquet"))}
    if config.get("models"):
        raise CacheCorruptedError(
            "run_dir",
            str(folder),
            expected="the run folder of a study of one model",
            remedy="Name the folder of one of its models below it.",
        )
    return config, tables


def _marked(table: pd.DataFrame, first: dict[str, pd.DataFrame], run: str) -> pd.DataFrame:
    """A table of the other run; SAEs that the first run has too are told apart by the run's name."""
    known = set(first["summary"]["sae"])
    marked = table.copy()
    for column in ("sae", "name"):
        if column in marked:
            marked[column] = [f"{name} ({run})" if name in known else name for name in marked[column]]
    return marked


def _by_rules(table: pd.DataFrame, rules: Sequence[str]) -> pd.DataFrame:
    return table[table["rule"].isin(rules)] if "rule" in table else table
