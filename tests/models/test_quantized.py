"""Language models of 8 and 4 bits a weight, against the same weights written out."""

import copy
import shutil
from typing import Any

import bitsandbytes.functional as bitsandbytes
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.metrics import cohen_kappa_score
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM

from absorb_pl.attribution import word_integrated_gradients
from absorb_pl.attribution.gradients import activation_gradients
from absorb_pl.engine import compute_prefix
from absorb_pl.errors import AbsorbError, ModelProcessingError, NonFiniteError
from absorb_pl.evaluators import AblationEvaluator
from absorb_pl.models import load_language_model, quantized, speller_path
from absorb_pl.models.identity import model_identity
from absorb_pl.models.placement import dtype_of
from absorb_pl.saes import load_sae
from absorb_pl.study import StudyConfig, TrainerSettings, run_study
from absorb_pl.words import SpellingPrompt, TaskConfig, tokenize_prompts

HOOK = "blocks.1.hook_resid_post"
LAYERS = {"int8": "Linear8bitLt", "nf4": "Linear4bit"}


@pytest.fixture(scope="module", params=LAYERS)
def dtype(request: Any) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(dtype: str) -> Any:
    return load_language_model("speller", dtype=dtype)


@pytest.fixture(scope="module")
def prompts(model: Any) -> Any:
    texts = [SpellingPrompt(f" {word}:", f" {word[0].upper()}", f" {word}", 4) for word in ("cat", "dog", "sun", "ant")]
    return tokenize_prompts(model.tokenizer, texts, prepend_bos=True)


def written_out(layer: Any, dtype: str) -> torch.Tensor:
    """The weights that a quantised layer stands for, as the two papers define them."""
    if dtype == "nf4":
        return bitsandbytes.dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()
    scale = layer.weight.SCB if layer.weight.SCB is not None else layer.state.SCB
    return layer.weight.data.float() * scale[:, None].float() / 127


def quantised_layers(model: Any, dtype: str) -> dict[str, Any]:
    found = {name: each for name, each in model.original_model.named_modules() if type(each).__name__ == LAYERS[dtype]}
    assert len(found) == 4 * 7  # four blocks with four matrices of attention and three of the MLP
    return found


def test_quantised_weights_take_the_place_of_those_of_linear_layers(model: Any, dtype: str):
    plain = load_language_model("speller", dtype="bfloat16")
    weights = dict(plain.original_model.named_parameters())
    for name, layer in quantised_layers(model, dtype).items():
        rows = weights[f"{name}.weight"].float()
        if dtype == "nf4":  # 64 neighbours share a scale, and the widest gap between two of its numbers is 0.31
            rows, found = rows.view(-1, 64), written_out(layer, dtype).view(-1, 64)
            step = 0.31
        else:  # a row shares a scale, in steps of 1 / 127
            found, step = written_out(layer, dtype), 1 / 127
        rounding = 2**-8 * rows.abs()  # of what is written out as bfloat16
        assert ((found - rows).abs() <= rows.abs().amax(dim=1, keepdim=True) * step / 2 * 1.01 + rounding).all()
    assert dtype_of(model) == dtype
    assert quantized.is_quantized(model)
    assert not quantized.is_quantized(plain)


