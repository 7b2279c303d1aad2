"""SAEs in training against SAELens's own trainer, alone and in company, with the same batches."""

from collections.abc import Iterator
from itertools import islice

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from sae_lens import SAE, TrainingSAE
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.training.sae_trainer import SAETrainer

from absorb_pl.errors import AbsorbError, CheckpointError, HookMismatchError, NonFiniteError, SaeArchitectureError
from absorb_pl.saes import load_sae
from absorb_pl.training import (
    SaeOptimisation,
    SaeSettings,
    SparseAutoencoderModule,
    TokenActivationDataModule,
    WorldActivations,
    inference_sae,
)

pytestmark = pytest.mark.usefixtures("_one_thread")

SCALED = {"normalize_activations": "expected_average_only_in"}
SETTINGS = {
    "standard": SaeSettings("standard", 96, settings={"l1_coefficient": 2.0, "l1_warm_up_steps": 30, **SCALED}),
    "gated": SaeSettings("gated", 96, settings={"l1_coefficient": 0.5}),
    "topk": SaeSettings("topk", 96, settings={"k": 3}),
    "batchtopk": SaeSettings("batchtopk", 96, settings={"k": 2.5, **SCALED}),
    "matryoshka": SaeSettings("matryoshka_batchtopk", 96, settings={"k": 3, "matryoshka_widths": [12, 48, 96]}),
    "jumprelu": SaeSettings("jumprelu", 96, settings={"l0_coefficient": 0.05, "l0_warm_up_steps": 30, **SCALED}),
    "pursuit": SaeSettings("matching_pursuit", 96, settings={"max_iterations": 3}),
}
OPTIMISATION = SaeOptimisation(
    lr=2e-3, lr_warm_up_steps=10, lr_decay_steps=25, dead_after_steps=15, scale_batches=5, lr_end=2e-4
)
STEPS, BATCH = 100, 64


def data_module(**settings):
    source = WorldActivations("superposition", rows_per_chunk=96)
    return TokenActivationDataModule(
        source, **{"batch_size": BATCH, "chunks_per_buffer": 8, "val_chunks": 2} | settings
    )


class Losses(Callback):
    """Keeps the loss of each step."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.seen.append(float(outputs["loss"]))


def trainer(tmp_path, *callbacks, max_steps=STEPS, **settings):
    return Trainer(
        accelerator="cpu",
        max_steps=max_steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        callbacks=list(callbacks),
        default_root_dir=tmp_path,
        **settings,
    )


def trained(tmp_path, saes, *callbacks, **settings):
    data, losses = data_module(), Losses()
    module = SparseAutoencoderModule(saes, data.hook_widths, OPTIMISATION, seed=3)
    trainer(tmp_path, losses, *callbacks, **settings).fit(module, data)
    return module, losses.seen


class Recording(SAETrainer):
    """SAELens's trainer, with the loss of each step kept."""

    def step(self, batch: torch.Tensor):
        output = super().step(batch)
        self.losses = [*getattr(self, "losses", []), float(output.loss)]
        return output


def trained_by_saelens(settings: SaeSettings, batches: Iterator[torch.Tensor]) -> Recording:
    torch.manual_seed(3)
    config_of = TrainingSAE.get_sae_config_class_for_architecture(settings.architecture)
    sae = TrainingSAE.get_sae_class_for_architecture(settings.architecture)(
        config_of(d_in=64, d_sae=settings.d_sae, **settings.settings)
    )
    config = SAETrainerConfig(
        total_training_samples=STEPS * BATCH,
        train_batch_size_samples=BATCH,
        lr=OPTIMISATION.lr,
        lr_end=OPTIMISATION.lr_end,
        lr_warm_up_steps=OPTIMISATION.lr_warm_up_steps,
        lr_decay_steps=OPTIMISATION.lr_decay_steps,
        dead_feature_window=OPTIMISATION.dead_after_steps,
        n_batches_for_norm_estimate=OPTIMISATION.scale_batches,
        logger=LoggingConfig(log_to_wandb=False),
    )
    by_saelens = Recording(config, sae=sae, data_provider=batches)
    by_saelens.fit()
    return by_saelens


def batches_after_estimate(settings: SaeSettings) -> Iterator[torch.Tensor]:
    """The batches as SAELens's trainer takes them: those of the estimate first, then all from the beginning."""
    stream = data_module().train_dataloader()
    return _in_order(stream, OPTIMISATION.scale_batches if settings.settings.get("normalize_activations") else 0)


def _in_order(stream, again: int) -> Iterator[torch.Tensor]:
    yield from (batch["activations"] for batch in islice(stream, again))
    yield from (batch["activations"] for batch in stream)


@pytest.mark.parametrize("name", SETTINGS)
def test_each_architecture_trains_as_by_saelens_own_trainer(tmp_path, name):
    settings = SETTINGS[name]
    module, losses = trained(tmp_path, {name: settings})
    theirs = trained_by_saelens(settings, batches_after_estimate(settings))
    assert losses == pytest.approx(theirs.losses, rel=1e-5)
    ours, rows = module.inference_saes()[name], data_module().source.chunk(0, torch.device("cpu"))["activations"]
    reference = inference_sae(theirs.sae)
    assert explained(ours, rows) == pytest.approx(explained(reference, rows), abs=1e-4)
    assert torch.equal(module.steps_since_fired[name], theirs.n_forward_passes_since_fired)


def explained(sae, rows):
    rest = (sae.decode(sae.encode(rows)) - rows).square().sum()
    return float(1 - rest / (rows - rows.mean(dim=0)).square().sum())


def test_company_does_not_change_an_sae(tmp_path):
    alone, _ = trained(tmp_path, {"topk": SETTINGS["topk"]}, max_steps=40)
    together, _ = trained(tmp_path, SETTINGS, max_steps=40)
    expected, found = alone.saes[0].state_dict(), together.saes[together.names.index("topk")].state_dict()
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    assert len(together.names) == len(SETTINGS)
