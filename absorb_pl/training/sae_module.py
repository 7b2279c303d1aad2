"""The LightningModule that trains SAEs: any number side by side, on the same batches of activations."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Bool, Float
from lightning.pytorch import Callback, LightningModule
from sae_lens import SAE, TrainingSAE
from sae_lens.saes.sae import TrainCoefficientConfig, TrainStepInput, TrainStepOutput
from sae_lens.training.optim import get_lr_scheduler
from torch import Tensor, nn
from torch.optim import Adam
from typing_extensions import override

from absorb_pl.data.drafts import whole_folder
from absorb_pl.errors import AbsorbError, CheckpointError, HookMismatchError, NonFiniteError
from absorb_pl.matrix_products import fast_products
from absorb_pl.ranges import Seed, check_ranges
from absorb_pl.training.export import inference_sae
from absorb_pl.training.metrics import ReconstructionMetrics
from absorb_pl.training.settings import SaeOptimisation, SaeSettings, plain_settings, sae_settings_of

Batch = dict[str, Tensor]
"""Activations by the name of their hook, `[rows, width]` each."""


class SparseAutoencoderModule(LightningModule):
    """Trains SAEs on batches of activations by hook; each as if it were alone.

    SAELens owns the architectures: their forward passes, losses, coefficients and warm-up. Here is the loop: Adam,
    learning rate, clipping, dead latents, the scale of activations, metrics and export, as in SAELens's trainer. What
    becomes of an SAE does not depend on which others train beside it.

    Logs `train/<figure>/<sae>` for the losses, `l0`, `explained_variance` and `dead_latents` every `log_every_n_steps`,
    and `val/<figure>/<sae>` for what the saved SAE would make of the held-out batches.

    Args:
        saes: The SAEs to train by name.
        hook_widths: Width of the activations by hook; on the command line taken from the data.
        optimisation: Learning rate, schedule and clipping.
        seed: Seed of the weights.

    Attributes:
        names: Names of the SAEs.
        saes: The SAEs in training, in the order of their names.
        steps_since_fired: Steps since each latent fired last, by SAE.
        findings: What callbacks found out about each SAE, by name; goes into the metadata of SAEs that are saved.

    Raises:
        HookMismatchError: An SAE names no hook where there are several, or one that is not among them.

    Example:
        >>> module = SparseAutoencoderModule({"small": SaeSettings("topk", 16, settings={"k": 2})}, {"x": 4})
        >>> module.saes[0].W_dec.shape
        torch.Size([16, 4])
    """

    scales: Tensor

    def __init__(
        self,
        saes: dict[str, SaeSettings],
        hook_widths: dict[str, int] | None = None,
        optimisation: SaeOptimisation | None = None,
        seed: Seed = 42,
    ) -> None:
        check_ranges(SparseAutoencoderModule.__init__, locals())
        super().__init__()
        self.settings = sae_settings_of(saes)
        self.hook_widths = dict(hook_widths or {})
        self.optimisation = (
            SaeOptimisation(**optimisation) if isinstance(optimisation, Mapping) else optimisation or SaeOptimisation()
        )
        self.seed = seed
        self.names = list(self.settings)
        self.hooks = [self._hook_of(name) for name in self.names]
        self.saes = nn.ModuleList(
            one.build(self.hook_widths[hook], seed)
            for one, hook in zip(self.settings.values(), self.hooks, strict=True)
        )
        for number, sae in enumerate(self._saes()):
            self.register_buffer(f"_since_fired_{number}", torch.zeros(len(sae.W_dec)))
        self.register_buffer("scales", torch.zeros(len(self.names), dtype=torch.float64))
        self.held_out = nn.ModuleList(ReconstructionMetrics(*reversed(sae.W_dec.shape)) for sae in self._saes())
        self.findings: dict[str, dict[str, Any]] = {name: {} for name in self.names}
        self._tried: list[SAE[Any]] = []
        self.save_hyperparameters(
            {
                "saes": plain_settings(self.settings),
                "hook_widths": self.hook_widths,
                "optimisation": asdict(self.optimisation),
                "seed": seed,
            },
            logger=False,
        )

    @property
    def steps_since_fired(self) -> dict[str, Float[Tensor, " latents"]]:
        """Steps since each latent fired last."""
        return {name: getattr(self, f"_since_fired_{number}") for number, name in enumerate(self.names)}

    def dead_latents(self, name: str) -> Bool[Tensor, " latents"]:
        """Which latents of an SAE have not fired for more than `dead_after_steps` steps."""
        return self.steps_since_fired[name] > self.optimisation.dead_after_steps

    def inference_saes(self) -> dict[str, SAE[Any]]:
        """The SAEs as they would be saved now: the scale of activations folded in, thresholds fixed."""
        about = self._about_data()
        found = {}
        for name, hook, sae, scale in zip(self.names, self.hooks, self._saes(), self.scales.tolist(), strict=True):
            found[name] = inference_sae(sae, scale or 1.0)
            metadata = found[name].cfg.metadata
            said = {**about, "hook_name": hook, "training_steps": self.global_step, **self.findings[name]}
            for key, value in said.items():
                metadata[key] = value
        return found

    def save_saes(self, folder: str | Path, *, unit_norms: bool = False) -> list[Path]:
        """Save all SAEs in SAELens's format, each in a folder of its name; `load_sae` and SAELens take them.

        Args:
            folder: Folder to save below; SAEs of the same names there are replaced.
            unit_norms: Whether to give decoder rows unit norm, by SAELens's `fold_W_dec_norm`; latents are scaled, and
                reconstructions stay the same.

        Raises:
            NonFiniteError: A weight is NaN or infinite.
            OutputFolderError: The folder cannot be written.
        """
        self._require_finite_weights()
        saved = []
        for name, sae in self.inference_saes().items():
            path = Path(folder) / name
            if unit_norms:
                sae.fold_W_dec_norm()
            with whole_folder(path) as draft:
                sae.cfg.device = "cpu"
                sae.save_model(draft)
            saved.append(path)
        return saved

    @override
    def configure_optimizers(self) -> Any:
        chosen = self.optimisation
        steps = self.trainer.estimated_stepping_batches
        if not 1 <= steps < float("inf"):
            raise AbsorbError(
                "max_steps",
                self.trainer.max_steps,
                expected="the number of steps to train for, as activations never end",
                remedy="Set `trainer.max_steps`.",
            )
        if chosen.lr_warm_up_steps + chosen.lr_decay_steps > steps:
            raise AbsorbError(
                "lr_warm_up_steps",
                chosen.lr_warm_up_steps,
                expected=f"with `lr_decay_steps` ({chosen.lr_decay_steps}) at most the {steps:.0f} steps of training",
                remedy="Shorten warm-up or decay, or raise `trainer.max_steps`.",
            )
        by_lr: dict[float, list[nn.Parameter]] = {}
        for sae, settings in zip(self._saes(), self.settings.values(), strict=True):
            by_lr.setdefault(settings.lr or chosen.lr, []).extend(sae.parameters())
        groups = [{"params": weights, "lr": lr} for lr, weights in by_lr.items()]
        # Under 16-mixed a fused Adam takes scaled gradients, which must not be clipped as if they were not.
        fused = None if self.trainer.precision == "16-mixed" else True
        optimizer = Adam(groups, betas=(chosen.adam_beta1, chosen.adam_beta2), fused=fused)
        schedule = get_lr_scheduler(
            chosen.lr_scheduler,
            optimizer=optimizer,
            training_steps=int(steps),
            lr=chosen.lr,
            warm_up_steps=chosen.lr_warm_up_steps,
            decay_steps=chosen.lr_decay_steps,
            lr_end=chosen.lr / 10 if chosen.lr_end is None else chosen.lr_end,
            num_cycles=chosen.n_restart_cycles,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    @override
    def configure_gradient_clipping(self, *_: Any, **__: Any) -> None:
        """Clip the gradient of each SAE by itself."""
        for sae in self.saes:
            nn.utils.clip_grad_norm_(sae.parameters(), self.optimisation.gradient_clip)

    @override
    def on_fit_start(self) -> None:
        """Refuse arguments of the Trainer that would be without effect, or have another than they say.

        Raises:
            AbsorbError: Gradients are to be clipped together, or gathered over batches.
        """
        for name, neutral, remedy in (
            ("gradient_clip_val", None, "Set `optimisation.gradient_clip`; each SAE's gradient is clipped by itself."),
            ("accumulate_grad_batches", 1, "Raise the data's `batch_size`; dead latents are counted per batch."),
        ):
            if (given := getattr(self.trainer, name)) not in (neutral, None):
                raise AbsorbError(name, given, expected=f"{neutral} where SAEs are trained", remedy=remedy)

    @override
    def on_train_start(self) -> None:
        """Estimate the scale of activations for SAEs that ask for it, before the first step."""
        scaled = [sae.cfg.normalize_activations == "expected_average_only_in" for sae in self._saes()]
        if not any(scaled) or bool(self.scales.any()):
            return
        norms = self._mean_norms()
        for number, hook in enumerate(self.hooks):
            if scaled[number]:
                self.scales[number] = self.hook_widths[hook] ** 0.5 / norms[hook]

    @override
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self._check_batch(batch)
        is_logged = (self.global_step + 1) % cast(Any, self.trainer).log_every_n_steps == 0
        loss = torch.zeros((), device=self.device)
        for number, (name, hook, sae) in enumerate(zip(self.names, self.hooks, self._saes(), strict=True)):
            output = self._forward(number, sae, batch[hook], is_logged=is_logged)
            self._count_fired(name, output)
            loss = loss + output.loss
            if is_logged:
                self._log_step(name, output)
        return loss

    @override
    def on_validation_epoch_start(self) -> None:
        self._tried = list(self.inference_saes().values())

    @override
    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        for hook, sae, metric in zip(self.hooks, self._tried, self._held_out(), strict=True):
            if hook in batch:  # a process without held-out batches of its own gets none
                latents = sae.encode(batch[hook])
                metric.update(batch[hook], latents, sae.decode(latents))

    @override
    def on_validation_epoch_end(self) -> None:
        self._tried = []
        for name, metric in zip(self.names, self._held_out(), strict=True):
            for figure, value in metric.compute().items():
                self.log(f"val/{figure}/{name}", value)
                if figure == "l0":
                    self.findings[name]["l0"] = float(value)
            metric.reset()

    @override
    @fast_products()
    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, with the forward and the backward pass that Lightning puts into its closure."""
        super().optimizer_step(*args, **kwargs)

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to write weights that are not finite, so that the last good checkpoint stays."""
        self._require_finite_weights()

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Compare the SAEs of a checkpoint with those asked for.

        Raises:
            CheckpointError: They differ.
        """
        kept = checkpoint["hyper_parameters"]
        found = {**kept, "saes": plain_settings(sae_settings_of(kept["saes"]))}
        for name in ("saes", "hook_widths", "optimisation"):
            was, asked = found[name], self.hparams[name]
            if was != asked:
                differs = next(key for key in [*was, *asked] if was.get(key) != asked.get(key))
                raise CheckpointError(
                    "ckpt_path",
                    f"a checkpoint in whose {name} {differs} is {was.get(differs, 'missing')}",
                    expected=f"{asked.get(differs, 'none')}, as asked for",
                    remedy="Go on with the settings of the checkpoint, or begin anew without it.",
                )

    def _saes(self) -> Iterator[TrainingSAE[Any]]:
        return iter(cast(Any, self.saes))

    def _held_out(self) -> Iterator[ReconstructionMetrics]:
        return iter(cast(Any, self.held_out))

    def _hook_of(self, name: str) -> str:
        asked, known = self.settings[name].hook_name, list(self.hook_widths)
        if asked in known or (not asked and len(known) == 1):
            return asked or known[0]
        raise HookMismatchError(
            "hook_name",
            asked,
            expected=f"one of the data's hooks ({', '.join(known) or 'none is known'}), for {name}",
            remedy="Give the SAE's `hook_name`, and the data's `hook_widths`.",
        )

    def _forward(self, number: int, sae: TrainingSAE[Any], x: Tensor, *, is_logged: bool) -> TrainStepOutput:
        if sae.cfg.normalize_activations == "expected_average_only_in":
            x = x * self.scales[number]
        return sae.training_forward_pass(
            TrainStepInput(
                sae_in=x,
                dead_neuron_mask=self.dead_latents(self.names[number]),
                coefficients=coefficients_at(sae, self.global_step),
                n_training_steps=self.global_step,
                is_logging_step=is_logged,
            )
        )

    @torch.no_grad()
    def _count_fired(self, name: str, output: TrainStepOutput) -> None:
        did_fire = _latents(output).abs().sum(dim=0) != 0  # several times faster than `any` on a CPU
        if self.trainer.world_size > 1:
            did_fire = cast(Tensor, self.trainer.strategy.reduce(did_fire.float(), reduce_op="sum")) > 0
        since = self.steps_since_fired[name]
        since += 1
        since[did_fire] = 0

    @torch.no_grad()
    def _log_step(self, name: str, output: TrainStepOutput) -> None:
        x = output.sae_in.double()
        figures = {"loss": output.loss, **output.losses, **output.metrics}
        error = (x - output.sae_out.double()).square().sum()
        figures["explained_variance"] = 1 - error / (x - x.mean(dim=0)).square().sum()
        figures["l0"] = _latents(output).count_nonzero() / len(x)
        figures["dead_latents"] = self.dead_latents(name).sum()
        if not torch.isfinite(output.loss):
            raise NonFiniteError(
                "loss",
                float(output.loss),
                expected=f"finite numbers; {name} diverged before step {self.global_step + 1}",
                remedy="Lower `optimisation.lr`, or go on from the last checkpoint, which is good.",
            )
        for figure, value in figures.items():
            value = value() if isinstance(value, Callable) else value
            self.log(f"train/{figure}/{name}", float(value), on_step=True, on_epoch=False)

    def _check_batch(self, batch: Batch) -> None:
        for hook in set(self.hooks):
            if hook not in batch or batch[hook].shape[-1] != self.hook_widths[hook]:
                found = {name: x.shape[-1] for name, x in batch.items()}
                raise HookMismatchError(
                    "hook_widths",
                    self.hook_widths,
                    expected=f"the hooks and widths of the data's batches, {found}",
                    remedy="Take `hook_widths` from the data.",
                )

    def _mean_norms(self) -> dict[str, float]:
        """Mean norm of activations of each hook over the first batches of all processes.

        Source: `ActivationScaler.estimate_scaling_factor` of SAELens.
        """
        sums = torch.zeros(len(self.hook_widths), 2, dtype=torch.float64, device=self.device)
        for batch in islice(cast(Any, self.trainer).train_dataloader, self.optimisation.scale_batches):
            for number, hook in enumerate(self.hook_widths):
                norms = batch[hook].norm(dim=-1).double()
                sums[number] += torch.tensor([float(norms.sum()), len(norms)], device=sums.device)
        if self.trainer.world_size > 1:
            sums = cast(Tensor, self.trainer.strategy.reduce(sums, reduce_op="sum"))
        return {hook: float(total / rows) for hook, (total, rows) in zip(self.hook_widths, sums.tolist(), strict=True)}

    def _about_data(self) -> dict[str, Any]:
        data = getattr(self._trainer, "datamodule", None)
        return dict(getattr(data, "sae_metadata", {}))

    def _require_finite_weights(self) -> None:
        for name, sae in zip(self.names, self._saes(), strict=True):
            for key, tensor in sae.state_dict().items():
                if not bool(torch.isfinite(tensor).all()):
                    raise NonFiniteError(
                        "saes",
                        f"{name}, {key}",
                        expected="finite weights; nothing was written",
                        remedy="Lower `optimisation.lr`, or go on from the last checkpoint, which is good.",
                    )


