"""Language models whose files are damaged, lack weights or belong to another model; and folders by relative paths."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPTJConfig, GPTNeoXConfig, MixtralConfig, OPTConfig
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from absorb_pl.errors import ModelNotFoundError, ModelWeightsError
from absorb_pl.models import load_language_model

GOLDEN = Path(__file__).parents[1] / "golden" / "gpt2-micro"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
SMALL = {"vocab_size": 1024, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
CONFIGS = {
    "neox": GPTNeoXConfig(**SMALL, intermediate_size=64),
    "opt": OPTConfig(**SMALL, ffn_dim=64, word_embed_proj_dim=32, max_position_embeddings=64),
    "gptj": GPTJConfig(vocab_size=1024, n_embd=32, n_layer=1, n_head=2, rotary_dim=8, n_positions=64),
    "mixtral": MixtralConfig(**SMALL, num_key_value_heads=2, intermediate_size=64, num_local_experts=2),
}


@pytest.fixture
def folder(tmp_path):
    """A golden model's folder to change at will."""
    shutil.copytree(GOLDEN, tmp_path / "model", ignore=shutil.ignore_patterns("sae_*"))
    return tmp_path / "model"


def change_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_folder_is_taken_by_its_relative_path(tmp_path, monkeypatch, kind):
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(CONFIGS[kind]).save_pretrained(tmp_path / kind)
    for file in TOKENIZER:
        shutil.copyfile(GOLDEN / file, tmp_path / kind / file)
    monkeypatch.chdir(tmp_path)
    tokens = torch.tensor([[1, 2, 3]])
    logits = [load_language_model(name)(tokens) for name in (kind, f"./{kind}", f"{kind}/", str(tmp_path / kind))]
    assert all(torch.equal(found, logits[-1]) for found in logits)


def test_missing_weights_are_named(folder):
    change_weights(folder, lambda weights: weights.pop("transformer.h.1.mlp.c_fc.weight"))
    with pytest.raises(ModelWeightsError, match=r"lacks transformer\.h\.1\.mlp\.c_fc\.weight\. "):
        load_language_model(str(folder))


def test_a_head_that_answers_are_read_from_must_be_there(tmp_path):
    config = GPTNeoXConfig(**SMALL, intermediate_size=64)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    for file in TOKENIZER:
        shutil.copyfile(GOLDEN / file, tmp_path / file)
    change_weights(tmp_path, lambda weights: weights.pop("embed_out.weight"))
    with pytest.raises(ModelWeightsError, match=r"lacks (embed_out|lm_head)\.weight"):
        load_language_model(str(tmp_path))


def test_a_tokenizer_of_another_model_is_refused(folder):
    rows = len(load_file(folder / "model.safetensors")["transformer.wte.weight"])
    text = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = text["model"]["vocab"]
    vocabulary |= {f"extra{i}": max(rows, *vocabulary.values()) + 1 + i for i in range(3)}
    (folder / "tokenizer.json").write_text(json.dumps(text))
    with pytest.raises(ModelWeightsError, match=rf"below {rows}, the number of embeddings, but it has 3 tokens"):
        load_language_model(str(folder))


def truncate(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


DAMAGES = {
    "weights are text": lambda folder: (folder / "model.safetensors").write_text("<html>not found</html>"),
    "weights are empty": lambda folder: (folder / "model.safetensors").write_bytes(b""),
    "weights are cut": lambda folder: truncate(folder / "model.safetensors"),
    "weights of another shape": lambda folder: change_weights(
        folder, lambda weights: weights.update({"transformer.wte.weight": torch.zeros(3, 5)})
    ),
    "config is cut": lambda folder: truncate(folder / "config.json"),
    "config is a list": lambda folder: (folder / "config.json").write_text("[1, 2]"),
    "config is no UTF-8": lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe{}\x80"),
    "config is empty": lambda folder: (folder / "config.json").write_text("{}"),
    "tokenizer is cut": lambda folder: truncate(folder / "tokenizer.json"),
    "tokenizer is a list": lambda folder: (folder / "tokenizer.json").write_text("[]"),
    "heads that do not divide": lambda folder: (folder / "config.json").write_text(
        json.dumps(json.loads((folder / "config.json").read_text()) | {"n_head": 7})
    ),
    "layers that are a word": lambda folder: (folder / "config.json").write_text(
        json.dumps(json.loads((folder / "config.json").read_text()) | {"n_layer": "two"})
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_refused_by_name(folder, damage):
    DAMAGES[damage](folder)
    with pytest.raises(ModelNotFoundError, match="The folder does not load") as caught:
        load_language_model(str(folder))
    assert caught.value.value == str(folder)
