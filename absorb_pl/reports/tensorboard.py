"""A study in TensorBoard: figures and the summary, rates of each SAE beside its hyper-parameters, and training curves.

TensorBoard ticks no run in its tabs of images, scalars and texts when a folder holds more than 40 of them (its time
series allow 500), so a study is one run, each SAE at most one more, and many SAEs have a folder of their own.
"""

from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from rich.console import Console
from torch.utils.tensorboard.summary import hparams, image, scalar, text
from torch.utils.tensorboard.writer import FileWriter

from absorb_pl.data.drafts import writing_to
from absorb_pl.reports.names import folder_names
from absorb_pl.reports.summary_columns import summary_rows
from absorb_pl.reports.terminal import print_summary

FOLDER = "tensorboard"
FOLDER_OF_MANY = "tensorboard_saes"
MOST_RUNS = 40
"""Runs of a folder that TensorBoard ticks in all its tabs."""

_STUDY = "study"
_WIDTH = 1000
_CHOICES = {"architecture": "architecture", "hook": "hook_name"}
_NUMBERS = {"layer": "layer", "width": "d_sae"}
_OF_RULES = {"rate": "absorption_rate", "fraction": "absorption_fraction"}
_OF_SAES = ("l0", "explained_variance", "num_splits", "probe_f1", "top_latent_f1", "main_latent_recall")

_Events = list[tuple[int, Any]]
"""Steps and summaries of a run."""


def log_study(run_dir: Path, tables: Mapping[str, pd.DataFrame], figures: Mapping[str, Path]) -> list[str]:
    """Write the TensorBoard events of a study.

    The run `study` holds figures, the summary and curves of linear probes, the run of each SAE its rates,
    hyper-parameters and the curve of its k-sparse probes. All are below `run_dir/tensorboard`, unless they are
    more than `MOST_RUNS`: then those of SAEs are below `run_dir/tensorboard_saes`.

    Args:
        run_dir: The run's folder, or one that is published into it.
        tables: `summary`, and `training` where probes were trained.
        figures: PNG files by name, from `save_figures`.

    Returns:
        Names of the folders, each for `tensorboard --logdir`.

    Raises:
        OutputFolderError: The folder cannot be written.
    """
    summary = tables["summary"]
    names = folder_names(summary["sae"].unique(), taken=[_STUDY])
    of_study: dict[str, _Events] = {_STUDY: _overview(summary, figures)}
    of_saes = {names[sae]: events for sae, events in _rates(summary).items()}
    if "training" in tables:
        for (probe, name), curve in tables["training"].groupby(["probe", "name"], sort=False):
            if probe == "linear_probe":
                of_study[_STUDY] += _curve(f"{probe}/{name}", curve)
            else:
                of_saes[names[str(name)]] += _curve(str(probe), curve)
    few = len(of_study) + len(of_saes) <= MOST_RUNS
    folders = {FOLDER: {**of_study, **of_saes}} if few else {FOLDER: of_study, FOLDER_OF_MANY: of_saes}
    with writing_to(run_dir):
        for folder, runs in folders.items():
            _write(run_dir / folder, runs)
    return list(folders)


def _overview(summary: pd.DataFrame, figures: Mapping[str, Path]) -> _Events:
    events = [(0, _image(f"figures/{name}", file)) for name, file in figures.items()]
    return [*events, (0, text("summary", _text(summary)))]


def _rates(summary: pd.DataFrame) -> dict[str, _Events]:
    """Rates and hyper-parameters by SAE; TensorBoard's table of hyper-parameters shows a row for each."""
    events: dict[str, _Events] = {}
    choices = {name: sorted(map(str, summary[column].unique())) for name, column in _CHOICES.items()}
    measured = {
        f"{name}/{rule}": (column, rule)
        for name, column in _OF_RULES.items()
        for rule, rows in summary.groupby("rule", sort=False)
        if rows[column].notna().any()
    }
    for (_, sae), rows in summary_rows(summary).items():
        about = next(iter(rows.values()))
        values = {name: rows[str(rule)][column] for name, (column, rule) in measured.items() if rule in rows}
        values |= {f"sae/{name}": about[name] for name in _OF_SAES}
        settings = {name: str(about[column]) for name, column in _CHOICES.items()}
        settings |= {name: int(about[column]) for name, column in _NUMBERS.items()}
        # All runs name all measures: TensorBoard takes the list of any one of them for all.
        names = dict.fromkeys([*measured, *(f"sae/{name}" for name in _OF_SAES)])
        shown = [scalar(name, float(value)) for name, value in values.items() if pd.notna(value)]
        events[sae] = [(0, event) for event in (*hparams(settings, names, choices), *shown)]
    return events


def _curve(tag: str, curve: pd.DataFrame) -> _Events:
    return [
        (int(epoch), scalar(f"{tag}/{metric}", value))
        for metric in curve.columns.difference(["probe", "name", "epoch"])
        for epoch, value in curve[["epoch", metric]].dropna().itertuples(index=False)
    ]


def _write(folder: Path, runs: Mapping[str, _Events]) -> None:
    for run, events in runs.items():
        writer = FileWriter(str(folder / run))
        for step, summary in events:
            writer.add_summary(summary, step)
        writer.close()


def _image(tag: str, file: Path) -> Any:
    """The file's own bytes as an image summary, which torch would make of pixels and compress again."""
    summary = image(tag, np.zeros((1, 1, 3), np.uint8), dataformats="HWC")
    with Image.open(file) as opened:
        found = summary.value[0].image
        found.width, found.height, found.colorspace = *opened.size, len(opened.getbands())
    found.encoded_image_string = file.read_bytes()
    return summary


def _text(summary: pd.DataFrame) -> str:
    """The printed table with all its columns, which Markdown leaves as it is."""
    stream = StringIO()
    print_summary(summary, Console(file=stream, width=_WIDTH, force_jupyter=False), columns="all")
    return f"```\n{stream.getvalue()}```"