def test_suffixes_give_what_whole_sequences_do(model: Any, prompts: Any, dtype: str):
    sae = load_sae("speller/l1-standard-w512-dense")
    answers = torch.tensor([model.tokenizer.encode(letter)[-1] for letter in (" C", " D", " S", " A")])

    def metric(last_logits: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return last_logits.gather(1, answers[rows, None])[:, 0]

    def scores(of_model: Any, engine: Any) -> torch.Tensor:
        return word_integrated_gradients(of_model, sae, prompts, metric, engine=engine).scores

    exact = load_language_model("speller", dtype="float32")
    with torch.no_grad():
        weights = dict(exact.original_model.named_parameters())
        for name, layer in quantised_layers(model, dtype).items():
            weights[f"{name}.weight"].copy_(written_out(layer, dtype))
    before = copy.deepcopy(model_identity(model))
    expected = scores(exact, "whole")
    assert compute_prefix(model, prompts, [HOOK]).engine == "suffix"
    for engine in ("suffix", "whole"):
        # bfloat16 has 8 bits: a rounding is 2⁻⁹ of a number, and three blocks, six points and the way back have dozens
        assert (scores(model, engine) - expected).norm() < 2**-4 * expected.norm()
    assert model_identity(model) == before, "running a model must not change its weights"


def test_identities_tell_kinds_of_weights_apart(model: Any, dtype: str):
    assert model_identity(load_language_model("speller", dtype=dtype)) == model_identity(model)
    others = [load_language_model("speller", dtype=other) for other in ("bfloat16", *LAYERS) if other != dtype]
    assert len({model_identity(each) for each in (model, *others)}) == 3


def test_weights_packed_for_inference_are_refused():
    model = load_language_model("speller", dtype="nf4")
    layer = next(iter(quantised_layers(model, "nf4").values()))
    layer.support_avx512bf16_for_cpu = True  # as on a CPU that computes in bfloat16
    StudyConfig(saes=["speller/*"], model=model)
    assert layer.support_avx512bf16_for_cpu is False
    layer.weight.quant_state.packing_format_for_cpu = True
    packed = "4-bit weights that gradients pass; these were packed for inference"
    with pytest.raises(AbsorbError, match=packed):
        StudyConfig(saes=["speller/*"], model=model)
    with pytest.raises(AbsorbError, match=packed), activation_gradients(model):
        pass
    with pytest.raises(AbsorbError, match=packed):
        AblationEvaluator(model)


def test_what_cannot_be_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Any):
    with pytest.raises(ModelProcessingError, match="they are quantised"):
        load_language_model("speller", dtype="int8", processing=["fold_ln"])
    with pytest.raises(AbsorbError, match=r"float16 or int8 or nf4"):
        load_language_model("speller", dtype="int4")
    with pytest.raises(AbsorbError, match=r"expected float32 or float64 or bfloat16 or float16\. "):
        StudyConfig(saes=["speller/*"], model_dtype="nf4", sae_dtype="nf4")
    config = BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, vocab_size=4750
    )
    BertForMaskedLM(config).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(speller_path()).save_pretrained(tmp_path)
    with pytest.raises(AbsorbError, match=r"`dtype` was 'nf4', .* it is no causal model"):
        load_language_model(str(tmp_path), dtype="nf4")
    monkeypatch.setattr(quantized, "find_spec", lambda _: None)
    with pytest.raises(AbsorbError, match=r"`dtype` was 'int8', .*pip install \"absorb-pl\[quantized\]\""):
        load_language_model("speller", dtype="int8")


@pytest.mark.slow
def test_a_study_of_a_quantised_model(tmp_path: Any):
    def study(dtype: str) -> Any:
        return run_study(
            StudyConfig(
                saes=["speller/l1-standard-w512-medium"],
                model_dtype=dtype,
                task=TaskConfig(max_words=800, max_icl_examples=3),
                rules=["paper", "absorb-pl-1"],
                run_dir=str(tmp_path / dtype),
                cache_dir=str(tmp_path / "cache"),
                trainer=TrainerSettings(accelerator="cpu", enable_progress_bar=False),
            )
        ).tables

    quantised, plain = study("nf4"), study("float32")
    assert set(quantised["words"]["engine"].dropna()) == {"suffix"}
    verdicts = [
        tables["words"].query("rule == 'paper'").set_index("row")["is_absorption"].astype(bool)
        for tables in (quantised, plain)
    ]
    both = verdicts[0].index.intersection(verdicts[1].index)
    assert len(both) > 50
    assert not verdicts[0][both].equals(verdicts[1][both])
    assert cohen_kappa_score(verdicts[0][both], verdicts[1][both]) > 0.5


@pytest.mark.parametrize("dtype", LAYERS)
def test_weights_that_are_not_finite_are_named(dtype: str, tmp_path: Any):
    shutil.copytree(speller_path(), tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    weights = load_file(file)
    name = next(name for name in weights if name.endswith("q_proj.weight"))
    weights[name][3, 5] = torch.nan
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(NonFiniteError, match="q_proj"):
        load_language_model(str(tmp_path / "model"), dtype=dtype)
