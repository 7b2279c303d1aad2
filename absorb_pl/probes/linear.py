"""The linear probe: one-vs-rest logistic regressions on the residual stream."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics import MetricCollection

from absorb_pl.errors import AbsorbError
from absorb_pl.functional import minimise_probe_loss
from absorb_pl.probes.base import Batch, OneVsRestModule, OptimizerName
from absorb_pl.probes.metrics import ProbeMetrics
from absorb_pl.ranges import Count, NotNegative, Positive, check_ranges


class LinearProbe(OneVsRestModule):
    """One-vs-rest logistic regressions with balanced classes, as the paper trains them.

    Source: arXiv 2409.14507, section 3, and the published `train_multi_probe`: class-weighted binary
        cross-entropy,
    Adam with weight decay, learning rate decaying from 1e-2 to 1e-5 (50 epochs, batches of 4096). That recipe
    has one step an epoch on a few thousand words and ends far from the optimum of its own objective; with
    `polish` (the default) the last epoch is followed by `minimise_probe_loss`, which finds that optimum
    whatever the batches were. `polish=False` is the published recipe alone.

    Batches are dicts with `x` `[rows, input_dim]`, `y` `[rows, num_outputs]` (0 or 1) and `index` `[rows]`.
    Classes without positive words are left out of the loss and named in `missing_classes`; after the fit
    their weights are 0 and their bias is `MISSING_LOGIT`.

    Args:
        input_dim: Width of the activations, `d_model`.
        num_outputs: Number of classes.
        lr: Learning rate of the first epoch.
        end_lr: Learning rate after the last epoch.
        weight_decay: Weight decay.
        l1_decay: Factor of the mean over classes of `Σ|w|` in the loss; needs `polish=False`.
        optimizer: Optimiser; AdamW needs `polish=False`.
        pos_weight: Weight of positive rows of each class; counted from the training labels if not given.
        class_names: Names of the classes.
        polish: Finish at the optimum of the regularised objective.

    Raises:
        AbsorbError: `polish` is asked for with an L1 penalty or AdamW, which have another objective.
        ShapeError: `class_names` or `pos_weight` do not fit `num_outputs`.

    Example:
        >>> probe = LinearProbe(input_dim=4, num_outputs=2, class_names=["a", "b"])
        >>> probe(torch.zeros(3, 4)).shape, probe.weights.shape, probe.biases.shape
        (torch.Size([3, 2]), torch.Size([2, 4]), torch.Size([2]))
    """

    def __init__(
        self,
        input_dim: Count,
        num_outputs: Count = 1,
        lr: Positive = 1e-2,
        end_lr: Positive = 1e-5,
        weight_decay: NotNegative = 1e-4,
        l1_decay: NotNegative = 0.0,
        optimizer: OptimizerName = "Adam",
        pos_weight: Sequence[float | int] | None = None,
        class_names: Sequence[str] | None = None,
        polish: bool = True,
    ) -> None:
        check_ranges(LinearProbe.__init__, locals())
        super().__init__(input_dim, num_outputs, lr, end_lr, weight_decay, l1_decay, optimizer, class_names)
        if polish and (l1_decay or optimizer == "AdamW"):
            raise AbsorbError(
                "polish",
                polish,
                expected=f"False with l1_decay={l1_decay} and optimizer={optimizer}",
                remedy="Pass polish=False: only cross-entropy with L2 weight decay can be polished.",
            )
        class_names = None if class_names is None else list(class_names)
        pos_weight = None if pos_weight is None else [float(weight) for weight in pos_weight]
        self.save_hyperparameters()
        self.polish = polish
        if pos_weight is not None:
            self._set_pos_weight(torch.tensor(pos_weight))
        self.metrics["train_metrics"] = MetricCollection([ProbeMetrics(names=["f1"])], prefix="train/")
        held_out = MetricCollection([ProbeMetrics()])
        self.metrics["val_metrics"] = held_out.clone(prefix="val/")
        self.metrics["test_metrics"] = held_out.clone(prefix="test/")

    @classmethod
    def from_weights(
        cls,
        weight: Float[Tensor, "classes d_model"],
        bias: Float[Tensor, " classes"],
        class_names: Sequence[str] | None = None,
    ) -> "LinearProbe":
        """Make a trained probe of its weights, in evaluation mode.

        Args:
            weight: Probe directions.
            bias: Biases.
            class_names: Names of the classes.

        Example:
            >>> LinearProbe.from_weights(torch.eye(2), torch.zeros(2))(torch.tensor([3.0, 1.0]))
            tensor([3., 1.], grad_fn=...)
        """
        probe = cls(weight.shape[1], len(weight), class_names=class_names)
        with torch.no_grad():
            probe.weights.copy_(weight)
            probe.biases.copy_(bias)
        return probe.eval()

    def _set_pos_weight(self, pos_weight: Tensor) -> None:
        usable = (pos_weight > 0) & pos_weight.isfinite()
        if pos_weight.shape != self.pos_weight.shape or not bool(usable.all()):
            raise AbsorbError(
                "pos_weight",
                pos_weight.tolist(),
                expected=f"{len(self.pos_weight)} positive finite numbers",
                remedy="Leave it out to have the weights counted from the labels.",
            )
        self.pos_weight.copy_(pos_weight)
        self._weights_given = True

    @property
    def weights(self) -> Tensor:
        """Probe directions, `[num_outputs, input_dim]`."""
        return self.fc.weight

    @property
    def biases(self) -> Tensor:
        """Biases, `[num_outputs]`."""
        return self.fc.bias

    def forward(self, x: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows classes"]:
        """Logits; above zero says that the class is there.

        Args:
            x: Residual activations.

        Returns:
            One logit a class.
        """
        logits = self.logits(x.reshape(-1, x.shape[-1]))
        return logits.reshape(*x.shape[:-1], -1)

    def predict_step(self, batch: Batch) -> Batch:
        """Logits of a batch with its row numbers."""
        return {"index": batch["index"], "logits": self(batch["x"])}

    def finish(self) -> None:
        """Replace the weights by the optimum of the regularised objective on all training rows."""
        if not self.polish:
            return
        device = self.device if self.device.type in ("cpu", "cuda") else torch.device("cpu")
        x, y = self.all_training_rows()
        kept = self.class_mask.to(device)
        weight, bias = minimise_probe_loss(
            x.to(device, self.fc.weight.dtype),
            y.to(device)[:, kept],
            self.pos_weight.to(device)[kept],
            weight_decay=self.weight_decay,
        )
        with torch.no_grad():
            self.fc.weight[self.class_mask] = weight.to(self.fc.weight)
            self.fc.bias[self.class_mask] = bias.to(self.fc.bias)
