"""Evaluators in the dtypes of a study, by name, and checkpoints that hold no more than the dtype's name."""

import pytest
import torch

from absorb_pl.data import ActivationCollector, ActivationDataModule, PromptDataModule
from absorb_pl.evaluators import AblationEvaluation, AblationEvaluator, Evaluate
from absorb_pl.probes import SaeProbe
from absorb_pl.saes import load_sae
from absorb_pl.words import TaskConfig


@pytest.fixture(scope="module")
def names(golden):
    return str(golden / "gpt2-micro"), str(golden / "gpt2-micro" / "sae_topk_B")


@pytest.mark.parametrize("kind", [Evaluate, AblationEvaluation])
def test_callbacks_load_an_sae_in_the_dtype_asked_for(names, kind):
    assert kind(names[1]).sae.W_dec.dtype == torch.float32
    assert kind(names[1], sae_dtype="bfloat16").sae.W_dec.dtype == torch.bfloat16


def test_an_evaluator_by_name_gives_what_one_of_loaded_parts_gives(names):
    model, sae = names
    task = TaskConfig(max_icl_examples=2)
    evaluator = AblationEvaluator(model, [sae], batch_size=16, sae_dtype="bfloat16", model_dtype="bfloat16")
    assert evaluator.saes[sae].W_dec.dtype == next(evaluator.language_model.parameters()).dtype == torch.bfloat16
    data = PromptDataModule(model, task, batch_size=4, model_dtype="bfloat16")
    other = AblationEvaluator(data.language_model, {sae: load_sae(sae, dtype="bfloat16")}, batch_size=16)
    words = torch.tensor([2, 5])
    one, two = (found.tabulate_words(data, words) for found in (evaluator, other))
    assert len(one) > 2
    assert one["ablation_effect"].tolist() == two["ablation_effect"].tolist()
    plain = AblationEvaluator(model, [sae], batch_size=16).tabulate_words(data, words)
    assert plain["activation"].tolist() != one["activation"].tolist()


def test_data_by_name_reads_in_the_dtype_asked_for(names, tmp_path):
    model, _ = names
    data = ActivationDataModule(model, task=TaskConfig(max_icl_examples=1), cache_dir=tmp_path, model_dtype="bfloat16")
    collector = ActivationCollector(model, model_dtype="bfloat16")
    for loaded in (data.prompt_data.language_model, collector.language_model):
        assert next(loaded.parameters()).dtype == torch.bfloat16


def test_a_checkpoint_of_a_k_sparse_probe_keeps_the_name_of_the_dtype(names, tmp_path):
    probe = SaeProbe(names[1], num_outputs=2, ks=[1, 2], sae_dtype="bfloat16")
    assert probe.sae.W_dec.dtype == torch.bfloat16
    assert probe.hparams["sae_dtype"] == "bfloat16"
    stored = {"state_dict": probe.state_dict(), "hyper_parameters": dict(probe.hparams)}
    stored["pytorch-lightning_version"] = "2.6.0"
    torch.save(stored, tmp_path / "probe.ckpt")
    torch.load(tmp_path / "probe.ckpt", weights_only=True)
    again = SaeProbe.load_from_checkpoint(tmp_path / "probe.ckpt", weights_only=True)
    assert again.sae.W_dec.dtype == torch.bfloat16
