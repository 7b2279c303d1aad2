"""Train SAEs on with and without new latents, side by side, to see how much they had hedged."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, cast

import pandas as pd
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from sae_lens import TrainingSAE
from torch import Tensor, nn
from typing_extensions import override

from absorb_pl.data.trainers import log_folder, one_device_trainer
from absorb_pl.evaluators.writers import write_table
from absorb_pl.functional.hedging import Hedging, hedging_degree
from absorb_pl.probes.fitting import quiet_lightning
from absorb_pl.ranges import Count, check_ranges
from absorb_pl.reports.figures import save_figures
from absorb_pl.reports.training_figures import draw_hedging
from absorb_pl.schema import HEDGING, empty_table, stacked, typed
from absorb_pl.training.sae_module import SparseAutoencoderModule, require_saes_in_training
from absorb_pl.training.settings import SaeSettings


class MeasureHedging(Callback):
    """How much each SAE hedges, measured when the training ends and, if asked for, on the way.

    Every SAE is trained on for some steps, as it is and with new latents (`measure_hedging`); what the training leaves
    is not touched, and goes on as if nothing had been measured. Logs `hedging/<sae>`, writes the table `hedging`, draws
    a figure if there are several steps, and the SAEs that are saved carry their last degree in their metadata, where a
    study finds it. One process measures; the others wait.

    Args:
        new_latents: How many latents to add.
        steps: Steps to train on for.
        every_n_steps: Steps of the training between measurements; at its end alone when None. Each takes as long as
            `2 · steps` steps of the training in one process, with twice its SAEs in memory; where several train, one
            does it all, and the others must be willing to wait so long (`timeout` of `DDPStrategy`).

    Attributes:
        found: What was found so far, a row per step and SAE (see `absorb_pl.schema.HEDGING`).
    """

    def __init__(self, new_latents: Count = 64, steps: Count = 500, every_n_steps: Count | None = None) -> None:
        check_ranges(MeasureHedging.__init__, locals())
        self.new_latents, self.steps, self.every_n_steps = new_latents, steps, every_n_steps
        self.found = empty_table(HEDGING)
        self._measured_at = -1

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget what was found in another training; what a checkpoint holds is restored afterwards."""
        self.found, self._measured_at = empty_table(HEDGING), -1

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that SAEs are trained.

        Raises:
            AbsorbError: The module trains something else.
        """
        require_saes_in_training(self, pl_module)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step, module = trainer.global_step, cast(SparseAutoencoderModule, pl_module)
        if self.every_n_steps and step % self.every_n_steps == 0 and step != trainer.estimated_stepping_batches:
            self._measure(trainer, module)
        else:
            for findings in module.findings.values():  # the degree is that of an earlier step
                findings.pop("hedging_degree", None)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._measured_at != trainer.global_step:
            self._measure(trainer, cast(SparseAutoencoderModule, pl_module))
        folder = log_folder(trainer) / "figures"
        if trainer.is_global_zero and self.found["step"].nunique() > 1:
            save_figures(draw_hedging(self.found), folder)

    @override
    def state_dict(self) -> dict[str, Any]:
        """What was found so far, as plain values."""
        return {"found": self.found.astype(object).to_dict("records")}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.found = typed(pd.DataFrame(state_dict["found"]), HEDGING)

    def _measure(self, trainer: Trainer, module: SparseAutoencoderModule) -> None:
        self._measured_at = trainer.global_step
        folder = log_folder(trainer) / "tables"  # which all processes must ask for
        if trainer.is_global_zero:
            data = cast(Any, trainer).datamodule
            with quiet_lightning(), isolate_rng(), torch.inference_mode(False), torch.enable_grad():
                measured = measure_hedging(module, data, lambda: self._trainer(module.device), self.new_latents)
            data.trainer = trainer
            self._keep(trainer, module, measured)
            write_table(self.found, folder / "hedging.parquet")
        trainer.strategy.barrier()

    def _keep(self, trainer: Trainer, module: SparseAutoencoderModule, measured: Mapping[str, Hedging]) -> None:
        rows = [
            {
                "step": trainer.global_step,
                "sae": name,
                "hook_name": hook,
                "architecture": module.settings[name].architecture,
                "d_sae": module.settings[name].d_sae,
                "new_latents": self.new_latents,
                "steps": self.steps,
                **measured[name]._asdict(),
            }
            for name, hook in zip(module.names, module.hooks, strict=True)
        ]
        earlier = self.found[self.found["step"] < trainer.global_step]
        self.found = typed(stacked([earlier, pd.DataFrame(rows)]), HEDGING)
        for name, hedging in measured.items():
            module.findings[name]["hedging_degree"] = hedging.degree
        for logger in trainer.loggers:
            logger.log_metrics({f"hedging/{name}": one.degree for name, one in measured.items()}, trainer.global_step)

    def _trainer(self, device: torch.device) -> Trainer:
        return one_device_trainer(device, max_steps=self.steps, limit_val_batches=0, enable_progress_bar=False)


def measure_hedging(
    module: SparseAutoencoderModule,
    data: LightningDataModule,
    make_trainer: Callable[[], Trainer],
    new_latents: Count = 64,
) -> dict[str, Hedging]:
    """Measure how much the SAEs of a training hedge.

    Each SAE is trained on twice from where it is, as it is and with new latents, on the same batches, with the
    learning rate that it began with and its losses at their full strength.

    Args:
        module: The training, which is left as it is.
        data: What the SAEs were trained on.
        make_trainer: Makes the Trainer that trains on; its `max_steps` says how long.
        new_latents: How many latents to add.

    Returns:
        By SAE, how far the old latents moved towards the new ones, and the degree of hedging.

    Raises:
        RangeError: There are to be no new latents.
    """
    check_ranges(measure_hedging, locals())
    constant = replace(module.optimisation, lr_scheduler="constant", lr_warm_up_steps=0, lr_decay_steps=0)
    controls = {f"control-{name}": _at_full_strength(one) for name, one in module.settings.items()}
    extended = {
        f"extended-{name}": replace(_at_full_strength(one), d_sae=one.d_sae + new_latents)
        for name, one in module.settings.items()
    }
    onward = SparseAutoencoderModule({**controls, **extended}, module.hook_widths, constant, module.seed)
    for source, sae in zip([*module.saes, *module.saes], onward.saes, strict=True):
        copy_latents(source, sae)
    onward.scales.copy_(torch.cat([module.scales, module.scales]))
    make_trainer().fit(onward, data)
    decoders = [cast(TrainingSAE[Any], sae).W_dec.detach() for sae in onward.saes]
    pairs = zip(module.names, decoders[: len(controls)], decoders[len(controls) :], strict=True)
    return {name: hedging_degree(control, wider) for name, control, wider in pairs}


def _at_full_strength(settings: SaeSettings) -> SaeSettings:
    """The same SAE, with the coefficients of its losses at once what they rose to in training."""
    own = {name: value for name, value in settings.settings.items() if not name.endswith("_warm_up_steps")}
    return replace(settings, settings=own)


@torch.no_grad()
def copy_latents(source: nn.Module, target: nn.Module) -> None:
    """Copy an SAE into one of the same kind with as many latents or more; the further latents stay as they are.

    Args:
        source: The SAE.
        target: The SAE that is written to.

    Example:
        >>> from absorb_pl.training import SaeSettings
        >>> small = SaeSettings("topk", 2, settings={"k": 1}).build(d_in=4, seed=0)
        >>> wide = SaeSettings("topk", 3, settings={"k": 1}).build(d_in=4, seed=1)
        >>> copy_latents(small, wide)
        >>> torch.equal(wide.W_dec[:2], small.W_dec), torch.equal(wide.W_enc[:, :2], small.W_enc)
        (True, True)
    """
    found = target.state_dict()
    for key, tensor in source.state_dict().items():
        _leading_part(found[key], tensor.shape).copy_(tensor)


def _leading_part(tensor: Tensor, shape: torch.Size) -> Tensor:
    for dimension, size in enumerate(shape):
        tensor = tensor.narrow(dimension, 0, size)
    return tensor
