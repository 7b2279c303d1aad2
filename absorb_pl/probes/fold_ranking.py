"""Ranking probes for cross-fitting: one for each fold of the rows, trained together."""

import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor
from typing_extensions import override

from absorb_pl.functional.probe_loss import l1_penalty_of_folds, learnable_classes, loss_of_folds, positive_weights
from absorb_pl.functional.validation import require_finite
from absorb_pl.probes.base import Batch
from absorb_pl.probes.ranking import LatentRanking
from absorb_pl.probes.settings import KSparseSettings
from absorb_pl.saes.interface import SparseAutoencoder


class FoldRanking(LatentRanking):
    """Probes on all latents of an SAE, one for each fold, each trained on the rows that its fold does not hold out.

    All step through the same batches, and a row weighs nothing for the fold that holds it out. Each probe's loss is its
    own (`functional.probe_loss.loss_of_folds`), so what is shared is the order of rows and one matrix product for all.

    Args:
        sae: The SAE, in the scale of unit-norm decoder rows.
        num_classes: Number of classes.
        held_out: The fold that holds each row out, `[rows]`.
        settings: How to train.
        firing: Latents that fire on some row; the weights of others would begin and stay at 0.
    """

    fused = True
    trained_on: Tensor
    firing: Tensor

    def __init__(
        self,
        sae: SparseAutoencoder,
        num_classes: int,
        held_out: Int[Tensor, " rows"],
        settings: KSparseSettings,
        firing: Int[Tensor, " firing"],
    ) -> None:
        self.folds = int(held_out.max()) + 1
        super().__init__(
            sae,
            self.folds * num_classes,
            settings.lr,
            settings.end_lr,
            weight_decay=1e-6,
            l1_decay=settings.l1_decay,
            num_latents=len(firing),
        )
        trained_on = held_out[:, None] != torch.arange(self.folds)
        self.register_buffer("trained_on", trained_on, persistent=False)
        self.register_buffer("firing", firing, persistent=False)

    @property
    def weight(self) -> Float[Tensor, "folds classes latents"]:
        """Weights of all probes; 0 for latents that fire on no row, and for classes that a fold cannot tell apart."""
        found = self.fc.weight.detach()
        whole = found.new_zeros(len(found), len(self.sae.W_dec)).index_copy_(1, self.firing, found)
        return whole.unflatten(0, (self.folds, -1))

    @property
    def learnable(self) -> Bool[Tensor, "folds classes"]:
        """Classes that have words and other words among the rows that a fold's probe is trained on."""
        return self.class_mask.unflatten(0, (self.folds, -1))

    @override
    def inputs(self, x: Float[Tensor, "rows d_model"]) -> Float[Tensor, "rows firing"]:
        """Activations of the latents that fire on some row."""
        return super().inputs(x)[:, self.firing]

    @override
    def count_labels(self, y: Num[Tensor, "rows classes"]) -> None:
        """Set each fold's class weights from the labels of the rows that its probe is trained on.

        Args:
            y: Labels of all rows.
        """
        for fold, trained_on in enumerate(self.trained_on.T.cpu()):
            positives, rows = y[trained_on].sum(dim=0), int(trained_on.sum())
            self.learnable[fold].copy_(learnable_classes(positives, rows))
            self.pos_weight.unflatten(0, (self.folds, -1))[fold].copy_(positive_weights(positives, rows))
        self._all_learnable = bool(self.class_mask.all())

    @override
    def training_loss(self, batch: Batch) -> Float[Tensor, ""]:
        """Sum of the losses of all folds."""
        if self.is_first_epoch:
            require_finite(x=batch["x"])
        by_fold = (self.folds, -1)
        trained_on = self.trained_on[batch["index"].to(self.trained_on.device)]
        logits, pos_weight = self.training_logits(batch).unflatten(1, by_fold), self.pos_weight.unflatten(0, by_fold)
        return loss_of_folds(logits, batch["y"], pos_weight, self.learnable, trained_on) + self.penalty()

    @override
    def penalty(self) -> Float[Tensor, ""]:
        """Sum of the penalties of all folds."""
        return self.l1_decay * l1_penalty_of_folds(self.fc.weight.unflatten(0, (self.folds, -1)), self.learnable)
