"""Probes trained by one call on tensors, under the names, arguments and defaults of the paper's package."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Num
from torch import Tensor, nn

from absorb_pl.data.labelled_batches import DEFAULT_BATCH_SIZE
from absorb_pl.errors import AbsorbError, LabelError, ShapeError
from absorb_pl.functional.k_sparse import DEFAULT_KS, check_ks, rank_latents, solve_k_sparse
from absorb_pl.probes.base import Batch, OptimizerName
from absorb_pl.probes.fitting import fit_probe
from absorb_pl.probes.k_sparse import SaeProbe
from absorb_pl.probes.linear import LinearProbe, Solver
from absorb_pl.ranges import Count, NotNegative, Positive, check_ranges
from absorb_pl.saes.interface import SparseAutoencoder
from absorb_pl.saes.rows import encode_rows

ExtraLoss = Callable[[LinearProbe, Tensor, Tensor], Tensor]
DEFAULT_DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
"""Where the paper's functions train: on a GPU if there is one."""


class _ProbeWithExtraLoss(LinearProbe):
    """A linear probe with a caller's term in its training loss."""

    extra_loss_fn: ExtraLoss | None = None

    def training_loss(self, batch: Batch) -> Tensor:
        loss = super().training_loss(batch)
        return loss if self.extra_loss_fn is None else loss + self.extra_loss_fn(self, batch["x"], batch["y"])


class KSparseProbe(nn.Module):
    """A logistic regression on a few latents, as `train_k_sparse_probes` returns it.

    Args:
        weight: Coefficients, `[k]`.
        bias: Intercept, a scalar.
        feature_ids: Latents, best first, `[k]`.

    Example:
        >>> probe = KSparseProbe(torch.tensor([2.0]), torch.tensor(-1.0), torch.tensor([1]))
        >>> probe.k, probe(torch.tensor([[0.0, 3.0]]))
        (1, tensor([5.]))
    """

    def __init__(self, weight: Tensor, bias: Tensor, feature_ids: Tensor) -> None:
        super().__init__()
        self.weight, self.bias, self.feature_ids = weight, bias, feature_ids

    @property
    def k(self) -> int:
        """Number of latents."""
        return len(self.weight)

    def forward(self, x: Float[Tensor, "*rows latents"]) -> Float[Tensor, "*rows"]:
        """Logits from latent activations.

        Args:
            x: Activations of all latents of the SAE.

        Returns:
            Above zero where the class is predicted.
        """
        return x[..., self.feature_ids] @ self.weight + self.bias


def train_multi_probe(
    x_train: Float[Tensor, "rows features"],
    y_train: Num[Tensor, "rows classes"],
    num_probes: Count | None = None,
    batch_size: Count = 4096,
    num_epochs: Count = 100,
    lr: Positive = 0.01,
    end_lr: Positive = 1e-5,
    weight_decay: NotNegative = 1e-6,
    show_progress: bool = True,
    optimizer: OptimizerName = "Adam",
    extra_loss_fn: ExtraLoss | None = None,
    verbose: bool = False,
    device: torch.device | str = DEFAULT_DEVICE,
    *,
    l1_decay: NotNegative = 0.0,
    solver: Solver = "adam",
) -> LinearProbe:
    """Train one-vs-rest logistic regression probes.

    Arguments and defaults are those of the published function of this name (`sae_spelling.probing`).

    Args:
        x_train: Features.
        y_train: One-hot or multi-hot labels.
        num_probes: Number of classes; that of `y_train` if not given.
        batch_size: Rows a step.
        num_epochs: Epochs.
        lr: Learning rate of the first epoch.
        end_lr: Learning rate after the last epoch.
        weight_decay: Weight decay.
        show_progress: Show a progress bar.
        optimizer: Optimiser.
        extra_loss_fn: Term added to the loss, from the probe and a batch's features and labels.
        verbose: Show Lightning's messages.
        device: Where to train.
        l1_decay: Factor of the mean over classes of `Σ|w|` in the loss.
        solver: `adam` is the published recipe. `optimum` finds the optimum of cross-entropy with weight decay, as
            `LinearProbe` does by default; it reads none of the recipe's settings, and takes no extra loss, `l1_decay`
            or AdamW.

    Returns:
        The trained probe, in evaluation mode.

    Raises:
        AbsorbError: The solver `optimum` is asked for with an extra loss, `l1_decay` or AdamW.
        LabelError: No class has both positive and negative rows.
        NonFiniteError: `x_train` holds NaN or infinite values.
        ShapeError: `num_probes` is not the number of label columns.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat(8, 1)
        >>> probe = train_multi_probe(x, x, num_epochs=1, show_progress=False, device="cpu")
        >>> (probe(x) > 0).float().equal(x)
        True
    """
    check_ranges(train_multi_probe, locals())
    if num_probes is not None and num_probes != y_train.shape[1]:
        raise ShapeError(
            "num_probes",
            num_probes,
            expected=f"the {y_train.shape[1]} columns of y_train",
            remedy="Leave it out.",
        )
    if solver == "optimum" and (extra_loss_fn is not None or l1_decay or optimizer == "AdamW"):
        raise AbsorbError(
            "solver",
            solver,
            expected="'adam' with an extra loss, `l1_decay` or AdamW, which have another objective",
            remedy="Leave it out.",
        )
    recipe: Any = {"lr": lr, "end_lr": end_lr, "l1_decay": l1_decay, "optimizer": optimizer}
    probe = _ProbeWithExtraLoss(
        x_train.shape[1],
        y_train.shape[1],
        weight_decay=weight_decay,
        solver=solver,
        **(recipe if solver == "adam" else {}),
    )
    probe.extra_loss_fn = extra_loss_fn
    fit_probe(probe, x_train, y_train, num_epochs, batch_size, device, show_progress=show_progress, verbose=verbose)
    return probe


