"""The evaluator callbacks beside the stages of a study with the same settings."""

import pickle

import pandas as pd
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger
from safetensors.torch import load_file

from absorb_pl.data import ActivationDataModule
from absorb_pl.errors import AbsorbError, HookMismatchError, SaeWidthError, ShapeError
from absorb_pl.evaluators import AblationEvaluation, Evaluate
from absorb_pl.probes import LinearProbe, SaeProbe

HOOK = "blocks.3.hook_resid_pre"
SAE = "tests/golden/gpt2-micro/sae_topk_B"


@pytest.fixture(scope="module")
def tested(study, gpt2, golden, tmp_path_factory):
    """The callbacks after a test of the study's own linear probe on the study's split."""
    config, result = study
    folder = tmp_path_factory.mktemp("test")
    data = ActivationDataModule(
        gpt2, HOOK, config.task, config.cache_dir, val_fraction=0.0, split_seed=config.seed, batch_size=20
    )
    probe = LinearProbe(48, 26)
    state = load_file(result.run_dir / "probes" / f"{HOOK}.safetensors")
    with torch.no_grad():
        probe.weights.copy_(state["weight"])
        probe.biases.copy_(state["bias"])
    sae = str(golden / "gpt2-micro" / "sae_topk_B")
    callback = Evaluate(sae, rules=config.rules, rates=config.rates, k_sparse=config.k_sparse)
    torch.manual_seed(1234)
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        inference_mode=False,
        logger=CSVLogger(folder),
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[callback],
    )
    figures = trainer.test(probe, datamodule=data, verbose=False)[0]
    return callback, figures, trainer


def of_study(study, name):
    table = study[1].tables[name]
    return table[table["sae"] == SAE].reset_index(drop=True)


@pytest.mark.parametrize("table", ["k_sparse", "latents", "letters", "words", "sensitivity"])
def test_tables_are_those_of_the_study(study, tested, table):
    found, expected = tested[0].tables[table], of_study(study, table)
    columns = [name for name in found.columns if name not in ("sae", "hook_name")]
    assert len(expected) > 0
    assert set(expected.columns) - set(columns) <= {"sae", "hook_name"}
    order = ["rule", "row"] if table == "words" else []
    plain = [
        (frame.sort_values(order, ignore_index=True) if order else frame)[columns].map(
            lambda value: list(value) if hasattr(value, "tolist") else value
        )
        for frame in (found, expected)
    ]
    pd.testing.assert_frame_equal(*plain, check_dtype=False, rtol=1e-6, atol=1e-7)


def test_logged_figures_are_those_of_the_summary(study, tested):
    figures, summary = tested[1], of_study(study, "summary")
    assert len(summary) == 3
    for row in summary.to_dict("records"):
        for name in ("absorption_rate", "ci_low", "ci_high", "num_words"):
            assert figures[f"test/{row['rule']}/{name}"] == pytest.approx(float(row[name]), rel=1e-5)
        if row["rule"] != "paper":
            name = f"test/{row['rule']}/absorption_fraction"
            assert figures[name] == pytest.approx(row["absorption_fraction"], rel=1e-5)
    first = summary.iloc[0]
    for name in ("num_splits", "l0", "explained_variance", "dead_fraction"):
        assert figures[f"test/sae/{name}"] == pytest.approx(float(first[name]), rel=1e-5)
    for name in ("f1", "precision", "recall"):
        assert figures[f"test/sae/top_latent_{name}"] == pytest.approx(float(first[f"top_latent_{name}"]), rel=1e-5)


def test_tables_are_written_beside_the_log(tested):
    callback, _, trainer = tested
    assert {"summary", "latents", "letters", "words", "k_sparse"} <= set(callback.tables)
    for name, table in callback.tables.items():
        assert len(pd.read_parquet(f"{trainer.log_dir}/tables/{name}.parquet")) == len(table)


def test_other_modules_are_refused(study, gpt2, golden, tmp_path):
    sae = str(golden / "gpt2-micro" / "sae_topk_B")
    data = ActivationDataModule(gpt2, HOOK, study[0].task, study[0].cache_dir)
    probe = SaeProbe(sae, 26, ks=[1])
    probe.solved.fill_(True)
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        callbacks=[Evaluate(sae)],
        default_root_dir=tmp_path,
    )
    with pytest.raises(AbsorbError, match=r"Evaluate with SaeProbe.*expected a LinearProbe") as raised:
        trainer.test(probe, datamodule=data, verbose=False)
    assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)


def quiet(folder, *callbacks):
    return Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        default_root_dir=folder,
    )


@pytest.fixture
def rows(study, gpt2):
    return ActivationDataModule(gpt2, HOOK, study[0].task, study[0].cache_dir)


@pytest.mark.parametrize("evaluation", [Evaluate, AblationEvaluation])
def test_an_sae_of_another_hook_is_not_evaluated(golden, tmp_path, rows, evaluation):
    trainer = quiet(tmp_path, evaluation(str(golden / "gpt2-micro" / "sae_standard_A")))
    with pytest.raises(HookMismatchError, match=rf"`hook_name` was '{HOOK}', expected 'blocks\.1\.hook_resid_post'"):
        trainer.test(LinearProbe(48, 26), datamodule=rows, verbose=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["fit", "test"])
def test_an_sae_of_another_hook_is_not_probed(golden, tmp_path, rows, command):
    probe = SaeProbe(str(golden / "gpt2-micro" / "sae_standard_A"), 26, ks=[1])
    with pytest.raises(HookMismatchError, match=r"expected 'blocks\.1\.hook_resid_post'"):
        getattr(quiet(tmp_path), command)(probe, datamodule=rows)


@pytest.mark.parametrize("command", ["fit", "test", "validate", "predict"])
def test_probes_and_saes_of_another_width_are_refused(tmp_path, rows, command):
    with pytest.raises(ShapeError, match="`input_dim` was 7, expected 48, the width of the activations"):
        getattr(quiet(tmp_path), command)(LinearProbe(7, 26), datamodule=rows)
    narrow = torch.nn.Module()
    narrow.W_dec = torch.nn.functional.normalize(torch.ones(9, 7))
    narrow.encode = narrow.decode = lambda x: x
    with pytest.raises(SaeWidthError, match="`sae` was 'd_in = 7', expected 48, the width of the activations"):
        getattr(quiet(tmp_path), command)(SaeProbe(narrow, 26, ks=[1]), datamodule=rows)
