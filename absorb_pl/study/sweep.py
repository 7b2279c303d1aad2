"""Studies of several models by one configuration."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from lightning.pytorch.utilities import rank_zero_only

from absorb_pl.data.file_names import distinct_names
from absorb_pl.data.publication import publishing
from absorb_pl.evaluators.writers import write_table
from absorb_pl.models.processing import model_processing
from absorb_pl.reports.terminal import print_summary
from absorb_pl.saes.given import expand_saes
from absorb_pl.saes.loading import load_sae
from absorb_pl.saes.names import expand_sae_names
from absorb_pl.saes.processing import sae_processing
from absorb_pl.study.config import StudyConfig
from absorb_pl.study.pipeline import study_of_model
from absorb_pl.study.result import StudyResult


def run_study(config: StudyConfig, *, show: bool = True) -> StudyResult:
    """Measure splitting and absorption in a list of SAEs, of one model or of several.

    Every model has one pass over its words, whatever the number of its SAEs and hooks. SAEs of a model that were
    trained on differently processed weights (`model_from_pretrained_kwargs` in their metadata) are measured as if they
    were of several models. With several models each has a run folder of its own below `run_dir`, named after it, and
    the tables of all are below `run_dir/tables`, with the column `model` first.

    Args:
        config: The settings.
        show: Whether to print the results.

    Returns:
        The tables, which are also in the run's folder.

    Raises:
        AbsorbError: One of the named errors of `absorb_pl.errors`; nothing half-written is left behind.

    The README has an example.
    """
    if not isinstance(config.model, str):  # it has the processing that it has
        return study_of_model(config, model_processing(config.model), show=show)
    parts = {
        "+".join([model, *processing]): (model, processing, group)
        for model, saes in (config.models or {config.model: config.saes}).items()
        for processing, group in saes_by_processing(saes, config.sae_dtype).items()
    }
    if not config.models and len(parts) == 1:
        (_, processing, _), *_ = parts.values()
        return study_of_model(config, processing, show=show)
    run_dir, folders = Path(config.run_dir), distinct_names(parts, folder_of_model)
    results: dict[str, StudyResult] = {}
    for name, (model, processing, saes) in parts.items():
        part = replace(config, model=model, saes=saes, models={}, run_dir=str(run_dir / folders[name]))
        found = study_of_model(part, processing, show=show)
        results[name] = replace(found, stages=None)  # the stages hold the language model
    names = list(next(iter(results.values())).tables)
    tables = {name: _joined({model: result.tables[name] for model, result in results.items()}) for name in names}
    if tables and getattr(rank_zero_only, "rank", 0) == 0:
        with publishing(run_dir) as folder:
            for name, table in tables.items():
                write_table(table, folder / "tables" / f"{name}.parquet")
        if show and len(results) > 1:
            print_summary(
                tables["summary"], notes=[f"Tables of all models are in {run_dir / 'tables'}."], columns=config.columns
            )
    return StudyResult(run_dir, tables, settings=config.plain())


def saes_by_processing(
    saes: Sequence[str] | Mapping[str, Any], dtype: str
) -> dict[tuple[str, ...], Sequence[str] | Mapping[str, Any]]:
    """Group SAEs by how they ask for the model to be processed, as each group is measured on a model of its own.

    Args:
        saes: Names for `load_sae`, or patterns; or these, or SAEs, by name.
        dtype: Dtype to load them in.

    Returns:
        Names by processing (see `sae_processing`); the patterns as they are where all ask for the same.

    Example:
        >>> saes_by_processing(["speller/l1-standard-*"], "float32")
        {(): ['speller/l1-standard-*']}
    """
    named = expand_saes(saes) if isinstance(saes, Mapping) else {name: name for name in expand_sae_names(saes)}
    groups: dict[tuple[str, ...], dict[str, Any]] = {}
    for name, sae in named.items():
        asked = sae_processing(load_sae(sae, dtype=dtype) if isinstance(sae, str) else sae)
        groups.setdefault(asked, {})[name] = sae
    if len(groups) < 2:
        return {processing: saes for processing in groups}
    return {asked: group if isinstance(saes, Mapping) else list(group) for asked, group in groups.items()}


def folder_of_model(model: str) -> str:
    """Name of a model's folder below the run's.

    Args:
        model: Name for `load_language_model`.

    Example:
        >>> folder_of_model("google/gemma-2-2b")
        'google-gemma-2-2b'
    """
    return re.sub(r"[^\w.-]+", "-", model).strip("-.") or "model"


def _joined(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    parts = []
    for model, table in tables.items():
        rest = table.drop(columns="model", errors="ignore")
        rest.insert(0, "model", model)
        parts.append(rest)
    return pd.concat(parts, ignore_index=True)