def train_binary_probe(
    x_train: Float[Tensor, "rows features"],
    y_train: Num[Tensor, " rows"],
    batch_size: Count = 256,
    num_epochs: Count = 100,
    lr: Positive = 0.01,
    end_lr: Positive = 1e-5,
    weight_decay: NotNegative = 1e-6,
    show_progress: bool = True,
    optimizer: OptimizerName = "Adam",
    extra_loss_fn: ExtraLoss | None = None,
    verbose: bool = False,
    device: torch.device | str = DEFAULT_DEVICE,
    *,
    solver: Solver = "adam",
) -> LinearProbe:
    """Train one logistic regression probe.

    Arguments and defaults are those of the published function of this name (`sae_spelling.probing`).

    Args:
        x_train: Features.
        y_train: Labels, 0 or 1.
        batch_size: Rows a step.
        num_epochs: Epochs.
        lr: Learning rate of the first epoch.
        end_lr: Learning rate after the last epoch.
        weight_decay: Weight decay.
        show_progress: Show a progress bar.
        optimizer: Optimiser.
        extra_loss_fn: Term added to the loss.
        verbose: Show Lightning's messages.
        device: Where to train.
        solver: See `train_multi_probe`.

    Returns:
        The trained probe, with one output.

    Raises:
        LabelError: All labels are equal.
        NonFiniteError: `x_train` holds NaN or infinite values.

    Example:
        >>> x = torch.linspace(-1, 1, 20)[:, None]
        >>> probe = train_binary_probe(x, (x[:, 0] > 0).int(), num_epochs=1, show_progress=False, device="cpu")
        >>> bool(probe.weights > 0)
        True
    """
    check_ranges(train_binary_probe, locals())
    return train_multi_probe(
        x_train,
        y_train[:, None],
        batch_size=batch_size,
        num_epochs=num_epochs,
        lr=lr,
        end_lr=end_lr,
        weight_decay=weight_decay,
        show_progress=show_progress,
        optimizer=optimizer,
        extra_loss_fn=extra_loss_fn,
        verbose=verbose,
        device=device,
        solver=solver,
    )


def train_sparse_multi_probe(
    x_train: Float[Tensor, "rows features"],
    y_train: Num[Tensor, "rows classes"],
    l1_decay: NotNegative = 0.01,
    num_probes: Count | None = None,
    batch_size: Count = 4096,
    num_epochs: Count = 50,
    lr: Positive = 0.01,
    end_lr: Positive = 1e-5,
    l2_decay: NotNegative = 1e-6,
    show_progress: bool = True,
    verbose: bool = False,
    device: torch.device | str = DEFAULT_DEVICE,
) -> LinearProbe:
    """Train one-vs-rest probes with an L1 penalty, by whose weights latents are ranked.

    Arguments and defaults are those of the published function of this name
    (`sae_spelling.experiments.k_sparse_probing`).

    Args:
        x_train: Latent activations.
        y_train: One-hot or multi-hot labels.
        l1_decay: Factor of the mean over classes of `Σ|w|`.
        num_probes: Number of classes; that of `y_train` if not given.
        batch_size: Rows a step.
        num_epochs: Epochs.
        lr: Learning rate of the first epoch.
        end_lr: Learning rate after the last epoch.
        l2_decay: Weight decay.
        show_progress: Show a progress bar.
        verbose: Show Lightning's messages.
        device: Where to train.

    Returns:
        The trained probe.

    Raises:
        LabelError: No class has both positive and negative rows.
        NonFiniteError: `x_train` holds NaN or infinite values.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat(8, 1)
        >>> train_sparse_multi_probe(x, x, num_epochs=2, show_progress=False, device="cpu").weights.argmax(dim=1)
        tensor([0, 1])
    """
    check_ranges(train_sparse_multi_probe, locals())
    return train_multi_probe(
        x_train,
        y_train,
        num_probes=num_probes,
        batch_size=batch_size,
        num_epochs=num_epochs,
        lr=lr,
        end_lr=end_lr,
        weight_decay=l2_decay,
        show_progress=show_progress,
        verbose=verbose,
        device=device,
        l1_decay=l1_decay,
    )


