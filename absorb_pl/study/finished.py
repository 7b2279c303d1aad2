"""The run folder of a finished study, checked before it is read."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from absorb_pl.data.publication import check_published
from absorb_pl.errors import CacheCorruptedError


def settings_of_run(run_dir: Path, tables: Iterable[str]) -> dict[str, Any]:
    """The settings of a finished study whose tables can be read.

    Args:
        run_dir: Its run folder.
        tables: Names of the tables that must be there.

    Raises:
        CacheCorruptedError: The folder holds no finished study, or its report was cut short.
    """
    for name in ("config.yaml", *(f"tables/{name}.parquet" for name in tables)):
        if not (run_dir / name).is_file():
            raise CacheCorruptedError(
                "run_dir",
                str(run_dir),
                expected=f"the run folder of a finished study of this version, with `{name}`",
                remedy="Run `absorb-pl study`, or name its `run_dir`.",
            )
    check_published(run_dir, "tables")
    return yaml.safe_load((run_dir / "config.yaml").read_text(encoding="utf-8"))
