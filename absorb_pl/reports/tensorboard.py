"""A study in TensorBoard: training curves, the summary, hyper-parameters against rates, and the figures."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import image as image_summary
from torch.utils.tensorboard.writer import FileWriter

from absorb_pl.data import writing_to

FOLDER = "tensorboard"
_HPARAMS = ("architecture", "hook_name", "layer", "d_sae", "rule")
_SCALARS = (
    "absorption_rate",
    "absorption_fraction",
    "l0",
    "explained_variance",
    "num_splits",
    "probe_f1",
    "top_latent_f1",
    "main_latent_recall",
)


def log_study(run_dir: Path, tables: Mapping[str, pd.DataFrame], figures: Mapping[str, Path]) -> None:
    """Write the TensorBoard events of a study anew, below `run_dir/tensorboard`.

    Args:
        run_dir: The run's folder.
        tables: `summary` and `training`, as a study writes them.
        figures: PNG files by name, from `save_figures`.

    Raises:
        OutputFolderError: The folder cannot be written.
    """
    folder = run_dir / FOLDER
    with writing_to(run_dir):
        shutil.rmtree(folder, ignore_errors=True)
        _write_overview(folder, tables["summary"], figures)
        for (kind, name), curve in tables["training"].groupby(["probe", "name"], sort=False):
            with SummaryWriter(str(folder / str(kind) / _folder_name(str(name)))) as writer:
                for metric in curve.columns.difference(["probe", "name", "epoch"]):
                    for epoch, value in curve[["epoch", metric]].dropna().itertuples(index=False):
                        writer.add_scalar(metric, value, int(epoch))
        _write_rates(folder, tables["summary"])


def log_rates(run_dir: Path, summary: pd.DataFrame, figures: Mapping[str, Path]) -> None:
    """Write the TensorBoard events of rates alone anew, below `run_dir/tensorboard`.

    Args:
        run_dir: The folder of a run, or of rates rescored.
        summary: The `summary` table.
        figures: PNG files by name, from `save_figures`.

    Raises:
        OutputFolderError: The folder cannot be written.
    """
    folder = run_dir / FOLDER
    with writing_to(run_dir):
        shutil.rmtree(folder, ignore_errors=True)
        _write_overview(folder, summary, figures)
        _write_rates(folder, summary)


def _write_overview(folder: Path, summary: pd.DataFrame, figures: Mapping[str, Path]) -> None:
    images = FileWriter(str(folder))
    for name, file in figures.items():
        images.add_summary(_image(f"figures/{name}", file))
    images.close()
    with SummaryWriter(str(folder)) as writer:
        writer.add_text("summary", _markdown(summary))


def _write_rates(folder: Path, summary: pd.DataFrame) -> None:
    with SummaryWriter(str(folder / "saes")) as writer:
        for row in summary.to_dict("records"):
            writer.add_hparams(
                {name: row[name] for name in _HPARAMS},
                {f"sae/{name}": float(row[name]) for name in _SCALARS if pd.notna(row[name])},
                run_name=_folder_name(f"{row['sae']}-{row['rule']}"),
            )


def _image(tag: str, file: Path) -> Any:
    """The file's own bytes as an image summary, which torch would make of pixels and compress again."""
    summary = image_summary(tag, np.zeros((1, 1, 3), np.uint8), dataformats="HWC")
    with Image.open(file) as image:
        found = summary.value[0].image
        found.width, found.height, found.colorspace = *image.size, len(image.getbands())
    found.encoded_image_string = file.read_bytes()
    return summary


def _folder_name(name: str) -> str:
    return name.replace("/", "-")


def _markdown(table: pd.DataFrame) -> str:
    shown = table.map(lambda value: f"{value:.3f}" if isinstance(value, float) else str(value))
    lines = [list(table.columns), ["---"] * len(table.columns), *shown.to_numpy().tolist()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
