"""The linear probe: one-vs-rest logistic regressions on the residual stream."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics import MetricCollection

from absorb_pl.errors import AbsorbError
from absorb_pl.functional.linear_optimum import minimise_probe_loss
from absorb_pl.probes.base import Batch, OneVsRestModule, OptimizerName
from absorb_pl.probes.metrics import ProbeMetrics
from absorb_pl.ranges import Count, NotNegative, Positive, check_ranges

Solver = Literal["optimum", "adam"]
_RECIPE = {"lr": 1e-2, "end_lr": 1e-5, "l1_decay": 0.0, "optimizer": "Adam"}


class LinearProbe(OneVsRestModule):
    """One-vs-rest logistic regressions with balanced classes.

    The objective is that of the paper: class-weighted binary cross-entropy with weight decay. The solver `optimum` (the
    default) finds its optimum on all training rows, whatever the batches are (see
    `absorb_pl.functional.minimise_probe_loss`); one epoch is enough and a fit stops after it. The solver `adam` is the
    published recipe: Adam, learning rate decaying from 1e-2 to 1e-5 (50 epochs, batches of 4096). On a few thousand
    words it has one step per epoch and ends far from the optimum.

    Source: arXiv 2409.14507, section 3, and the published `train_multi_probe`.

    Batches are dicts with `x` `[rows, input_dim]`, `y` `[rows, num_outputs]` (0 or 1) and `index` `[rows]`.
    Classes without positive words are left out of the loss and named in `missing_classes`; after the fit
    their weights are 0 and their bias is `MISSING_LOGIT`.

    Args:
        input_dim: Width of the activations, `d_model`.
        num_outputs: Number of classes.
        lr: Learning rate of the first epoch (adam; 1e-2 if not given).
        end_lr: Learning rate after the last epoch (adam; 1e-5 if not given).
        weight_decay: Weight decay.
        l1_decay: Factor of the mean over classes of `Σ|w|` in the loss (adam; 0 if not given).
        optimizer: Optimiser (adam; Adam if not given).
        pos_weight: Weight of positive rows of each class; counted from the training labels if not given.
        class_names: Names of the classes.
        solver: How to train.

    Raises:
        AbsorbError: A setting is given that the solver does not use.
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
        lr: Positive | None = None,
        end_lr: Positive | None = None,
        weight_decay: NotNegative = 1e-4,
        l1_decay: NotNegative | None = None,
        optimizer: OptimizerName | None = None,
        pos_weight: Sequence[float | int] | None = None,
        class_names: Sequence[str] | None = None,
        solver: Solver = "optimum",
    ) -> None:
        check_ranges(LinearProbe.__init__, locals())
        recipe = {"lr": lr, "end_lr": end_lr, "l1_decay": l1_decay, "optimizer": optimizer}
        check_recipe(solver, recipe)
        settled: Any = {name: _RECIPE[name] if value is None else value for name, value in recipe.items()}
        super().__init__(input_dim, num_outputs, weight_decay=weight_decay, class_names=class_names, **settled)
        class_names = None if class_names is None else list(class_names)
        pos_weight = None if pos_weight is None else [float(weight) for weight in pos_weight]
        self.save_hyperparameters(ignore=["recipe", "settled"])
        self.solver: Solver = solver
        self.steps = solver == "adam"
        self.automatic_optimization = self.steps
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
            One logit per class.
        """
        logits = self.logits(x.reshape(-1, x.shape[-1]))
        return logits.reshape(*x.shape[:-1], -1)

    def predict_step(self, batch: Batch) -> Batch:
        """Logits of a batch with its row numbers."""
        return {"index": batch["index"], "logits": self(batch["x"])}

    def training_step(self, batch: Batch) -> Tensor | None:
        """A step of the optimiser; with the solver `optimum` nothing until the last batch, then the optimum."""
        if self.steps:
            return super().training_step(batch)
        if self.trainer.is_last_batch:
            cast(Any, self.optimizers()).step()
            self.finish_once()
            x, y = self.all_training_rows()
            rows = {"x": x.to(self.fc.weight), "y": y.to(self.fc.weight), "index": torch.arange(len(x))}
            self._log_loss(self.training_loss(rows), "train", len(x))
            self._log_metrics("train")
        return None

    def on_train_epoch_end(self) -> None:
        """Lower the learning rate, or stop: the optimum stays what it is."""
        super().on_train_epoch_end()
        if not self.steps:
            self.trainer.should_stop = True

    def configure_optimizers(self) -> Any:
        """The optimiser of the recipe, or one whose only step goes to the optimum."""
        return super().configure_optimizers() if self.steps else _OneStep(self.fc.parameters(), self._solve)

    @torch.no_grad()
    def _solve(self) -> None:
        x, y = self.all_training_rows()
        self._check_rows(x, y)
        device = self.device if self.device.type in ("cpu", "cuda") else torch.device("cpu")
        kept = self.class_mask.to(device)
        weight, bias = minimise_probe_loss(
            x.to(device, self.fc.weight.dtype),
            y.to(device)[:, kept],
            self.pos_weight.to(device)[kept],
            weight_decay=self.weight_decay,
        )
        self.fc.weight[self.class_mask] = weight.to(self.fc.weight)
        self.fc.bias[self.class_mask] = bias.to(self.fc.bias)


class _OneStep(torch.optim.Optimizer):
    """An optimiser whose step calls a solver: a Trainer counts its steps, and saves checkpoints after them."""

    def __init__(self, parameters: Iterable[Tensor], solve: Callable[[], None]) -> None:
        super().__init__(parameters, {})
        self._solve = solve

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Go to the optimum."""
        self._solve()
        return None if closure is None else closure()


def check_recipe(solver: Solver, recipe: Mapping[str, Any]) -> None:
    """Refuse settings of the published recipe that the solver does not use.

    Args:
        solver: The solver.
        recipe: Settings by name; None if they were not given.

    Raises:
        AbsorbError: One was given for the solver `optimum`.

    Example:
        >>> check_recipe("optimum", {"lr": 0.1})
        Traceback (most recent call last):
            ...
        absorb_pl.errors.AbsorbError: `lr` was 0.1, expected no value with solver='optimum', ... Pass solver='adam'...
    """
    given = {name: value for name, value in recipe.items() if value is not None}
    if solver == "optimum" and given:
        name, value = next(iter(given.items()))
        raise AbsorbError(
            name,
            value,
            expected="no value with solver='optimum', which finds the optimum by itself",
            remedy="Pass solver='adam' for the published recipe, or drop it.",
        )
