"""Evaluators as callbacks: what an SAE makes of the held-out words, while a linear probe is tested on them."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, cast

import pandas as pd
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat
from typing_extensions import override

from absorb_pl.data.activation_datamodule import ActivationDataModule
from absorb_pl.data.labelled_datamodule import LabelledDataModule
from absorb_pl.data.trainers import log_folder
from absorb_pl.engine.run_size import RunSize
from absorb_pl.errors import AbsorbError
from absorb_pl.evaluators.absorption import gather_gradients
from absorb_pl.evaluators.evaluation import evaluate_rules, sae_tables, with_texts
from absorb_pl.evaluators.sae_probing import EvaluationRows, SplitSettings
from absorb_pl.evaluators.training import train_sae_probes
from absorb_pl.evaluators.writers import write_table
from absorb_pl.probes.linear import LinearProbe
from absorb_pl.probes.metrics import first_of_each
from absorb_pl.probes.settings import KSparseSettings
from absorb_pl.ranges import Seed, check_ranges
from absorb_pl.rules.rates import RateSettings
from absorb_pl.rules.registry import RuleChoice, configured_rules
from absorb_pl.saes.interface import SparseAutoencoder
from absorb_pl.saes.loading import unit_norm_sae
from absorb_pl.schema import ordered_words

Findings = tuple[Mapping[str, pd.DataFrame], Mapping[str, float]]
"""Tables by name and figures by name."""


class _TestRows(Metric):
    """Rows seen while testing, from all processes, each once."""

    full_state_update = False
    x: list[Tensor]
    y: list[Tensor]
    index: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        for state in ("x", "y", "index"):
            self.add_state(state, default=[], dist_reduce_fx="cat")

    @override
    def update(self, x: Tensor, y: Tensor, index: Tensor) -> None:
        self.x.append(x)
        self.y.append(y)
        self.index.append(index)

    @override
    def compute(self) -> tuple[Tensor, Tensor, Tensor]:
        index, first = first_of_each(dim_zero_cat(self.index))
        return dim_zero_cat(self.x).cpu()[first], dim_zero_cat(self.y).cpu()[first], index


class SaeEvaluation(Callback):
    """Base of the evaluators that run on `test` of a `LinearProbe` on labelled rows.

    Gathers the held-out rows of all processes, evaluates them once, logs figures under `test/` and writes tables to
    `tables/` in the Trainer's log folder.

    Args:
        sae: Name for `load_sae`, or an SAE.
        sae_dtype: Dtype of an SAE loaded by name.

    Attributes:
        tables: What the last test found.
        data_type: Kind of data that it can be tested on.
    """

    data_type: ClassVar[type[LabelledDataModule]] = LabelledDataModule

    def __init__(self, sae: str | SparseAutoencoder, sae_dtype: str = "float32") -> None:
        self.sae_name = sae if isinstance(sae, str) else "sae"
        self.sae = unit_norm_sae(sae, sae_dtype)
        self.tables: dict[str, pd.DataFrame] = {}
        self._rows = _TestRows()

    @abstractmethod
    def evaluate(self, rows: EvaluationRows, data: LabelledDataModule, device: torch.device) -> Findings:
        """What is found on the held-out rows."""

    @override
    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that the SAE reads what the data hold."""
        data = getattr(trainer, "datamodule", None)
        if not isinstance(pl_module, LinearProbe) or not isinstance(data, self.data_type):
            raise AbsorbError(
                "callbacks",
                f"{type(self).__name__} with {type(pl_module).__name__} on {type(data).__name__}",
                expected=f"a LinearProbe tested on data of the kind {self.data_type.__name__}",
                remedy="Test a linear probe, or drop the callback.",
            )
        data.check_sae(self.sae)

    @override
    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: dict[str, Tensor],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._rows.to(pl_module.device).update(batch["x"], batch["y"], batch["index"])

    @override
    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data, probe = cast(Any, trainer).datamodule, cast(LinearProbe, pl_module)
        x, y, index = self._rows.compute()
        self._rows.reset()
        rows = EvaluationRows.of(x, y, index, probe.weights.detach(), probe.biases.detach(), data.class_names)
        tables, figures = self.evaluate(rows, data, pl_module.device)
        self.tables = dict(tables)
        for name, value in figures.items():
            pl_module.log(f"test/{name}", value, rank_zero_only=True)
        folder = log_folder(trainer) / "tables"
        if trainer.is_global_zero:
            for name, table in tables.items():
                write_table(table, folder / f"{name}.parquet")


