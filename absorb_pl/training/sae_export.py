"""A callback that saves SAEs in training as others load them."""

from pathlib import Path
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from absorb_pl.data.trainers import log_folder
from absorb_pl.ranges import Count, check_ranges
from absorb_pl.training.sae_module import SparseAutoencoderModule


class SaeExport(Callback):
    """Saves the SAEs that were trained, in SAELens's format, at the end of a fit and, if asked for, on the way.

    Args:
        folder: Where to; `saes` in the Trainer's log folder if not given.
        every_n_steps: Steps between saves to `step-<n>` below it; none on the way when None.
        unit_norms: Whether to give decoder rows unit norm; latents are scaled, and reconstructions stay the same.
    """

    def __init__(self, folder: str | None = None, every_n_steps: Count | None = None, unit_norms: bool = False) -> None:
        check_ranges(SaeExport.__init__, locals())
        self.folder, self.every_n_steps, self.unit_norms = folder, every_n_steps, unit_norms

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.every_n_steps and trainer.global_step % self.every_n_steps == 0:
            self._save(trainer, pl_module, f"step-{trainer.global_step}")

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save(trainer, pl_module)

    def _save(self, trainer: Trainer, module: LightningModule, *below: str) -> None:
        folder = Path(self.folder) if self.folder else log_folder(trainer) / "saes"
        if trainer.is_global_zero:
            cast(SparseAutoencoderModule, module).save_saes(folder.joinpath(*below), unit_norms=self.unit_norms)
