"""Prediction writers: rank-unique shards while predicting, one sorted table at the end."""

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from typing_extensions import override

from absorb_pl.data import writing_to


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write a table as Parquet under a temporary name and rename it when whole.

    Raises:
        OutputFolderError: The folder cannot be written.
    """
    part = path.with_name(f".{path.name}.part")
    with writing_to(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            table.to_parquet(part, index=False)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


def empty_table(columns: Mapping[str, str]) -> pd.DataFrame:
    """A table without rows.

    Args:
        columns: Column names and dtypes.
    """
    return pd.DataFrame({name: pd.Series(dtype=dtype) for name, dtype in columns.items()})


class PredictionTableWriter(BasePredictionWriter):
    """Writes predicted tables, one a batch, into one Parquet file without duplicates and in a fixed order.

    Every rank writes shards of its own beside `path`; rank zero merges them when all have finished. A shard that
    cannot be written raises.

    Args:
        path: The table to write.
        sort_by: Columns that identify a row and give the order.
        columns: Columns and dtypes of the table where nothing was predicted; the evaluator's own if not given.
    """

    def __init__(
        self,
        path: str | Path,
        sort_by: Sequence[str] = ("sae", "row"),
        columns: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(write_interval="batch")
        self.path = Path(path)
        self.sort_by = list(sort_by)
        self._columns = columns

    @property
    def _shards(self) -> Path:
        return self.path.with_name(f".{self.path.name}.shards")

    @override
    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            with writing_to(self.path.parent):
                shutil.rmtree(self._shards, ignore_errors=True)
                self._shards.mkdir(parents=True)
        trainer.strategy.barrier()

    @override
    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: pd.DataFrame,
        batch_indices: Sequence[int] | None,
        batch: object,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        if len(prediction):
            write_table(prediction, self._shards / f"{trainer.global_rank:05d}-{batch_idx:08d}.parquet")

    @override
    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.strategy.barrier()
        if trainer.is_global_zero:
            shards = sorted(self._shards.glob("*.parquet"), key=os.fspath)
            tables = [pd.read_parquet(shard) for shard in shards]
            columns = self._columns or getattr(pl_module, "columns", dict.fromkeys(self.sort_by, "object"))
            table = pd.concat(tables, ignore_index=True) if tables else empty_table(columns)
            write_table(table.sort_values(self.sort_by, ignore_index=True), self.path)
            shutil.rmtree(self._shards)
        trainer.strategy.barrier()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Drop the shards of a pass that failed."""
        shutil.rmtree(self._shards, ignore_errors=True)
