"""The predict stage that reads residual activations at the words and the callback that stores them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor
from typing_extensions import override

from absorb_pl.data.activation_cache import (
    DIGESTS,
    STORAGE_DTYPES,
    StorageDtype,
    activation_identities,
    activation_path,
    check_finite,
    count_written_rows,
    write_rows,
)
from absorb_pl.data.artifacts import finish_artifact
from absorb_pl.data.drafts import begin_draft, draft_of, end_draft, new_owner, user_path, writing_to
from absorb_pl.data.forked_steps import ForkedSteps
from absorb_pl.data.prompt_datamodule import prompt_data_of
from absorb_pl.data.residuals import read_residuals
from absorb_pl.errors import AbsorbError, CacheCorruptedError
from absorb_pl.models.language_model import check_hook, resolve_model
from absorb_pl.models.widths import largest_of_run


class ActivationCollector(ForkedSteps):
    """Predict-only module: the residual rows at the words of a batch of prompts, for any list of hooks.

    One forward pass serves all hooks and stops after the deepest.

    Args:
        model: A `TransformerBridge`, or a name for `load_language_model`.
        hook_names: TransformerLens hook names.
        model_dtype: Dtype of a model loaded by name.

    Raises:
        HookNotFoundError: The model has no such hook.
    """

    def __init__(
        self,
        model: Any = "speller",
        hook_names: Sequence[str] = ("blocks.1.hook_resid_post",),
        model_dtype: str = "float32",
    ) -> None:
        super().__init__()
        self.language_model = resolve_model(model, dtype=model_dtype)
        self.hook_names = tuple(hook_names)
        for hook in self.hook_names:
            check_hook(self.language_model, hook)

    @override
    def largest(self, batch: dict[str, Tensor]) -> int | None:
        return largest_of_run(self.language_model, batch["input_ids"])

    @override
    def step(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        if not len(batch["index"]):
            return {"index": batch["index"]}
        rows = read_residuals(
            self.language_model,
            batch["input_ids"],
            batch["attention_mask"],
            batch["word_positions"],
            self.hook_names,
        )
        return {"index": batch["index"], **rows}


class ActivationCacheWriter(BasePredictionWriter):
    """Writes what an `ActivationCollector` predicts into the activation cache, one artifact per hook.

    Run it beside an `ActivationCollector` on a `PromptDataModule`.

    Args:
        cache_dir: Root of the cache, shared by all runs.
        dtype: Storage dtype.
        identities: What determines the rows of each hook (`activation_identities`), if that is known already; hashing
            a large model takes a while.
    """

    def __init__(
        self,
        cache_dir: str | Path = "lightning_logs/cache",
        dtype: StorageDtype = "float32",
        identities: dict[str, dict[str, Any]] | None = None,
    ) -> None:
        super().__init__(write_interval="batch")
        self.cache_dir = user_path(cache_dir)
        self.dtype: StorageDtype = dtype
        self._known = identities
        self._identities: dict[str, dict[str, Any]] = {}
        self._widths: dict[str, int] = {}
        self._owner = new_owner()

    @override
    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make an empty temporary folder for each hook."""
        collector, data = cast(ActivationCollector, pl_module), prompt_data_of(trainer)
        if len(data.rows) != len(data.prompts):
            raise AbsorbError(
                "rows",
                f"{len(data.rows)} of {len(data.prompts)} words",
                expected="all words of the task",
                remedy="Leave `rows` out, or limit the task itself (`task.max_words`).",
            )
        self._widths = {}
        known = self._known or activation_identities(
            collector.language_model, data.prompts, collector.hook_names, self.dtype
        )
        self._identities = {hook: known[hook] for hook in collector.hook_names}
        self._owner = trainer.strategy.broadcast(new_owner())
        if trainer.is_global_zero:
            for identity in self._identities.values():
                begin_draft(activation_path(self.cache_dir, identity), self._owner)
        trainer.strategy.barrier()

    @override
    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: dict[str, Tensor],
        batch_indices: Sequence[int] | None,
        batch: object,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Put the batch's rows in their place."""
        index = prediction["index"].cpu()
        if not len(index):
            return
        for hook, identity in self._identities.items():
            stored = prediction[hook].to("cpu", STORAGE_DTYPES[self.dtype])
            check_finite(stored, index, hook, self.dtype)
            self._widths[hook] = stored.shape[-1]
            with writing_to(self.cache_dir):
                write_rows(draft_of(activation_path(self.cache_dir, identity), self._owner), stored, index)

    @override
    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prove that every row was written and publish the artifacts."""
        trainer.strategy.barrier()
        if trainer.is_global_zero:
            for hook in self._identities:
                self._publish(hook)
        trainer.strategy.barrier()

    def _publish(self, hook: str) -> None:
        identity, width = self._identities[hook], self._widths[hook]
        path, rows = activation_path(self.cache_dir, identity), cast(int, identity["rows"])
        draft = draft_of(path, self._owner)
        with writing_to(self.cache_dir):
            written = count_written_rows(draft, rows, width * STORAGE_DTYPES[self.dtype].itemsize)
            if written != rows:
                raise CacheCorruptedError(
                    hook,
                    f"{written} rows",
                    expected=f"{rows} rows",
                    remedy="Predict on all batches: drop `limit_predict_batches`.",
                )
            (draft / DIGESTS).unlink()
        finish_artifact(path, self._owner, identity, {"rows": rows, "width": width, "dtype": self.dtype})

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Drop the rows of a pass that failed."""
        for identity in self._identities.values():
            end_draft(draft_of(activation_path(self.cache_dir, identity), self._owner))
