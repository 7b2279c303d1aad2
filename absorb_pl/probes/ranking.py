"""The probe that ranks an SAE's latents for each class."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from absorb_pl.data.labelled_datamodule import LabelledDataModule
from absorb_pl.functional.probe_loss import l1_penalty
from absorb_pl.probes.base import Batch, OneVsRestModule, OptimizerName
from absorb_pl.probes.fired_rows import FiredRows
from absorb_pl.probes.rows import training_batches
from absorb_pl.saes.interface import SparseAutoencoder
from absorb_pl.saes.portions import rows_at_once
from absorb_pl.saes.properties import require_width
from absorb_pl.saes.rows import encode_rows


class _EncodedRows(NamedTuple):
    """Latents of the training rows.

    Attributes:
        place: Where each row of the training set is among them.
        fired: The rows.
        whole: All of them with their zeros, where that is the faster way and they fit.
    """

    place: Tensor
    fired: FiredRows
    whole: Tensor | None


class LatentRanking(OneVsRestModule):
    """An L1-regularised one-vs-rest probe on all latents of an SAE; each class's latents are ranked by its weights.

    Source: arXiv 2409.14507, section 4.1, and the published `train_sparse_multi_probe`.

    Args:
        sae: The SAE, in the scale of unit-norm decoder rows. It is never part of a checkpoint.
        num_outputs: Number of classes.
        lr: Learning rate of the first epoch.
        end_lr: Learning rate after the last epoch.
        weight_decay: Weight decay of the optimiser.
        l1_decay: Factor of the L1 penalty.
        optimizer: Name of the optimiser.
        class_names: Names of the classes.
        num_latents: Latents that `inputs` gives; all of the SAE's when None.
    """

    # The paper's vocabularies give its ranking probe about five batches of 4096 words per epoch. With one, Adam
    # has not yet told the latents apart after 50 epochs, and the ranking is wrong for most classes.
    min_steps_per_epoch = 5

    def __init__(
        self,
        sae: SparseAutoencoder,
        num_outputs: int,
        lr: float,
        end_lr: float,
        weight_decay: float,
        l1_decay: float,
        optimizer: OptimizerName = "Adam",
        class_names: Sequence[str] | None = None,
        num_latents: int | None = None,
    ) -> None:
        super().__init__(
            num_latents or len(sae.W_dec), num_outputs, lr, end_lr, weight_decay, l1_decay, optimizer, class_names
        )
        # A tuple hides the SAE from the module tree, and so its weights from checkpoints and optimisers.
        self._sae = (sae,)
        self._encoded: _EncodedRows | None = None
        self._narrow: nn.Parameter | None = None

    @property
    def sae(self) -> Any:
        """The SAE whose latents are probed, in the scale of unit-norm decoder rows."""
        return self._sae[0]

    def setup(self, stage: str) -> None:
        """Check that the SAE reads what the datamodule holds, and move it to the probe's device."""
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(data, LabelledDataModule):
            data.check_sae(self.sae)
        super().setup(stage)
        if isinstance(self.sae, nn.Module):
            self.sae.to(self.device)

    def check_width(self, width: int) -> None:
        """Refuse activations of another width than the SAE reads.

        Args:
            width: Width of the activations.

        Raises:
            SaeWidthError: It is another.
        """
        require_width(self.sae, width)

    def on_train_start(self) -> None:
        """Warn where the batches are too few to rank the latents."""
        super().on_train_start()
        steps = int(self.trainer.num_training_batches)
        if self.rows_per_step is None and steps < self.min_steps_per_epoch:
            rank_zero_warn(
                f"{steps} batches per epoch are too few to rank latents well; choose a `batch_size` that gives "
                f"at least {self.min_steps_per_epoch}."
            )
        self.encode_training_rows(training_batches(self.trainer))
        [optimizer] = self.trainer.optimizers
        optimizer.param_groups[0]["params"] = self.stepped

    def on_train_end(self) -> None:
        """Finish, and forget the encoded training rows."""
        super().on_train_end()
        self._encoded = self._narrow = None

    @torch.no_grad()
    def finish(self) -> None:
        """Take over the weights that were trained."""
        if self._encoded is not None and self._encoded.fired.ids is not None and self._narrow is not None:
            self.fc.weight.index_copy_(1, self._encoded.fired.ids, self._narrow)

    @property
    def stepped(self) -> list[nn.Parameter]:
        """What the optimiser steps."""
        weight = self.fc.weight if self._narrow is None else self._narrow
        return [cast(nn.Parameter, weight), cast(nn.Parameter, self.fc.bias)]

    def encode_training_rows(self, batches: Iterable[Batch]) -> None:
        """Encode all training rows once; every epoch would encode the same rows again, which takes most of a fit.

        Latents that fire on none of them may be left out of `stepped`: their weights begin and stay at 0.

        Args:
            batches: All training rows.
        """
        self._encoded = self._encoded_rows(batches)
        self._narrow = self._narrowed()

    @torch.no_grad()
    def _encoded_rows(self, batches: Iterable[Batch]) -> _EncodedRows | None:
        """Latents of all training rows; None if too many fire."""
        index = list[Tensor]()

        def encoded() -> Iterator[Tensor]:
            for batch in batches:
                index.append(batch["index"].cpu())
                for part in batch["x"].split(rows_at_once(len(self.sae.W_dec))):
                    yield self.inputs(part.to(self.device))

        fired = FiredRows.of(encoded())
        if fired is None:
            return None
        number = torch.cat(index)
        every = torch.arange(len(number))
        place = torch.zeros(int(number.max()) + 1, dtype=torch.long).index_copy_(0, number, every)
        device = fired.ends.device
        fits = fired.sparse is None and len(every) <= rows_at_once(fired.width)
        return _EncodedRows(place.to(device), fired, fired.rows(every.to(device)) if fits else None)

    def _narrowed(self) -> nn.Parameter | None:
        """Weights of the latents that fire, to be stepped alone; those of all if None.

        The others must be 0 to begin with.
        """
        if not self.unseen or self._encoded is None or self._encoded.fired.ids is None:
            return None
        narrow = nn.Parameter(self.fc.weight.detach().index_select(1, self._encoded.fired.ids))
        return narrow if narrow.count_nonzero() == self.fc.weight.count_nonzero() else None

    def penalty(self) -> Float[Tensor, ""]:
        """`l1_decay` times the mean over classes of `Σ|w|`.

        Returns:
            A scalar.
        """
        weight = self.fc.weight if self._narrow is None else self._narrow
        return self.l1_decay * l1_penalty(weight, self.loss_mask)

    def training_logits(self, batch: Batch) -> Float[Tensor, "rows classes"]:
        """Logits of the ranking probe on a training batch, from latents encoded once if they fit.

        Args:
            batch: The batch.

        Returns:
            One logit per class.
        """
        if self._encoded is None:
            return self.logits(batch["x"])
        place, fired, whole = self._encoded
        weight = self._narrow
        if weight is None:
            weight = self.fc.weight if fired.ids is None else self.fc.weight.index_select(1, fired.ids)

        def logits(index: Tensor) -> Tensor:
            if whole is None:
                found = fired.product(index, weight)
            else:
                found = whole.index_select(0, index).to(weight.dtype) @ weight.T
            return self.without_missing(found + self.fc.bias)

        index = place[batch["index"].to(place.device)]
        return logits(index) if fired.sparse is not None else _in_parts(logits, index, fired.width)

    def inputs(self, x: Float[Tensor, "rows d_model"]) -> Float[Tensor, "rows latents"]:
        """Latent activations.

        Args:
            x: Residual activations.

        Returns:
            What the SAE encodes, in float32.
        """
        return encode_rows(self.sae, x).float()

    def logits(self, x: Float[Tensor, "rows d_model"]) -> Float[Tensor, "rows classes"]:
        """Logits of the L1-regularised ranking probe.

        Wide SAEs are encoded in chunks, and again in the backward pass rather than kept.

        Args:
            x: Residual activations.

        Returns:
            One logit per class.
        """
        return _in_parts(super().logits, x, len(self.sae.W_dec))


def _in_parts(logits: Callable[[Tensor], Tensor], rows: Tensor, width: int) -> Tensor:
    """Logits of so many rows at a time that their latents fit, which are made again in the backward pass."""
    parts = rows.split(rows_at_once(width))
    if len(parts) == 1:
        return logits(rows)
    if not torch.is_grad_enabled():
        return torch.cat([logits(part) for part in parts])
    return torch.cat([checkpoint(logits, part, use_reentrant=False) for part in parts])
