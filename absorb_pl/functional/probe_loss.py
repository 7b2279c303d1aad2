"""Losses of the linear probes: class-weighted cross-entropy, its penalty, and which classes count."""

import torch
from jaxtyping import Bool, Float, Num
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from absorb_pl.errors import LabelError


def learnable_classes(positives: Num[Tensor, " classes"], rows: int) -> Bool[Tensor, " classes"]:
    """Tell which classes have both positive and negative rows.

    Args:
        positives: Number of positive rows of each class.
        rows: Number of rows.

    Returns:
        True if a one-vs-rest probe can be trained.

    Raises:
        LabelError: No class has both.

    Example:
        >>> learnable_classes(torch.tensor([3, 0, 1]), rows=4)
        tensor([ True, False,  True])
    """
    learnable = (positives > 0) & (positives < rows)
    if not bool(learnable.any()):
        raise LabelError(
            "y",
            f"{positives.tolist()[:30]} positives among {rows} rows",
            expected="at least one class with positive and negative rows",
            remedy="Check the labels, or add words of other classes.",
        )
    return learnable


def positive_weights(positives: Num[Tensor, " classes"], rows: int) -> Float[Tensor, " classes"]:
    """Weight of positive rows, `negatives / positives` of each class.

    The published `train_multi_probe` computes the same quotient, which is infinite for a class without
    positives; here such a class gets 1, to be left out by `learnable_classes`.

    Args:
        positives: Number of positive rows of each class.
        rows: Number of rows.

    Returns:
        Finite weights in float32, for `probe_loss`.

    Example:
        >>> positive_weights(torch.tensor([1, 2, 0]), rows=4)
        tensor([3., 1., 1.])
    """
    counts = positives.double()
    return torch.where(counts > 0, (rows - counts) / counts.clamp(min=1), 1.0).float()


def probe_loss(
    logits: Float[Tensor, "rows classes"],
    targets: Num[Tensor, "rows classes"],
    pos_weight: Float[Tensor, " classes"],
    class_mask: Bool[Tensor, " classes"] | None,
) -> Float[Tensor, ""]:
    """Mean binary cross-entropy over rows and the classes that count.

    `−(v·y·log σ(z) + (1 − y)·log σ(−z))` with `v` the class's `positive_weights`: `BCEWithLogitsLoss` as in
    the published `train_multi_probe` (arXiv 2409.14507, appendix on probe training), restricted to
    `class_mask`.

    Args:
        logits: Outputs of the probe.
        targets: Labels, 0 or 1.
        pos_weight: Weight of positive rows.
        class_mask: Classes to count, at least one; all when None, which is faster and gives the same.

    Returns:
        The loss, a scalar.

    Example:
        >>> mask = torch.tensor([True, False])
        >>> probe_loss(torch.zeros(1, 2), torch.tensor([[1, 0]]), torch.tensor([3.0, 1.0]), mask)
        tensor(2.0794)
    """
    if class_mask is not None:
        logits, targets, pos_weight = logits[:, class_mask], targets[:, class_mask], pos_weight[class_mask]
    return binary_cross_entropy_with_logits(logits, targets.to(logits.dtype), pos_weight=pos_weight)


def l1_penalty(
    weight: Float[Tensor, "classes features"], class_mask: Bool[Tensor, " classes"] | None
) -> Float[Tensor, ""]:
    """Mean over the classes that count of `Σ|w|`, the published `train_sparse_multi_probe`'s extra loss.

    Args:
        weight: Weights of the probe.
        class_mask: Classes to count, at least one; all when None.

    Returns:
        The penalty before its factor (0.01 in the paper), a scalar.

    Example:
        >>> l1_penalty(torch.tensor([[1.0, -2.0], [9.0, 9.0]]), torch.tensor([True, False]))
        tensor(3.)
    """
    return (weight if class_mask is None else weight[class_mask]).abs().sum(dim=1).mean()


def loss_of_folds(
    logits: Float[Tensor, "rows folds classes"],
    targets: Num[Tensor, "rows classes"],
    pos_weight: Float[Tensor, "folds classes"],
    class_mask: Bool[Tensor, "folds classes"],
    trained_on: Bool[Tensor, "rows folds"],
) -> Float[Tensor, ""]:
    """Sum over folds of `probe_loss` on the rows that the fold's probe is trained on.

    Args:
        logits: Outputs of the probes of all folds.
        targets: Labels, 0 or 1.
        pos_weight: Weight of positive rows, for each fold.
        class_mask: Classes to count in each fold; at least one.
        trained_on: Which rows each fold's probe is trained on; a fold without rows adds nothing.

    Returns:
        The loss, a scalar; its gradient by a fold's probe is that of the fold's own loss.

    Example:
        >>> every, mask = torch.ones(1, 2, dtype=torch.bool), torch.tensor([[True, False], [True, True]])
        >>> loss_of_folds(torch.zeros(1, 2, 2), torch.tensor([[1, 0]]), torch.ones(2, 2), mask, every)
        tensor(1.3863)
    """
    counts = (trained_on.sum(dim=0) * class_mask.sum(dim=1)).clamp(min=1).to(logits.dtype)
    weight = trained_on[:, :, None] * (class_mask / counts[:, None])
    return binary_cross_entropy_with_logits(
        logits,
        targets[:, None, :].to(logits.dtype).expand_as(logits),
        weight=weight,
        pos_weight=pos_weight,
        reduction="sum",
    )


def l1_penalty_of_folds(
    weight: Float[Tensor, "folds classes features"], class_mask: Bool[Tensor, "folds classes"]
) -> Float[Tensor, ""]:
    """Sum over folds of `l1_penalty`.

    Args:
        weight: Weights of the probes of all folds.
        class_mask: Classes to count in each fold; at least one.

    Returns:
        The penalty before its factor, a scalar.

    Example:
        >>> l1_penalty_of_folds(torch.tensor([[[1.0, -2.0], [9.0, 9.0]]]), torch.tensor([[True, False]]))
        tensor(3.)
    """
    of_classes = weight.abs().sum(dim=2) * class_mask
    return (of_classes.sum(dim=1) / class_mask.sum(dim=1)).sum()
