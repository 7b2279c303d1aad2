"""SAEs in training against SAELens's own trainer, alone and in company, with the same batches."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from sae_lens import SAE, TrainingSAE
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.training.sae_trainer import SAETrainer

from absorb_pl.errors import (
    AbsorbError,
    CheckpointError,
    HookMismatchError,
    NonFiniteError,
    SaeArchitectureError,
)
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

    def on_train_batch_end(self, *arguments) -> None:
        outputs = arguments[2]
        self.seen.append(float(outputs["loss"]))


def trainer(tmp_path, *callbacks, max_steps=STEPS, **settings):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "limit_val_batches": 0}
    return Trainer(
        accelerator="cpu",
        max_steps=max_steps,
        enable_model_summary=False,
        callbacks=list(callbacks),
        default_root_dir=tmp_path,
        **quiet | settings,
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


def test_an_sae_may_have_a_learning_rate_of_its_own(tmp_path):
    data = data_module()
    slow = SparseAutoencoderModule({"a": SETTINGS["topk"]}, data.hook_widths, replace(OPTIMISATION, lr=7e-4), seed=3)
    trainer(tmp_path, max_steps=40).fit(slow, data)
    names = {"b": SETTINGS["batchtopk"], "a": replace(SETTINGS["topk"], lr=7e-4), "c": SETTINGS["topk"]}
    both, _ = trained(tmp_path, names, max_steps=40)
    fast, _ = trained(tmp_path, {"c": SETTINGS["topk"]}, max_steps=40)
    for one, number in ((slow, 1), (fast, 2)):
        expected, found = one.saes[0].state_dict(), both.saes[number].state_dict()
        assert all(torch.equal(expected[key], found[key]) for key in expected)


def test_a_training_taken_up_again_ends_with_the_same_weights(tmp_path):
    names = {name: SETTINGS[name] for name in ("standard", "batchtopk")}
    whole, losses = trained(tmp_path, names)
    saving = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=37, save_top_k=-1)
    trained(tmp_path, names, saving, enable_checkpointing=True)
    data, seen = data_module(), Losses()
    again = SparseAutoencoderModule(names, data.hook_widths, OPTIMISATION, seed=3)
    trainer(tmp_path, seen).fit(again, data, ckpt_path=str(tmp_path / "step=37.ckpt"), weights_only=True)
    assert seen.seen == losses[37:]
    expected, found = whole.state_dict(), again.state_dict()
    assert all(torch.equal(expected[key], found[key]) for key in expected)


def test_validation_says_what_the_saved_sae_makes_of_held_out_rows(tmp_path):
    data = data_module()
    module = SparseAutoencoderModule({"b": SETTINGS["batchtopk"]}, data.hook_widths, OPTIMISATION)
    running = trainer(tmp_path, max_steps=60, limit_val_batches=1.0)
    running.fit(module, data)
    [found] = running.validate(module, data, verbose=False)
    module.save_saes(tmp_path / "saes")
    saved = SAE.load_from_disk(tmp_path / "saes" / "b")
    rows = torch.cat([data.source.chunk(number, torch.device("cpu"))["activations"] for number in (0, 1)])
    latents = saved.encode(rows)
    assert found["val/l0/b"] == pytest.approx(float((latents != 0).sum(dim=1).double().mean()), rel=1e-6)
    assert found["val/explained_variance/b"] == pytest.approx(explained(saved, rows.double().float()), rel=1e-5)
    assert found["val/silent_latents/b"] == pytest.approx(float((latents == 0).all(dim=0).double().mean()))


@pytest.mark.parametrize("name", SETTINGS)
def test_saved_saes_are_those_in_training(tmp_path, name):
    module, _ = trained(tmp_path, {name: SETTINGS[name]}, max_steps=40)
    [folder] = module.save_saes(tmp_path / "saes")
    rows = data_module().source.chunk(3, torch.device("cpu"))["activations"]
    kept = module.inference_saes()[name]
    for sae in (SAE.load_from_disk(folder), load_sae(str(folder))):
        assert torch.equal(sae.encode(rows), kept.encode(rows))
        assert sae.cfg.metadata.training_architecture == SETTINGS[name].architecture
        assert sae.cfg.metadata.hook_name == "activations"
    if name in ("topk", "gated"):  # these learn no threshold beside, and read activations as they are
        in_training = module.saes[0]
        torch.testing.assert_close(kept(rows), in_training.decode(in_training.encode(rows)).detach())


@pytest.mark.parametrize("name", ["standard", "jumprelu", "gated"])
def test_saes_may_be_saved_with_unit_norms(tmp_path, name):
    module, _ = trained(tmp_path, {name: SETTINGS[name]}, max_steps=40)
    [plain], [unit] = module.save_saes(tmp_path / "plain"), module.save_saes(tmp_path / "unit", unit_norms=True)
    plain, unit = SAE.load_from_disk(plain, dtype="float64"), SAE.load_from_disk(unit, dtype="float64")
    rows = data_module().source.chunk(3, torch.device("cpu"))["activations"].double()
    norms = plain.W_dec.norm(dim=1)
    assert float((norms - 1).abs().max()) > 1e-3
    torch.testing.assert_close(unit.W_dec.norm(dim=1), torch.ones_like(norms), rtol=0, atol=1e-6)
    # Weights were rounded to float32 once more: each of 64 products of an encoding is off by no more than that.
    bound = 65 * torch.finfo(torch.float32).eps * float(rows.abs().max() * unit.W_enc.abs().max())
    torch.testing.assert_close(unit.encode(rows), plain.encode(rows) * norms, rtol=0, atol=bound)


def test_saving_replaces_what_lies_there_whole(tmp_path):
    module = SparseAutoencoderModule({"b": SETTINGS["topk"]}, {"activations": 64})
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "old.txt").touch()
    assert module.save_saes(tmp_path) == [tmp_path / "b"]
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == ["cfg.json", "sae_weights.safetensors"]
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_scale_is_that_of_saelens(tmp_path):
    module, _ = trained(tmp_path, {"s": SETTINGS["standard"], "t": SETTINGS["topk"]}, max_steps=36)
    batches = islice(data_module().train_dataloader(), OPTIMISATION.scale_batches)
    norms = torch.cat([batch["activations"].norm(dim=1) for batch in batches]).double()
    assert float(module.scales[0]) == pytest.approx(8 / float(norms.mean()), rel=1e-6)
    assert float(module.scales[1]) == 0  # reads activations as they are


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"architecture": "nonsense"}, SaeArchitectureError, "`architecture` was 'nonsense', expected one of"),
        ({"settings": {"l1": 2}}, AbsorbError, "`settings` was 'l1', expected settings of topk: .*k"),
        ({"settings": {"k": 0}}, AbsorbError, "`k` was 0, expected above 0 and at most 32"),
        ({"settings": {"k": 33}}, AbsorbError, "`k` was 33, expected above 0 and at most 32"),
        ({"settings": {"normalize_activations": "covariance_whitening"}}, AbsorbError, "`normalize_activations` was"),
        ({"d_sae": 0}, AbsorbError, "`d_sae` was 0"),
        (
            {"architecture": "matryoshka_batchtopk", "settings": {"matryoshka_widths": [8, 64]}},
            AbsorbError,
            "`settings` was",
        ),
    ],
)
def test_settings_that_cannot_be_trained_are_refused(settings, error, message):
    with pytest.raises(error, match=message):
        SaeSettings(**{"architecture": "topk", "d_sae": 32} | settings).build(4, 0)


@pytest.mark.parametrize("names", [{}, {"a/b": SETTINGS["topk"]}, {".a": SETTINGS["topk"]}])
def test_names_that_no_folder_can_have_are_refused(names):
    with pytest.raises(AbsorbError, match=r"`saes` was"):
        SparseAutoencoderModule(names, {"activations": 64})


def test_hooks_that_the_data_do_not_have_are_refused(tmp_path):
    elsewhere = SaeSettings("topk", 32, hook_name="blocks.1.hook_resid_post", settings={"k": 2})
    with pytest.raises(HookMismatchError, match=r"`hook_name` was 'blocks.1.hook_resid_post', expected one of"):
        SparseAutoencoderModule({"a": elsewhere}, {"activations": 64})
    narrow = SparseAutoencoderModule({"a": SETTINGS["topk"]}, {"activations": 32})
    with pytest.raises(HookMismatchError, match=r"`hook_widths` was .*32.*, expected .*64"):
        trainer(tmp_path).fit(narrow, data_module())


def test_training_without_an_end_is_refused(tmp_path):
    module = SparseAutoencoderModule({"a": SETTINGS["topk"]}, {"activations": 64})
    with pytest.raises(AbsorbError, match="`max_steps` was -1, expected the number of steps to train for"):
        trainer(tmp_path, max_steps=-1, max_epochs=1).fit(module, data_module())


@pytest.mark.parametrize("given", [{"gradient_clip_val": 0.5}, {"accumulate_grad_batches": 2}])
def test_arguments_of_the_trainer_without_effect_are_refused(tmp_path, given):
    [(name, value)] = given.items()
    module = SparseAutoencoderModule({"a": SETTINGS["topk"]}, {"activations": 64})
    with pytest.raises(AbsorbError, match=f"`{name}` was {value}, expected .* where SAEs are trained"):
        trainer(tmp_path, **given).fit(module, data_module())


def test_warm_up_beyond_the_end_is_refused(tmp_path):
    module = SparseAutoencoderModule({"a": SETTINGS["topk"]}, {"activations": 64}, OPTIMISATION)
    with pytest.raises(AbsorbError, match=r"`lr_warm_up_steps` was 10, expected .* at most the 20 steps"):
        trainer(tmp_path, max_steps=20).fit(module, data_module())


def test_other_saes_or_data_than_a_checkpoint_has_are_refused(tmp_path):
    names = {"a": SETTINGS["topk"]}
    saving = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=20, save_top_k=-1)
    trained(tmp_path, names, saving, max_steps=40, enable_checkpointing=True)
    ckpt = str(tmp_path / "step=20.ckpt")
    wider = SparseAutoencoderModule({"a": SaeSettings("topk", 48, settings={"k": 3})}, {"activations": 64})
    message = r"`ckpt_path` was .*a checkpoint in whose saes a is .*, expected .*'d_sae': 48.*, as asked for"
    with pytest.raises(CheckpointError, match=message):
        trainer(tmp_path).fit(wider, data_module(), ckpt_path=ckpt)
    same = SparseAutoencoderModule(names, {"activations": 64}, OPTIMISATION, seed=3)
    with pytest.raises(CheckpointError, match=r"`ckpt_path` was .*a checkpoint of a training on"):
        trainer(tmp_path).fit(same, data_module(seed=7), ckpt_path=ckpt)
    written_before = torch.load(ckpt, weights_only=True)
    del written_before["hyper_parameters"]["saes"]["a"]["lr"]  # a setting that there was not yet
    torch.save(written_before, ckpt)
    loaded = SparseAutoencoderModule.load_from_checkpoint(ckpt, weights_only=True)
    assert loaded.names == ["a"]
    assert loaded.optimisation == OPTIMISATION


def test_a_training_that_diverges_is_stopped_and_its_last_good_checkpoint_kept(tmp_path):
    class Poison(Callback):
        def on_train_batch_start(self, *arguments) -> None:
            trainer, module = arguments[:2]
            if trainer.global_step == 25:
                module.saes[0].W_enc.data[0, 0] = float("nan")

    saving = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=10, save_top_k=-1)
    module = SparseAutoencoderModule({"a": SETTINGS["standard"]}, {"activations": 64})
    running = trainer(tmp_path, Poison(), saving, enable_checkpointing=True, log_every_n_steps=1000)
    with pytest.raises(NonFiniteError, match=r"`saes` was 'a, .*', expected finite weights; nothing was written"):
        running.fit(module, data_module())
    assert sorted(path.name for path in tmp_path.glob("*.ckpt")) == ["step=10.ckpt", "step=20.ckpt"]
    running = trainer(tmp_path, Poison(), log_every_n_steps=1)
    with pytest.raises(NonFiniteError, match="`loss` was nan, expected finite numbers; a diverged before step 26"):
        running.fit(SparseAutoencoderModule({"a": SETTINGS["standard"]}, {"activations": 64}), data_module())


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one(tmp_path):
    names = {name: SETTINGS[name] for name in ("standard", "topk", "jumprelu")}
    one, losses = trained(tmp_path, names, max_steps=40)
    seen = KeptLosses(tmp_path)
    two, _ = trained(tmp_path, names, seen, max_steps=40, devices=2, strategy="ddp_fork")
    both = torch.stack([torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]).mean(dim=0)
    assert both.tolist() == pytest.approx(losses, rel=1e-5)
    for name in names:
        assert torch.equal(one.steps_since_fired[name], two.steps_since_fired[name])


class KeptLosses(Callback):
    """Writes the losses that each process saw."""

    def __init__(self, folder) -> None:
        self.folder, self.seen = folder, []

    def on_train_batch_end(self, *arguments) -> None:
        self.seen.append(float(arguments[2]["loss"]))

    def on_train_end(self, trainer, pl_module) -> None:  # noqa: ARG002
        torch.save(torch.tensor(self.seen), self.folder / f"{trainer.global_rank}.pt")
