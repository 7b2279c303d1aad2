"""What the experiments share: SAEs described by layer, width and L0, and frames read back by path."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from absorb_pl.errors import AbsorbError
from absorb_pl.ranges import Count, check_ranges

EXPERIMENTS_DIR = Path("experiments")
"""Folder of the experiments' own folders, below the working folder."""


@dataclass(frozen=True)
class SaeInfo:
    """An SAE as tables and plots of the experiments name it.

    Attributes:
        l0: Latents that fire on a word, measured on the held-out words or as published.
        layer: Number of the block that it reads; -1 where its hook names none.
        width: Number of latents.
        path: Its name for `load_sae`.

    Example:
        >>> SaeInfo(l0=22, layer=0, width=16_384, path="gemma-scope-2b-pt-res/layer_0/width_16k/average_l0_22").width
        16384
    """

    l0: float | int
    layer: int
    width: int
    path: str


def humanify_sae_width(width: Count) -> str:
    """A width as the plots' legends write it.

    Args:
        width: Number of latents.

    Returns:
        Whole thousands or millions; widths below ten thousand as they are.

    Example:
        >>> humanify_sae_width(16_000), humanify_sae_width(1_000_000), humanify_sae_width(512)
        ('16k', '1m', '512')
    """
    check_ranges(humanify_sae_width, locals())
    if width >= 1_000_000:
        return f"{width // 1_000_000}m"
    return f"{width // 1_000}k" if width >= 10_000 else str(width)


def load_experiment_df(experiment_name: str, path: Path | str) -> pd.DataFrame:
    """Read a data frame that an experiment left.

    Args:
        experiment_name: Which experiment makes it, for the error.
        path: The file.

    Raises:
        AbsorbError: The file is not there.

    Example:
        >>> load_experiment_df("k_sparse_probing", "no_such_folder/raw_results.parquet")
        Traceback (most recent call last):
            ...
        absorb_pl.errors.AbsorbError: `path` was 'no_such_folder/raw_results.parquet', expected a file that ...
    """
    path = Path(path)
    if not path.is_file():
        raise AbsorbError(
            "path",
            str(path),
            expected=f"a file that the experiment {experiment_name} leaves",
            remedy=f"Run {experiment_name} first, or name the folder of the SAE's frames.",
        )
    return pd.read_parquet(path)
