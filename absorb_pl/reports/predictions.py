"""Reports at the end of a predict loop: the merged table, what follows from it, figures and TensorBoard events."""

from abc import abstractmethod
from pathlib import Path

import pandas as pd
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure
from typing_extensions import override

from absorb_pl.evaluators.ablation import agreement_table
from absorb_pl.evaluators.writers import PredictionTableWriter, write_table
from absorb_pl.reports.ablation_figures import ablation_figure
from absorb_pl.reports.figures import save_figures
from absorb_pl.reports.sweep_figures import spelling_figure
from absorb_pl.schema import ABLATIONS, SPELLING


class PredictionReport(PredictionTableWriter):
    """A `PredictionTableWriter` that reports on its table when the loop ends, on rank zero.

    Writes tables and figures beside the table, and figures and scalars to the Trainer's loggers.

    Args:
        path: The table to write.
        sort_by: Columns that identify a row and give the order.
        columns: Columns and dtypes of the table if nothing was predicted.
    """

    name: str

    @abstractmethod
    def tables(self, table: pd.DataFrame) -> dict[str, pd.DataFrame]:
        """Tables that follow from the merged one, by name."""

    @abstractmethod
    def figures(self, table: pd.DataFrame) -> dict[str, Figure]:
        """Figures of the merged table, by name."""

    @abstractmethod
    def scalars(self, table: pd.DataFrame) -> dict[str, float]:
        """Figures to log, by name; none of them missing."""

    @override
    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_predict_end(trainer, pl_module)
        if trainer.is_global_zero:
            self._report(trainer, pd.read_parquet(self.path))
        trainer.strategy.barrier()

    def _report(self, trainer: Trainer, table: pd.DataFrame) -> None:
        for name, follows in self.tables(table).items():
            write_table(follows, self.path.with_name(f"{name}.parquet"))
        figures = self.figures(table) if len(table) else {}
        save_figures(figures, self.path.parent)
        for logger in trainer.loggers:
            logger.log_metrics({f"{self.name}/{name}": value for name, value in self.scalars(table).items()}, step=0)
            if isinstance(logger, TensorBoardLogger):
                for name, figure in figures.items():
                    logger.experiment.add_figure(f"{self.name}/{name}", figure, close=False)


class AblationReport(PredictionReport):
    """Report of an `AblationEvaluator`: its table, `agreement.parquet` and `estimates.png` (see `ablation_figure`).

    Args:
        path: The table to write.

    Example:
        >>> AblationReport("lightning_logs/ablation/ablations.parquet").sort_by
        ['sae', 'row', 'latent']
    """

    name = "ablation"

    def __init__(self, path: str | Path = "lightning_logs/ablation/ablations.parquet") -> None:
        super().__init__(path, ("sae", "row", "latent"), ABLATIONS)

    @override
    def tables(self, table: pd.DataFrame) -> dict[str, pd.DataFrame]:
        return {"agreement": agreement_table(table)}

    @override
    def figures(self, table: pd.DataFrame) -> dict[str, Figure]:
        return {"estimates": ablation_figure(table)}

    @override
    def scalars(self, table: pd.DataFrame) -> dict[str, float]:
        long = agreement_table(table).melt("sae").dropna()
        return {f"{sae}/{name}": float(value) for sae, name, value in long.itertuples(index=False)}


class SpellingReport(PredictionReport):
    """Report of a `SpellingSweep`: its table and `accuracy.png` (see `spelling_figure`).

    Args:
        path: The table to write.

    Example:
        >>> SpellingReport("lightning_logs/spelling/sweep.parquet").sort_by
        ['setting']
    """

    name = "spelling"

    def __init__(self, path: str | Path = "lightning_logs/spelling/sweep.parquet") -> None:
        super().__init__(path, ("setting",), SPELLING)

    @override
    def tables(self, table: pd.DataFrame) -> dict[str, pd.DataFrame]:
        return {}

    @override
    def figures(self, table: pd.DataFrame) -> dict[str, Figure]:
        return {"accuracy": spelling_figure(table)}

    @override
    def scalars(self, table: pd.DataFrame) -> dict[str, float]:
        known = table.dropna()
        weights = known["num_words"] / max(1, known["num_words"].sum())
        return {name: float((known[name] * weights).sum()) for name in ("accuracy", "answer_log_prob") if len(known)}
