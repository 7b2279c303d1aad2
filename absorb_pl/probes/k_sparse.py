"""The SAE probe: how well a class's k best SAE latents tell the class."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torchmetrics import MetricCollection

from absorb_pl.errors import AbsorbError, SaeNotFoundError
from absorb_pl.functional.k_sparse import (
    DEFAULT_KS,
    check_ks,
    k_sparse_logits,
    rank_latents,
    solve_k_sparse,
    tracking_ranks,
)
from absorb_pl.functional.validation import require_finite
from absorb_pl.probes.base import MISSING_LOGIT, Batch, OptimizerName
from absorb_pl.probes.latents import encode_latents
from absorb_pl.probes.metrics import ProbeMetrics
from absorb_pl.probes.ranking import LatentRanking
from absorb_pl.probes.rows import training_batches
from absorb_pl.ranges import Count, NotNegative, Positive, check_ranges
from absorb_pl.saes.loading import load_sae
from absorb_pl.saes.portions import rows_at_once
from absorb_pl.saes.scale import to_unit_norms

TRACKED_RANKS = 15
"""Ranked latents of a class among which the one that tracks it is looked for."""


class SaeProbe(LatentRanking):
    """Logistic regressions on the k best SAE latents of each class, for many k.

    Source: arXiv 2409.14507, section 4.1, and the published `train_k_sparse_probes`. A fit trains an
    L1-regularised one-vs-rest probe on all latents; at its end each class's latents are ranked by signed weight and the
    logistic regression (C = 1, balanced classes) on the first k is solved to its optimum for every class and k.
    The solved probes are buffers, so a checkpoint holds all that `test` needs.

    Attributes:
        latent_ids: Each class's latents, best first, `[classes, max(ks)]`.
        weight: Coefficients, `[ks, classes, max(ks)]`; zero from rank k on.
        bias: Intercepts, `[ks, classes]`; `MISSING_LOGIT` for classes without training words, and for ks that were not
            solved for a class (see `with_ks`).
        ks: Numbers of latents, ascending.

    Args:
        sae: Name for `load_sae`, or a module with `encode` and `W_dec`. The SAE is never part of the
            checkpoint: a name is kept there and loaded again, a module has to be given to
            `load_from_checkpoint` again.
        num_outputs: Number of classes.
        ks: Numbers of latents.
        l1_decay: Factor of the L1 penalty in the ranking probe's loss.
        l2: Strength of the penalty in the logistic regressions, `1/C`.
        lr: Learning rate of the first epoch.
        end_lr: Learning rate after the last epoch.
        weight_decay: Weight decay of the ranking probe.
        optimizer: Optimiser of the ranking probe.
        class_names: Names of the classes.
        sae_dtype: Dtype of an SAE loaded by name.

    Raises:
        SaeNotFoundError: There is no SAE, or the module given is none.
        ShapeError: A k is above the SAE's width.

    Example:
        >>> class Identity(torch.nn.Module):
        ...     W_dec = torch.eye(3)
        ...     def encode(self, x):
        ...         return x.relu()
        >>> probe = SaeProbe(Identity(), num_outputs=2, ks=[1, 2])
        >>> probe.scores(torch.zeros(5, 3)).shape
        torch.Size([5, 2, 2])
    """

    latent_ids: Tensor
    weight: Tensor
    bias: Tensor
    tracking: Tensor
    tracking_f1: Tensor
    solved: Tensor

    def __init__(
        self,
        sae: Any = None,
        num_outputs: Count = 26,
        ks: Sequence[Count] = DEFAULT_KS,
        l1_decay: NotNegative = 0.01,
        l2: Positive = 1.0,
        lr: Positive = 1e-2,
        end_lr: Positive = 1e-5,
        weight_decay: NotNegative = 1e-6,
        optimizer: OptimizerName = "Adam",
        class_names: Sequence[str] | None = None,
        sae_dtype: str = "float32",
    ) -> None:
        check_ranges(SaeProbe.__init__, locals())
        module = _resolve_sae(sae, sae_dtype)
        super().__init__(module, num_outputs, lr, end_lr, weight_decay, l1_decay, optimizer, class_names)
        ks, class_names = list(check_ks(ks, module.W_dec.shape[0])), None if class_names is None else list(class_names)
        sae = sae if isinstance(sae, str) else None
        self.save_hyperparameters()
        self.ks = tuple(ks)
        self.l2 = l2
        self.register_buffer("latent_ids", torch.zeros(num_outputs, self.ks[-1], dtype=torch.long))
        self.register_buffer("weight", torch.zeros(len(self.ks), num_outputs, self.ks[-1]))
        self.register_buffer("bias", torch.full((len(self.ks), num_outputs), MISSING_LOGIT))
        self.register_buffer("tracking", torch.zeros(num_outputs, dtype=torch.long))
        self.register_buffer("tracking_f1", torch.zeros(num_outputs, dtype=torch.float64))
        self.register_buffer("solved", torch.tensor(False))
        by_k = ProbeMetrics([f"_k{k}" for k in self.ks], ["f1"])
        self.metrics["test_metrics"] = MetricCollection([by_k], prefix="test/")

    def scores(self, latents: Float[Tensor, "rows latents"]) -> Float[Tensor, "rows ks classes"]:
        """Logits of the k-sparse probes.

        Args:
            latents: Latent activations.

        Returns:
            Above zero where the first k latents tell the class.
        """
        chosen = latents[:, self.latent_ids.flatten()].unflatten(1, self.latent_ids.shape)
        return k_sparse_logits(chosen, self.weight, self.bias)

    def forward(self, x: Float[Tensor, "rows d_model"]) -> Float[Tensor, "rows ks classes"]:
        """Logits of the k-sparse probes on residual activations.

        Args:
            x: Residual activations.

        Returns:
            See `scores`.

        Raises:
            AbsorbError: The probe has not been fitted.
        """
        if not bool(self.solved):
            raise AbsorbError(
                "ckpt_path",
                "a k-sparse probe without solutions",
                expected="a checkpoint written at the end of a fit",
                remedy="Fit it to its last epoch, or use the checkpoint of the last epoch.",
            )
        return torch.cat([self.scores(self.inputs(part)) for part in x.split(rows_at_once(self.fc.in_features))])

    def test_step(self, batch: Batch) -> None:
        """F1 of the solved probes for each k."""
        require_finite(x=batch["x"])
        self.metric("test").update(self(batch["x"]), batch["y"].bool(), batch["index"])

    def predict_step(self, batch: Batch) -> Batch:
        """Logits of the k-sparse probes with their row numbers."""
        return {"index": batch["index"], "logits": self(batch["x"])}

    @torch.no_grad()
    def finish(self) -> None:
        """Rank the latents and solve the k-sparse probes on all training rows."""
        super().finish()
        self._rank_and_solve(training_batches(self.trainer))

    @torch.no_grad()
    def with_ks(
        self,
        ks: Sequence[Count],
        x: Float[Tensor, "rows d_model"],
        y: Tensor,
        classes: Bool[Tensor, " classes"] | None = None,
    ) -> "SaeProbe":
        """Probes with other numbers of latents on the same ranking.

        Args:
            ks: Numbers of latents.
            x: Activations of the training rows.
            y: Their labels, `[rows, classes]`.
            classes: Classes to solve, all when None. Others have the probes of ks that are solved already, and
                `MISSING_LOGIT` for further ones.

        Returns:
            The solved probes, in evaluation mode.
        """
        check_ranges(SaeProbe.with_ks, locals())
        with isolate_rng():
            probe = SaeProbe(**{**self.hparams, "sae": self.sae, "ks": ks}).to(self.device)
        probe.fc.load_state_dict(self.fc.state_dict())
        probe.class_mask.copy_(self.class_mask)
        probe.tracking.copy_(self.tracking)
        probe.tracking_f1.copy_(self.tracking_f1)
        for number, k in enumerate(probe.ks):
            if k in self.ks:
                probe.weight[number, :, :k] = self.weight[self.ks.index(k), :, :k]
                probe.bias[number] = self.bias[self.ks.index(k)]
        kept = self.class_mask if classes is None else self.class_mask & classes.to(self.device)
        ids = rank_latents(self.fc.weight, probe.ks[-1])
        probe._solve(encode_latents(self.sae, x, ids[kept].flatten()).unflatten(1, (-1, ids.shape[1])), y, ids, kept)
        return probe.eval()

    def _rank_and_solve(self, batches: Iterable[Batch]) -> None:
        kept = self.class_mask
        self.weight.zero_()
        self.bias.fill_(MISSING_LOGIT)
        self.tracking_f1.zero_()
        ids = rank_latents(self.fc.weight, min(max(self.ks[-1], TRACKED_RANKS), self.fc.in_features))
        chosen, labels = [], []
        for batch in batches:
            chosen.append(encode_latents(self.sae, batch["x"], ids[kept].flatten()))
            labels.append(batch["y"])
        activations, y = torch.cat(chosen).unflatten(1, (-1, ids.shape[1])), torch.cat(labels)
        self._solve(activations, y, ids, kept)
        self._track(activations, y, ids)

    def _solve(self, activations: Float[Tensor, "rows kept ranks"], y: Tensor, ids: Tensor, kept: Tensor) -> None:
        """Solve some classes for all ks, from the activations of their ranked latents, and keep the solutions."""
        most, device = self.ks[-1], activations.device if activations.device.type in ("cpu", "cuda") else "cpu"
        targets = y.to(kept.device)[:, kept].bool().to(device)
        solution = solve_k_sparse(activations[:, :, :most].transpose(0, 1).to(device), targets, self.ks, l2=self.l2)
        self.latent_ids.copy_(ids[:, :most])
        self.weight[:, kept] = solution.weight.to(self.weight)
        self.bias[:, kept] = solution.bias.to(self.bias)
        self.solved.fill_(True)

    def _track(self, activations: Float[Tensor, "rows kept ranks"], y: Tensor, ids: Tensor) -> None:
        """Find the latent that tracks each class; where nothing is known of one, its first."""
        kept = self.class_mask
        targets = y.to(kept.device)[:, kept].bool().to(activations.device)
        ranks, f1 = tracking_ranks(activations[:, :, :TRACKED_RANKS].transpose(0, 1), targets)
        self.tracking.copy_(ids[:, 0])
        self.tracking[kept] = ids[kept].gather(1, ranks[:, None].to(ids.device)).squeeze(1)
        self.tracking_f1[kept] = f1.to(self.tracking_f1)


def _resolve_sae(sae: Any, dtype: str) -> Any:
    if isinstance(sae, str):
        return to_unit_norms(load_sae(sae, dtype=dtype), in_place=True)
    if not all(hasattr(sae, name) for name in ("encode", "W_dec")):
        raise SaeNotFoundError(
            "sae",
            None if sae is None else type(sae).__name__,
            expected="the name of an SAE, or a module with `encode` and `W_dec`",
            remedy="Pass `sae=`; a checkpoint holds an SAE's name, but not an SAE given as a module.",
        )
    return to_unit_norms(sae)