def _latents(output: TrainStepOutput) -> Float[Tensor, "rows latents"]:
    return output.feature_acts.to_dense() if output.feature_acts.is_sparse else output.feature_acts


def require_saes_in_training(callback: Callback, module: LightningModule) -> SparseAutoencoderModule:
    """The module that a callback goes with, if it trains SAEs.

    Args:
        callback: The callback, for the error.
        module: What the Trainer fits.

    Raises:
        AbsorbError: It trains something else.
    """
    if not isinstance(module, SparseAutoencoderModule):
        raise AbsorbError(
            "callbacks",
            f"{type(callback).__name__} with {type(module).__name__}",
            expected="a SparseAutoencoderModule",
            remedy="Train SAEs, or drop the callback.",
        )
    return module


def coefficients_at(sae: TrainingSAE[Any], step: int) -> dict[str, float]:
    """Coefficients of an SAE's losses at a step: each rises linearly from zero in its warm-up.

    Source: `CoefficientScheduler` of SAELens.

    Args:
        sae: The SAE in training.
        step: Steps that have been taken.

    Example:
        >>> settings = {"l1_coefficient": 3.0, "l1_warm_up_steps": 4}
        >>> sae = SaeSettings("standard", 8, settings=settings).build(d_in=4, seed=0)
        >>> [coefficients_at(sae, step)["l1"] for step in (0, 1, 4, 9)]
        [0.0, 0.75, 3.0, 3.0]
    """
    found = {}
    for name, asked in sae.get_coefficients().items():
        final, warm_up = asked if isinstance(asked, TrainCoefficientConfig) else (asked, 0)
        found[name] = final * (step / warm_up) if step < warm_up else final
    return found
