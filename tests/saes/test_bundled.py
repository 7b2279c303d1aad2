"""The speller and its SAEs as they ship."""

import json
from collections import Counter

import pytest
import torch
from sae_lens import SAE
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.model_selection import cross_val_predict
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoTokenizer

from absorb_pl.errors import SaeNotFoundError
from absorb_pl.models.bundled import SPELLER, speller_path
from absorb_pl.saes.bundled import bundled_sae_path, list_bundled_saes

ASSETS = speller_path().parent
HOOKS = ["blocks.1.hook_resid_post", "blocks.2.hook_resid_post"]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(speller_path())


@pytest.fixture(scope="module")
def words(tokenizer):
    return sorted(piece[1:] for piece in tokenizer.get_vocab() if len(piece) > 2 and piece[0] == "Ġ")


@pytest.fixture(scope="module")
def model():
    return TransformerBridge.boot_transformers(str(speller_path()), device="cpu", dtype=torch.float32)


@pytest.fixture(scope="module")
def asked(words):
    generator = torch.Generator().manual_seed(20240917)
    return [words[int(i)] for i in torch.randperm(len(words), generator=generator)[:200]]


@pytest.fixture(scope="module")
def prompts(tokenizer, words, asked):
    generator = torch.Generator().manual_seed(7)
    texts = []
    for word in asked:
        drawn = (words[int(i)] for i in torch.randperm(len(words), generator=generator)[:11])
        examples = [example for example in drawn if example != word][:10]
        lines = [f" {example} has the first letter: {example[0].upper()}\n" for example in examples]
        texts.append("".join(lines) + f" {word} has the first letter:")
    return torch.tensor(tokenizer(texts)["input_ids"])


@pytest.fixture(scope="module")
def residuals(model, prompts):
    with torch.no_grad():
        _, cache = model.run_with_cache(prompts, names_filter=HOOKS, stop_at_layer=3)
    return {hook: cache[hook][:, -6] for hook in HOOKS}


def test_assets_are_complete_and_small():
    files = [path for path in ASSETS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 30e6
    assert {"config.json", "model.safetensors", "tokenizer.json", "training.json"} <= {
        path.name for path in speller_path().iterdir()
    }
    figures = json.loads((ASSETS / "figures.json").read_text())
    card = (ASSETS / "MODEL_CARD.md").read_text()
    assert [f"{SPELLER}/{name}" for name in figures["saes"]] == list_bundled_saes()
    assert all(f"| `{name}` |" in card for name in figures["saes"])
    assert not [path for path in files if path.suffix in {".bin", ".pt", ".pkl", ".ckpt"}]


def test_words_are_many_and_cover_every_letter(words):
    first_letters = Counter(word[0] for word in words)
    assert len(words) >= 4000
    assert min(first_letters[letter] for letter in "abcdefghijklmnopqrstuvwxyz") >= 50


def test_every_word_is_one_token(tokenizer, words):
    ids = tokenizer([f" {word}" for word in words], add_special_tokens=False)["input_ids"]
    assert {len(row) for row in ids} == {1}
    assert tokenizer.batch_decode(ids) == [f" {word}" for word in words]


@pytest.mark.parametrize(
    "text",
    [
        " cat has the first letter: C\n kids has the first letter:",
        " unheardof wörd, 42!\n\n",
        "a A a",
    ],
)
def test_tokenizer_round_trip(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert tokenizer.unk_token_id not in ids


def test_the_word_stands_six_tokens_before_the_end(tokenizer):
    ids = tokenizer(" cat has the first letter: C\n kids has the first letter:")["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.convert_ids_to_tokens(ids)[-6:] == ["Ġkids", "Ġhas", "Ġthe", "Ġfirst", "Ġletter", ":"]


def test_speller_spells_prompts_it_has_not_seen(model, tokenizer, asked, prompts):
    with torch.no_grad():
        predicted = model.original_model(input_ids=prompts, logits_to_keep=1).logits[:, -1].argmax(dim=-1)
    expected = torch.tensor([tokenizer.convert_tokens_to_ids(f"Ġ{word[0].upper()}") for word in asked])
    assert (predicted == expected).float().mean() >= 0.99


@pytest.mark.parametrize("hook", HOOKS)
def test_letters_can_be_read_linearly(residuals, asked, hook):
    rows, labels = residuals[hook].double(), torch.tensor(["abcdefghijklmnopqrstuvwxyz".index(w[0]) for w in asked])
    common = [letter for letter in range(26) if (labels == letter).sum() >= 10]
    predicted = cross_val_predict(
        LogisticRegression(class_weight="balanced", max_iter=1000), rows / rows.std(), labels, cv=4
    )
    assert len(common) >= 5
    assert f1_score(labels, predicted, labels=common, average="macro") >= 0.9


def test_last_layer_reads_letters_at_the_word(model, tokenizer, asked, prompts):
    moved = torch.arange(len(asked)).roll(1)

    def swap(residual, **_):
        residual[:, -6] = residual[moved, -6]
        return residual

    with torch.no_grad():
        logits = model.run_with_hooks(prompts, fwd_hooks=[("blocks.2.hook_resid_post", swap)])[:, -1]
    expected = torch.tensor([tokenizer.convert_tokens_to_ids(f"Ġ{asked[int(i)][0].upper()}") for i in moved])
    assert (logits.argmax(dim=-1) == expected).float().mean() >= 0.95


def test_suite_covers_layers_widths_and_architectures():
    configs = [json.loads((bundled_sae_path(name) / "cfg.json").read_text()) for name in list_bundled_saes()]
    assert len(configs) >= 12
    assert {config["metadata"]["hook_name"] for config in configs} == set(HOOKS)
    assert len({config["d_sae"] for config in configs}) >= 2
    assert {config["metadata"]["training_architecture"] for config in configs} == {
        "standard",
        "batchtopk",
        "matryoshka_batchtopk",
        "jumprelu",
    }
    assert {config["metadata"]["model_name"] for config in configs} == {SPELLER}


@pytest.mark.parametrize("name", list_bundled_saes())
def test_sae_loads_and_its_card_is_true(name, residuals):
    sae = SAE.load_from_disk(bundled_sae_path(name))
    rows = residuals[sae.cfg.metadata.hook_name]
    with torch.no_grad():
        latents = sae.encode(rows)
        residual = rows - sae.decode(latents)
    stated = json.loads((ASSETS / "figures.json").read_text())["saes"][name.removeprefix(f"{SPELLER}/")]
    explained = 1 - residual.square().sum() / (rows - rows.mean(dim=0)).square().sum()
    assert latents.shape == (200, sae.cfg.d_sae)
    assert (latents > 0).sum(dim=1).float().mean().item() == pytest.approx(stated["l0"], rel=0.1)
    assert explained.item() == pytest.approx(stated["explained_variance"], abs=0.05)
    assert torch.allclose(sae.W_dec.norm(dim=-1), torch.ones(sae.cfg.d_sae), atol=1e-4)


def test_an_unknown_name_gives_the_closest_of_the_suite():
    with pytest.raises(SaeNotFoundError, match="Closest: speller/l2-batchtopk-w512-medium, ") as caught:
        bundled_sae_path("speller/l2-batchtopk-w512")
    assert sum(name in str(caught.value) for name in list_bundled_saes()) == 3


def test_paths_need_no_suffix_tricks():
    with pytest.raises(SaeNotFoundError):
        bundled_sae_path("speller/../model")
