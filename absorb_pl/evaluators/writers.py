"""Prediction writers: rank-unique shards while predicting, one sorted table at the end."""

import os
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from typing_extensions import override

from absorb_pl.data.drafts import begin_draft, draft_of, end_draft, new_owner, user_path, whole_file, writing_to
from absorb_pl.errors import CacheCorruptedError, RuleError
from absorb_pl.rules.registry import RuleChoice, configured_rules
from absorb_pl.schema import GRADIENTS, Column, Columns, empty_table, ordered_words


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write a table as Parquet, whole or not at all.

    Raises:
        OutputFolderError: The folder cannot be written.
    """
    with whole_file(path) as part:
        table.to_parquet(part, index=False)


class PredictionTableWriter(BasePredictionWriter):
    """Writes predicted tables, one per batch, into one Parquet file without duplicates and in a fixed order.

    Every rank writes shards of its own beside `path`; rank zero merges them when all have finished. A shard that
    cannot be written raises.

    Args:
        path: The table to write.
        sort_by: Columns that identify a row and give the order.
        columns: Columns of the table if nothing was predicted; the evaluator's own if not given.
    """

    def __init__(
        self,
        path: str | Path,
        sort_by: Sequence[str] = ("sae", "row"),
        columns: Columns | None = None,
    ) -> None:
        super().__init__(write_interval="batch")
        self.path = user_path(path)
        self.sort_by = list(sort_by)
        self._columns = columns
        self._owner, self._rows = new_owner(), 0

    @property
    def _shards(self) -> Path:
        return draft_of(self.path, self._owner)

    @override
    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._owner, self._rows = trainer.strategy.broadcast(new_owner()), 0
        if trainer.is_global_zero:
            begin_draft(self.path, self._owner)
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
            self._rows += len(prediction)
            with writing_to(self.path.parent):
                shard = self._shards / f"{trainer.global_rank:05d}-{batch_idx:08d}.parquet"
                prediction.to_parquet(shard, index=False)

    @override
    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        written = int(
            trainer.strategy.reduce(torch.tensor(self._rows, device=trainer.strategy.root_device), reduce_op="sum")
        )
        trainer.strategy.barrier()
        if trainer.is_global_zero:
            shards = sorted(self._shards.glob("*.parquet"), key=os.fspath)
            tables = [pd.read_parquet(shard) for shard in shards]
            columns = self._columns or getattr(pl_module, "columns", dict.fromkeys(self.sort_by, Column("object", "")))
            table = pd.concat(tables, ignore_index=True) if tables else empty_table(columns)
            if len(table) != written:
                raise CacheCorruptedError(
                    str(self.path),
                    f"{len(table)} rows",
                    expected=f"the {written} that were predicted",
                    remedy="Run again.",
                )
            write_table(self.finished(table.sort_values(self.sort_by, ignore_index=True)), self.path)
            end_draft(self._shards)
        trainer.strategy.barrier()

    def finished(self, table: pd.DataFrame) -> pd.DataFrame:
        """What is written of the merged table; a subclass may add to it."""
        return table

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Drop the shards of a pass that failed."""
        end_draft(self._shards)


class VerdictWriter(PredictionTableWriter):
    """Writes the verdicts of rules on what an `AbsorptionEvaluator` predicts, with the evidence they rest on.

    Args:
        path: The table to write, with the columns of `absorb_pl.schema.WORDS`.
        rules: Rules on gradients, perhaps with settings.

    Raises:
        RuleError: A rule is unknown, or the evaluator does not gather the evidence it needs.
    """

    def __init__(
        self, path: str | Path = "lightning_logs/absorption/words.parquet", rules: RuleChoice = "paper"
    ) -> None:
        super().__init__(path, ("sae", "positive_token", "row"), GRADIENTS)
        self.rules = configured_rules(rules)

    @override
    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        gathered = getattr(pl_module, "evidence", ())
        for rule in self.rules:
            if rule.needs not in gathered:
                raise RuleError(
                    "rules",
                    rule.name,
                    expected=f"rules that rest on what {type(pl_module).__name__} gathers: {gathered}",
                    remedy=f"Give the evaluator the evidence {rule.needs}.",
                )
        super().on_predict_start(trainer, pl_module)

    @override
    def finished(self, table: pd.DataFrame) -> pd.DataFrame:
        of_token = dict(iter(table.groupby("positive_token")))
        judged = [rule.judge(of_token.get(rule.settings.positive_token, table[:0])) for rule in self.rules]
        words = pd.concat(judged, ignore_index=True)
        return ordered_words(words.sort_values(["rule", "sae", "row"], kind="stable", ignore_index=True))
