"""The scripts that make the speller, shortened."""

import importlib
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from sae_lens import SAE
from transformers import AutoTokenizer, Gemma2ForCausalLM

from absorb_pl.cli import main

SCRIPTS = Path(__file__).parents[2] / "scripts"
SUITE = Path(__file__).parents[2] / "configs" / "train_suite.yaml"
SAES = ("l1-batchtopk-w512-dense", "l2-jumprelu-w512-medium")
SMALL = ["--most-frequent", "150", "--per-letter", "4", "--d-model", "32", "--heads", "2", "--threads", "1"]


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module


def shortened_suite(folder: Path, model_folder: Path) -> Path:
    """The suite's configuration with two SAEs, few steps and another speller; writes to `folder`."""
    config = yaml.safe_load(SUITE.read_text())
    module, data, trainer = config["model"]["init_args"], config["data"]["init_args"], config["trainer"]
    module["saes"] = {name: module["saes"][name] for name in SAES}
    module["optimisation"] |= {"lr_warm_up_steps": 10, "lr_decay_steps": 50}
    data["source"]["init_args"] |= {"model": str(model_folder), "contexts_per_chunk": 16}
    data |= {"batch_size": 128, "chunks_per_buffer": 8}
    trainer |= {"max_steps": 200, "accelerator": "cpu", "enable_progress_bar": False, "val_check_interval": 200}
    trainer["logger"]["init_args"] |= {"save_dir": str(folder), "name": ""}
    monitor, hedging, export, _ = (callback.setdefault("init_args", {}) for callback in trainer["callbacks"])
    for words in monitor["words"]:
        words["init_args"] |= {"model": str(model_folder), "cache_dir": str(folder / "cache")}
    monitor["every_n_steps"], hedging["steps"], hedging["new_latents"] = 100, 10, 16
    assert export["unit_norms"]
    (folder / "suite.yaml").write_text(yaml.safe_dump(config))
    return folder / "suite.yaml"


@pytest.mark.slow
def test_speller_and_saes_are_remade_and_measured(script, tmp_path):
    model_folder, sae_folder = tmp_path / "model", tmp_path / "saes"
    losses = script("train_speller").main(
        [
            "--output",
            str(model_folder),
            "--steps",
            "60",
            "--rows",
            "32",
            "--lr",
            "5e-3",
            "--interchange-steps",
            "4",
            *SMALL,
        ]
    )
    assert losses["spelling_last_loss"] < 0.8 * losses["spelling_first_loss"]
    model = Gemma2ForCausalLM.from_pretrained(model_folder)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    assert model.config.vocab_size == len(tokenizer)
    assert len(tokenizer(" the", add_special_tokens=False)["input_ids"]) == 1

    main(["fit", f"--config={shortened_suite(tmp_path, model_folder)}"])
    assert {path.name for path in sae_folder.iterdir()} == set(SAES)
    for name in SAES:
        sae = SAE.load_from_disk(sae_folder / name)
        assert sae.W_dec.shape == (512, 32)
        torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(512))
        assert sae.cfg.metadata.hook_name == f"blocks.{name[1]}.hook_resid_post"
        assert 0 <= sae.cfg.metadata["hedging_degree"] <= 1
    checks = pd.read_parquet(tmp_path / "tables" / "checks.parquet")
    assert checks["step"].unique().tolist() == [100, 200]
    assert (checks.query("step == 200")["explained_variance"] > 0.2).all()

    figures = script("measure_speller").main(["--assets", str(tmp_path), "--least-held-out", "1"])
    assert set(figures["saes"]) == set(SAES)
    assert "60 steps" in (tmp_path / "MODEL_CARD.md").read_text()


@pytest.mark.slow
def test_same_seed_gives_the_same_weights_in_one_run_or_two(script, tmp_path):
    train = script("train_speller").main
    shared = ["--steps", "5", "--rows", "16", *SMALL]
    train([*shared, "--output", str(tmp_path / "whole"), "--interchange-steps", "3"])
    train([*shared, "--output", str(tmp_path / "first"), "--interchange-steps", "0"])
    second = ["--spelled", str(tmp_path / "first"), "--interchange-steps", "3"]
    train([*shared, "--output", str(tmp_path / "second"), *second])
    whole, first, resumed = (
        Gemma2ForCausalLM.from_pretrained(tmp_path / run).state_dict() for run in ("whole", "first", "second")
    )
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert not all(torch.equal(whole[name], first[name]) for name in whole)