class Evaluate(SaeEvaluation):
    """Splitting and absorption of one SAE, by any rules.

    Trains k-sparse probes on the datamodule's training words, evaluates the SAE on the held-out words, gathers the
    evidence that the rules need, and judges. Logs `test/sae/...`, and `test/<rule>/...` for each rule; writes the
    tables of a study. Rules on gradients need a Trainer with `inference_mode=False`.

    Args:
        sae: Name for `load_sae`, or an SAE.
        rules: The rules, perhaps with settings; an empty list stops after probing.
        rates: How rates are summed up.
        splits: How main latents and candidate words are found.
        k_sparse: Training of the k-sparse probes.
        batch_size: Most sequences in one run of the model; `auto` takes what the device's memory allows.
        seed: Seed of the order of the ranking probe's batches.
        sae_dtype: Dtype of an SAE loaded by name.

    Raises:
        RuleError: A rule is unknown, or has no such setting.
    """

    def __init__(
        self,
        sae: str | SparseAutoencoder,
        rules: RuleChoice = "paper",
        rates: RateSettings | None = None,
        splits: SplitSettings | None = None,
        k_sparse: KSparseSettings | None = None,
        batch_size: RunSize = "auto",
        seed: Seed = 42,
        sae_dtype: str = "float32",
    ) -> None:
        check_ranges(Evaluate.__init__, locals())
        super().__init__(sae, sae_dtype)
        self.rules = configured_rules(rules) if rules else []
        self.rates, self.splits, self.k_sparse = rates or RateSettings(), splits or SplitSettings(), k_sparse
        self.batch_size: RunSize = batch_size
        self.seed = seed
        for rule in self.rules:
            rule.check_stored(self.splits.silent)

    @override
    def evaluate(self, rows: EvaluationRows, data: LabelledDataModule, device: torch.device) -> Findings:
        sae, train = self.sae.to(device), data.splits["train"]
        training = data.rows(train), data.labels[train]
        with torch.inference_mode(False), torch.enable_grad():
            [(k_sparse, _)] = train_sae_probes(
                [sae],
                *training,
                self.k_sparse or KSparseSettings(),
                rows.class_names,
                self.seed,
                device,
            )

        gather = prompts = None
        if isinstance(data, ActivationDataModule):
            prompts = data.prompt_data
            gather = gather_gradients(sae, data, rows.probe_weight, self.batch_size, device)
        found, judgements = evaluate_rules(sae, k_sparse, rows, self.rules, self.splits, self.rates, gather, training)
        top = found.latents[found.latents["rank"] == 0]
        figures = {f"sae/top_latent_{name}": top[name].mean() for name in ("f1", "precision", "recall")}
        figures |= {f"sae/{name}": float(value) for name, value in found.statistics.items()}
        figures["sae/num_splits"] = found.letters["num_splits"].mean()
        for judgement in judgements:
            figures |= {
                f"{judgement.figures['rule']}/{name}": float(value)
                for name in ("absorption_rate", "ci_low", "ci_high", "absorption_fraction", "num_words")
                if pd.notna(value := judgement.figures[name])
            }
        tables = sae_tables(self.sae_name, found, judgements, found.statistics, data.hook_name)
        if prompts is not None:
            tables |= {
                name: with_texts(tables[name], prompts.texts) for name in tables.keys() & {"words", "candidates"}
            }
        if "words" in tables:
            tables["words"] = ordered_words(tables["words"])
        return tables, figures
