"""The scripts that make the speller, shortened."""

import importlib
from pathlib import Path

import pytest
import torch
from sae_lens import SAE
from transformers import AutoTokenizer, Gemma2ForCausalLM

SCRIPTS = Path(__file__).parents[2] / "scripts"
SAES = ("l1-batchtopk-w512-dense", "l2-jumprelu-w1024-dense")
SMALL = ["--most-frequent", "150", "--per-letter", "4", "--d-model", "32", "--heads", "2", "--threads", "1"]


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module


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

    chosen = [argument for name in SAES for argument in ("--only", name)]
    arguments = ["--model", str(model_folder), "--output", str(sae_folder), "--threads", "1", *chosen]
    explained = script("train_speller_saes").main([*arguments, "--steps", "200", "--rows", "3000"])
    assert {path.name for path in sae_folder.iterdir()} == set(SAES)
    for name in SAES:
        sae = SAE.load_from_disk(sae_folder / name)
        assert sae.W_dec.shape == (sae.cfg.d_sae, 32)
        assert sae.cfg.metadata.hook_name == f"blocks.{name[1]}.hook_resid_post"
        assert explained[name] > 0.2

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


def test_unknown_sae_is_refused(script, tmp_path):
    with pytest.raises(SystemExit, match="not in the suite"):
        script("train_speller_saes").main(["--model", str(tmp_path), "--output", str(tmp_path), "--only", "l9-none"])
