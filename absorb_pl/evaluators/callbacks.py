"""Evaluators as callbacks: what an SAE makes of the held-out words, while a linear probe is tested on them."""

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat
from typing_extensions import override

from absorb_pl.data import ActivationDataModule
from absorb_pl.errors import AbsorbError
from absorb_pl.evaluators.absorption import RULE, AbsorptionEvaluator, AbsorptionInputs
from absorb_pl.evaluators.latent_table import latent_table
from absorb_pl.evaluators.sae_probing import EvaluationRows, SaeProbing, SplitSettings, evaluate_sae
from absorb_pl.evaluators.writers import write_table
from absorb_pl.probes import LinearProbe, SaeProbe, first_of_each, fit_probe
from absorb_pl.ranges import Count, Seed, check_ranges
from absorb_pl.rules import PaperRule
from absorb_pl.rules.rate_tables import RateSettings, letters_table, summary_row
from absorb_pl.saes import (
    check_hooks_agree,
    check_positions,
    check_processing,
    load_sae,
    to_unit_norms,
    trained_positions,
)

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
    """Base of the evaluators that run on `test` of a `LinearProbe` on an `ActivationDataModule`.

    Gathers the held-out rows of all processes, evaluates them once, logs figures under `test/<name>/` and writes
    tables to `tables/` in the Trainer's log folder.

    Args:
        sae: Name for `load_sae`, or an SAE.
        sae_dtype: Dtype of an SAE loaded by name.

    Attributes:
        tables: What the last test found.
    """

    name: str

    def __init__(self, sae: Any, sae_dtype: str = "float32") -> None:
        named = isinstance(sae, str)
        self.sae = to_unit_norms(load_sae(sae, dtype=sae_dtype) if named else sae, in_place=named)
        self.tables: dict[str, pd.DataFrame] = {}
        self._rows = _TestRows()

    @abstractmethod
    def evaluate(self, rows: EvaluationRows, data: ActivationDataModule, device: torch.device) -> Findings:
        """What is found on the held-out rows."""

    @override
    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that the SAE reads the hook of the data."""
        check_hooks_agree(self.sae, getattr(getattr(trainer, "datamodule", None), "hook_name", None))

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
        data = getattr(trainer, "datamodule", None)
        if not isinstance(pl_module, LinearProbe) or not isinstance(data, ActivationDataModule):
            raise AbsorbError(
                "callbacks",
                f"{type(self).__name__} with {type(pl_module).__name__} on {type(data).__name__}",
                expected="a LinearProbe tested on an ActivationDataModule",
                remedy="Test a linear probe, or drop the callback.",
            )
        check_processing(data.prompt_data.language_model, self.sae)
        check_positions(trained_positions(self.sae), data.prompt_data.prompts.word_positions)
        x, y, index = self._rows.compute()
        self._rows.reset()
        weight, bias = pl_module.weights.detach().cpu(), pl_module.biases.detach().cpu()
        rows = EvaluationRows(x, y.bool(), index, weight, x @ weight.T + bias, data.class_names)
        tables, figures = self.evaluate(rows, data, pl_module.device)
        self.tables = dict(tables)
        for name, value in figures.items():
            pl_module.log(f"test/{self.name}/{name}", value, rank_zero_only=True)
        if trainer.is_global_zero:
            folder = Path(trainer.log_dir or trainer.default_root_dir) / "tables"
            for name, table in tables.items():
                write_table(table, folder / f"{name}.parquet")


class LatentEvaluation(SaeEvaluation):
    """The latents nearest to each class's probe, as classifiers of the class (see `latent_table`).

    Args:
        sae: Name for `load_sae`, or an SAE.
        top: Latents a class.
        sae_dtype: Dtype of an SAE loaded by name.
    """

    name = "latents"

    def __init__(self, sae: Any, top: Count = 5, sae_dtype: str = "float32") -> None:
        check_ranges(LatentEvaluation.__init__, locals())
        super().__init__(sae, sae_dtype)
        self.top = top

    @override
    def evaluate(self, rows: EvaluationRows, data: ActivationDataModule, device: torch.device) -> Findings:
        table = latent_table(
            self.sae.to(device), rows.x, rows.y, rows.probe_weight, rows.probe_logits, rows.class_names, self.top
        )
        best = table[table["rank"] == 0]
        return {"latents": table}, {f"top_{name}": best[name].mean() for name in ("f1", "precision", "recall")}


class KSparseEvaluation(SaeEvaluation):
    """k-sparse probes trained on the datamodule's training words, and the splits that follow (see `evaluate_sae`).

    Args:
        sae: Name for `load_sae`, or an SAE.
        splits: How main latents and candidate words are found.
        max_epochs: Epochs of the ranking probe.
        seed: Seed of the order of its batches.
        sae_dtype: Dtype of an SAE loaded by name.
    """

    name = "k_sparse"

    def __init__(
        self,
        sae: Any,
        splits: SplitSettings | None = None,
        max_epochs: Count = 50,
        seed: Seed = 42,
        sae_dtype: str = "float32",
    ) -> None:
        check_ranges(KSparseEvaluation.__init__, locals())
        super().__init__(sae, sae_dtype)
        self.splits = splits or SplitSettings()
        self.max_epochs, self.seed = max_epochs, seed

    def probe(self, rows: EvaluationRows, data: ActivationDataModule, device: torch.device) -> SaeProbing:
        """Train the k-sparse probes and evaluate the SAE."""
        train = data.splits["train"]
        sae = self.sae.to(device)
        k_sparse = SaeProbe(sae, len(rows.class_names), class_names=rows.class_names)
        with torch.inference_mode(False), torch.enable_grad(), isolate_rng():
            torch.manual_seed(self.seed)
            fit_probe(k_sparse, data.cache.rows(train), data.labels[train], self.max_epochs, device=device)
        return evaluate_sae(sae, k_sparse, rows, self.splits)

    @override
    def evaluate(self, rows: EvaluationRows, data: ActivationDataModule, device: torch.device) -> Findings:
        found = self.probe(rows, data, device)
        figures = {"num_splits": found.letters["num_splits"].mean(), **found.statistics}
        return {"k_sparse": found.k_sparse, "letters": found.letters}, figures


class AbsorptionEvaluation(KSparseEvaluation):
    """The whole absorption evaluation of one SAE by the paper's rule.

    Use a Trainer with `inference_mode=False`: scores are gradients.

    Args:
        sae: Name for `load_sae`, or an SAE.
        rule: Settings of the rule.
        rates: How rates are summed up.
        splits: How main latents and candidate words are found.
        max_epochs: Epochs of the ranking probe.
        batch_size: Most sequences in one run of the model.
        seed: Seed of the order of the ranking probe's batches.
        sae_dtype: Dtype of an SAE loaded by name.
    """

    name = "absorption"

    def __init__(
        self,
        sae: Any,
        rule: PaperRule | None = None,
        rates: RateSettings | None = None,
        splits: SplitSettings | None = None,
        max_epochs: Count = 50,
        batch_size: Count = 256,
        seed: Seed = 42,
        sae_dtype: str = "float32",
    ) -> None:
        check_ranges(AbsorptionEvaluation.__init__, locals())
        super().__init__(sae, splits, max_epochs, seed, sae_dtype)
        self.rule, self.rates, self.batch_size = rule or PaperRule(), rates or RateSettings(), batch_size

    @override
    def evaluate(self, rows: EvaluationRows, data: ActivationDataModule, device: torch.device) -> Findings:
        found = self.probe(rows, data, device)
        inputs = AbsorptionInputs(
            letters=found.letters.assign(sae="sae"),
            candidates=found.candidates.assign(sae="sae"),
            probe_weights={data.hook_name: rows.probe_weight},
        )
        prompts = data.prompt_data
        evaluator = AbsorptionEvaluator(prompts.language_model, {"sae": self.sae}, inputs, self.rule, self.batch_size)
        evaluator.to(device)
        candidates = torch.tensor(sorted(found.candidates["row"]), dtype=torch.long)
        words = evaluator.tabulate_words(prompts, candidates)
        letters = letters_table(found.letters, words, RULE, self.rates, rows.class_names)
        summary = summary_row(found.letters, words, found.latents, self.rates)
        figures = {
            name: float(summary[name])
            for name in ("absorption_rate", "ci_low", "ci_high", "num_words")
            if summary[name] is not None
        }
        return {"letters": letters, "words": words, "k_sparse": found.k_sparse, "latents": found.latents}, figures
