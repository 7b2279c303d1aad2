"""What the probes share: one-vs-rest loss, class counts, optimiser, and a last step at the end of the fit."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, cast

import torch
from jaxtyping import Bool, Float, Num
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torchmetrics import MetricCollection

from absorb_pl.data.labelled_datamodule import LabelledDataModule
from absorb_pl.errors import AbsorbError, ShapeError
from absorb_pl.functional.probe_loss import l1_penalty, learnable_classes, positive_weights, probe_loss
from absorb_pl.functional.validation import require_finite
from absorb_pl.matrix_products import fast_products
from absorb_pl.probes.rows import training_batches, training_labels

OptimizerName = Literal["Adam", "SGD", "AdamW"]
Batch = dict[str, Tensor]

MISSING_LOGIT = -100.0
"""The logit of classes without training words: finite, and negative enough never to be a positive prediction."""


class OneVsRestModule(LightningModule):
    """A linear layer trained one-vs-rest, with whatever the subclass feeds it and does at the end.

    The recipe is that of the published `train_multi_probe`: class-weighted binary cross-entropy, an optimiser
    with weight decay, the learning rate decaying exponentially from `lr` to `end_lr` by epoch. The layer
    starts from zero: the objective is convex, and the result then depends on no seed but the batches'.

    Attributes:
        fc: The linear layer.
        class_mask: Which classes have both positive and negative training rows; the others are left out of
            the loss and get the logit `MISSING_LOGIT`.
        pos_weight: Weight of positive rows of each class.
        min_steps_per_epoch: Optimiser steps that an epoch should have at least; `fit_probe` cuts smaller batches
            where the rows are too few.
        steps: Whether an optimiser steps through the batches.
        rows_per_step: Rows per optimiser step, where a batch is a whole epoch; None if a batch is a step.
        unseen: Whether nobody looks at the weights before the end of the fit: no checkpoint, no validation, no other
            process.
        fused: Whether the optimiser's step is one kernel, which rounds otherwise than the published code's.

    Args:
        input_dim: Width of the layer's input.
        num_outputs: Number of classes.
        lr: Learning rate of the first epoch.
        end_lr: Learning rate after the last epoch.
        weight_decay: Weight decay of the optimiser.
        l1_decay: Factor of the mean over classes of `Σ|w|` in the loss.
        optimizer: Name of the optimiser.
        class_names: Names of the classes, for errors and results; their numbers if not given.
    """

    pos_weight: Tensor
    class_mask: Tensor
    min_steps_per_epoch: int = 1
    steps: bool = True
    rows_per_step: int | None = None
    unseen: bool = False
    fused: bool = False

    def __init__(
        self,
        input_dim: int,
        num_outputs: int,
        lr: float,
        end_lr: float,
        weight_decay: float,
        l1_decay: float,
        optimizer: OptimizerName,
        class_names: Sequence[str] | None,
    ) -> None:
        super().__init__()
        if class_names is not None and len(class_names) != num_outputs:
            raise ShapeError(
                "class_names", len(class_names), expected=f"{num_outputs} names", remedy="Name every output."
            )
        self.lr, self.end_lr, self.weight_decay, self.l1_decay = lr, end_lr, weight_decay, l1_decay
        self.optimizer_name: OptimizerName = optimizer
        self.class_names = [str(name) for name in (class_names or range(num_outputs))]
        self.fc = nn.Linear(input_dim, num_outputs)
        nn.init.zeros_(self.fc.weight)
        nn.init.zeros_(self.fc.bias)
        self.register_buffer("pos_weight", torch.ones(num_outputs))
        self.register_buffer("class_mask", torch.ones(num_outputs, dtype=torch.bool))
        self.metrics = nn.ModuleDict()
        self._counted = self._weights_given = self._finished = self._all_learnable = False
        self._first_epoch = 0

    @property
    def missing_classes(self) -> list[str]:
        """Classes without positive (or without negative) training rows, which were left out."""
        return [self.class_names[i] for i in (~self.class_mask).nonzero().flatten().tolist()]

    @property
    def loss_mask(self) -> Bool[Tensor, " classes"] | None:
        """Classes that count in the loss; None where all do."""
        return None if self._all_learnable else self.class_mask

    @property
    def is_first_epoch(self) -> bool:
        """Whether rows come for the first time; later epochs bring the same rows again."""
        return self.current_epoch == self._first_epoch

    def set_class_counts(self, positives: Tensor, rows: int) -> None:
        """Set the classes' weights from the training labels.

        Args:
            positives: Number of positive rows of each class, `[classes]`.
            rows: Number of rows.

        Raises:
            ShapeError: There is another number of classes.
            LabelError: No class has both positive and negative rows.
        """
        if positives.shape != self.class_mask.shape:
            raise ShapeError(
                "positives",
                tuple(positives.shape),
                expected=f"{len(self.class_mask)} classes",
                remedy="Set `num_outputs` to the task's number of classes.",
            )
        self.class_mask.copy_(learnable_classes(positives, rows))
        self._all_learnable = bool(self.class_mask.all())
        if not self._weights_given:
            self.pos_weight.copy_(positive_weights(positives, rows))
        self._counted = True

    def setup(self, stage: str) -> None:
        """Take the training labels' counts from the datamodule's `class_counts()` before a fit."""
        self._counted = self._finished = False
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(data, LabelledDataModule):
            self.check_width(data.width)
        if stage == "fit" and hasattr(data, "class_counts"):
            self.set_class_counts(*cast(Any, data).class_counts())

    def on_train_start(self) -> None:
        """Count the training labels row by row if no datamodule does."""
        self._first_epoch = self.current_epoch
        if not self._counted:
            self.count_labels(training_labels(self.trainer))

    def count_labels(self, y: Num[Tensor, "rows classes"]) -> None:
        """Set the classes' weights from the labels of all training rows, in the dataset's order.

        Args:
            y: Labels, 0 or 1.
        """
        self.set_class_counts(y.sum(dim=0), len(y))

    def inputs(self, x: Float[Tensor, "rows d_model"]) -> Tensor:
        """Turn residual activations into the layer's input.

        Args:
            x: Residual activations.

        Returns:
            Input of `fc`.
        """
        self.check_width(x.shape[-1])
        return x

    def check_width(self, width: int) -> None:
        """Refuse activations of another width than the probe reads.

        Args:
            width: Width of the activations.

        Raises:
            ShapeError: It is another.
        """
        if width != self.fc.in_features:
            raise ShapeError(
                "input_dim",
                self.fc.in_features,
                expected=f"{width}, the width of the activations",
                remedy="Give the width of the hook that the data reads (`d_model` on the residual stream).",
            )

    def logits(self, x: Float[Tensor, "rows d_model"]) -> Float[Tensor, "rows classes"]:
        """Logits of the linear layer, `MISSING_LOGIT` for classes left out.

        Args:
            x: Residual activations.

        Returns:
            One logit per class.
        """
        weight = self.fc.weight
        return self.without_missing(nn.functional.linear(self.inputs(x).to(weight.dtype), weight, self.fc.bias))

    def without_missing(self, logits: Float[Tensor, "rows classes"]) -> Float[Tensor, "rows classes"]:
        """Logits with `MISSING_LOGIT` for classes left out.

        Args:
            logits: Logits of the linear layer.

        Returns:
            One logit per class.
        """
        return logits if self._all_learnable else logits.masked_fill(~self.class_mask, MISSING_LOGIT)

    def training_logits(self, batch: Batch) -> Float[Tensor, "rows classes"]:
        """Logits of a training batch; a subclass may know a shorter way to its features.

        Args:
            batch: The batch.

        Returns:
            One logit per class.
        """
        return self.logits(batch["x"])

    def penalty(self) -> Float[Tensor, ""]:
        """`l1_decay` times the mean over classes of `Σ|w|`.

        Returns:
            A scalar.
        """
        return self.l1_decay * l1_penalty(self.fc.weight, self.loss_mask)

    def finish(self) -> None:
        """Do what is to be done once after the last epoch, before the last checkpoint is written."""

    def training_loss(self, batch: Batch) -> Float[Tensor, ""]:
        """What an optimiser step minimises; the step's rows enter the training metrics.

        Args:
            batch: The rows of the step.

        Returns:
            A scalar.
        """
        return self._loss(batch, "train")

    def _loss(self, batch: Batch, stage: str) -> Tensor:
        x, y = batch["x"], batch["y"]
        if stage != "train" or self.is_first_epoch:
            self._check_rows(x, y)
        logits = self.training_logits(batch) if stage == "train" else self.logits(x)
        loss = probe_loss(logits, y, self.pos_weight, self.loss_mask)
        if self.l1_decay:
            loss = loss + self.penalty()
        if f"{stage}_metrics" in self.metrics:
            self.metric(stage).update(logits[:, None], y.bool(), batch["index"])
        return loss

    def _check_rows(self, x: Tensor, y: Tensor) -> None:
        require_finite(x=x)
        if y.shape[1:] != self.class_mask.shape:
            raise ShapeError(
                "y",
                tuple(y.shape),
                expected=f"{len(self.class_mask)} columns",
                remedy="Set `num_outputs` to the task's number of classes.",
            )

    def _log_loss(self, loss: Tensor, stage: str, rows: int) -> None:
        self.log(f"{stage}/loss", loss, batch_size=rows, on_step=False, on_epoch=True, sync_dist=True)

    def metric(self, stage: str) -> MetricCollection:
        """The metrics of a stage.

        Args:
            stage: `train`, `val` or `test`.

        Returns:
            The stage's collection.
        """
        return cast(MetricCollection, self.metrics[f"{stage}_metrics"])

    def training_step(self, batch: Batch) -> Tensor | None:
        """Loss of a batch, or the steps of a whole epoch; with the epoch's last batch, its metrics."""
        loss = None
        if self.automatic_optimization:
            loss = self.training_loss(batch)
            self._log_loss(loss, "train", len(batch["x"]))
        else:
            loss_of_all = take_steps(self.optimizers(), batch, self.rows_per_step, self.training_loss)
            self._log_loss(loss_of_all, "train", len(batch["x"]) if self.rows_per_step is None else 1)
        if self.trainer.is_last_batch:
            self._log_metrics("train")
        return loss

    def validation_step(self, batch: Batch) -> None:
        """Loss and metrics of a batch."""
        self._log_loss(self._loss(batch, "val"), "val", len(batch["x"]))

    def test_step(self, batch: Batch) -> None:
        """Loss and metrics of a batch."""
        self._log_loss(self._loss(batch, "test"), "test", len(batch["x"]))

    def _log_metrics(self, stage: str) -> None:
        if f"{stage}_metrics" in self.metrics:
            metric = self.metric(stage)
            if all(part.update_called for part in metric.values()):
                values = {name: value.float() for name, value in metric.compute().items()}
                self.log_dict(values, on_step=False, on_epoch=True, batch_size=1, sync_dist=True)
            metric.reset()

    def on_train_epoch_end(self) -> None:
        """Lower the learning rate if the Trainer does not, and finish after the last epoch."""
        if self.steps and not self.automatic_optimization:
            schedule: Any = self.lr_schedulers()
            schedule.step()
        if self.trainer.current_epoch + 1 == self.trainer.max_epochs:
            self.finish_once()

    def on_validation_epoch_end(self) -> None:
        """Log the metrics."""
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        """Log the metrics."""
        self._log_metrics("test")

    def on_train_end(self) -> None:
        """Finish a fit that stopped before its last epoch."""
        self.finish_once()

    def finish_once(self) -> None:
        """Finish, unless that has been done, and leave out the classes that could not be trained."""
        if not self._finished:
            self.finish()
            with torch.no_grad():
                self.fc.weight[~self.class_mask] = 0.0
                self.fc.bias[~self.class_mask] = MISSING_LOGIT
            self._finished, self._all_learnable = True, False

    def all_training_rows(self) -> tuple[Float[Tensor, "rows d_model"], Bool[Tensor, "rows classes"]]:
        """Collect the training rows, each once, in the dataset's order.

        Returns:
            Activations and labels, on the CPU.
        """
        parts = [(batch["x"].cpu(), batch["y"].bool().cpu()) for batch in training_batches(self.trainer)]
        return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])

    def configure_optimizers(self) -> Any:
        """The named optimiser with exponential decay from `lr` to `end_lr` over the Trainer's epochs.

        Raises:
            AbsorbError: The Trainer has no number of epochs.
        """
        epochs = self.trainer.max_epochs
        if epochs is None or epochs < 1:
            raise AbsorbError(
                "max_epochs",
                epochs,
                expected="a number of epochs, over which the learning rate decays",
                remedy="Pass `max_epochs` to the Trainer (50 in the paper).",
            )
        kinds = {"Adam": torch.optim.Adam, "SGD": torch.optim.SGD, "AdamW": torch.optim.AdamW}
        kind = kinds[self.optimizer_name]
        optimizer = kind(self.fc.parameters(), lr=self.lr, weight_decay=self.weight_decay, fused=self.fused)
        gamma = (self.end_lr / self.lr) ** (1 / epochs)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "epoch"}}


@fast_products()
def take_steps(
    optimizer: Any, batch: Batch, rows_per_step: int | None, losses: Callable[[Batch], Float[Tensor, "..."]]
) -> Float[Tensor, "..."]:
    """Step through a batch's rows; in a Trainer's loop over so many batches the loop would cost most.

    Args:
        optimizer: The optimiser.
        batch: Rows in the order of the steps.
        rows_per_step: Rows of a step; all of them if None.
        losses: From a step's rows to what is minimised, or to several such, whose sum is minimised.

    Returns:
        Means over the rows of what `losses` gave.
    """
    parts = {name: rows.split(rows_per_step or len(rows)) for name, rows in batch.items()}
    total = torch.zeros((), device=batch["x"].device)
    for number, x in enumerate(parts["x"]):
        loss = losses({name: rows[number] for name, rows in parts.items()})
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()
        total = total + loss.detach() * len(x)
    return total / len(batch["x"])