def train_k_sparse_probes(
    sae: SparseAutoencoder,
    train_labels: Sequence[tuple[str, int]],
    train_activations: Float[Tensor, "rows d_model"],
    ks: Iterable[int] = DEFAULT_KS,
    sae_post_act: bool = True,
) -> dict[int, dict[int, KSparseProbe]]:
    """Train k-sparse probes for each k and label.

    Arguments, defaults and result are those of the published function of this name
    (`sae_spelling.experiments.k_sparse_probing`); the logistic regressions are solved to their optimum, and
    small vocabularies are cut into at least five batches (see `SaeProbe.min_steps_per_epoch`). Under a
    Trainer, use `SaeProbe`.

    Args:
        sae: A SAELens SAE, or any module with `encode`.
        train_labels: Word and label number of each row.
        train_activations: Residual activations at the words.
        ks: Numbers of latents.
        sae_post_act: Probe the latents after their activation function, or before it (SAELens SAEs only).

    Returns:
        For each k, the probe of each label that occurs.

    Raises:
        LabelError: There are other numbers of labels and rows, or fewer than two labels.
        NonFiniteError: An activation is NaN or infinite.
        ShapeError: A k is above the SAE's width.
        AbsorbError: Activations before the activation function are not to be had.

    Example:
        >>> class Identity(torch.nn.Module):
        ...     W_dec = torch.eye(3)
        ...     def encode(self, x):
        ...         return x.relu()
        >>> x = torch.eye(3).repeat(6, 1)
        >>> probes = train_k_sparse_probes(Identity(), [("", i % 3) for i in range(18)], x, ks=[1])
        >>> [probes[1][label].feature_ids.item() for label in (0, 1, 2)]
        [0, 1, 2]
    """
    numbers = torch.tensor([label for _, label in train_labels], dtype=torch.long)
    labels = sorted(set(numbers.tolist()))
    if len(numbers) != len(train_activations) or len(labels) < 2:
        raise LabelError(
            "train_labels",
            f"{len(numbers)} rows with {len(labels)} labels",
            expected=f"{len(train_activations)} rows with at least two labels",
            remedy="Pass one (word, label) pair per row of train_activations.",
        )
    latents = _sae_latents(sae, train_activations, sae_post_act)
    ks = check_ks(list(ks), latents.shape[1])
    y = nn.functional.one_hot(numbers).to(latents.device)
    ranking = train_sparse_multi_probe(
        latents,
        y,
        batch_size=min(DEFAULT_BATCH_SIZE, math.ceil(len(y) / SaeProbe.min_steps_per_epoch)),
        show_progress=False,
        device=latents.device,
    )
    ids = rank_latents(ranking.weights.detach()[labels], ks[-1])
    chosen = latents[:, ids.flatten()].unflatten(1, ids.shape).transpose(0, 1).cpu()
    weight, bias = solve_k_sparse(chosen, y[:, labels].bool().cpu(), ks)
    ids = ids.cpu()
    return {
        k: {
            label: KSparseProbe(weight[i, c, :k].float(), bias[i, c].float(), ids[c, :k])
            for c, label in enumerate(labels)
        }
        for i, k in enumerate(ks)
    }


@torch.no_grad()
def _sae_latents(sae: Any, x: Tensor, post_act: bool) -> Tensor:
    device = sae.W_dec.device
    if post_act:
        return encode_rows(sae, x.to(device)).float()
    if not hasattr(sae, "run_with_cache"):
        raise AbsorbError(
            "sae_post_act",
            post_act,
            expected="True for an SAE without hooks",
            remedy="Use a SAELens SAE to probe activations before the activation function.",
        )
    return sae.run_with_cache(x.to(device))[1]["hook_sae_acts_pre"].float()
