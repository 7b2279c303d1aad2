import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    BertTokenizerFast,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaModel,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.utils import logging as transformers_logging

from absorb_pl.data.residuals import read_residuals
from absorb_pl.errors import AbsorbError, HookNotFoundError, ModelNotFoundError, NotCausalError
from absorb_pl.models import (
    check_hook,
    context_length,
    has_next_token_logits,
    identity,
    load_language_model,
    model_identity,
    tokenizer_identity,
)
from absorb_pl.models.identity import content_hash
from absorb_pl.models.next_token import require_next_token_logits

GOLDEN = Path(__file__).parents[1] / "golden"
FOLDERS = [GOLDEN / "gpt2-micro", GOLDEN / "gemma2-micro"]
MODEL_FILES = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


@pytest.fixture(scope="module", params=FOLDERS, ids=lambda folder: folder.name)
def model(request):
    return load_language_model(str(request.param))


@pytest.fixture
def copy(tmp_path):
    """A golden model's folder to change at will."""
    for file in MODEL_FILES:
        shutil.copyfile(FOLDERS[0] / file, tmp_path / file)
    return tmp_path


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def test_weights_are_raw_and_frozen(model):
    stored = load_file(GOLDEN / Path(model.original_model.config._name_or_path).name / "model.safetensors")
    embedding = next(key for key in stored if key.endswith(("wte.weight", "embed_tokens.weight")))
    assert torch.equal(model.embed.weight, stored[embedding])
    assert not model.training
    parameters = [*model.parameters(), *model.original_model.parameters()]
    assert not any(parameter.requires_grad for parameter in parameters)
    assert {parameter.dtype for parameter in parameters} == {torch.float32}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_another_dtype_is_taken(folder):
    model = load_language_model(str(folder), dtype="bfloat16")
    assert {parameter.dtype for parameter in model.original_model.parameters()} == {torch.bfloat16}
    assert model(torch.zeros(1, 3, dtype=torch.long)).dtype == torch.bfloat16


def test_loading_is_silent_and_leaves_progress_bars_as_they_were(capfd):
    transformers_logging.enable_progress_bar()
    load_language_model(str(FOLDERS[0]))
    assert transformers_logging.is_progress_bar_enabled()
    assert "Loading weights" not in "".join(capfd.readouterr())


def test_a_folder_without_a_config_is_refused(tmp_path):
    with pytest.raises(ModelNotFoundError, match=r"no config.json in this folder"):
        load_language_model(str(tmp_path))


def test_a_folder_of_an_unknown_kind_is_refused(copy):
    (copy / "config.json").write_text(json.dumps({"model_type": "abacus"}))
    with pytest.raises(ModelNotFoundError, match="The folder does not load"):
        load_language_model(str(copy))


def test_a_folder_without_weights_is_refused(copy):
    (copy / "model.safetensors").unlink()
    with pytest.raises(ModelNotFoundError, match="The folder does not load"):
        load_language_model(str(copy))


@pytest.mark.parametrize("name", ["./no-such", "/no/such", "~/no-such-folder", "no-such/"])
def test_a_missing_folder_is_refused_without_asking_the_hub(name):
    with pytest.raises(ModelNotFoundError, match="There is no such folder"):
        load_language_model(name)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("name", ["no-such-model", "nobody/no-such-model"])
def test_an_unreachable_hub_is_named_with_the_local_form(name):
    with pytest.raises(ModelNotFoundError, match=r"hub cannot be reached.*local folder needs config.json") as caught:
        load_language_model(name)
    assert caught.value.value == name


def test_a_name_that_the_hub_cannot_have_is_refused():
    with pytest.raises(ModelNotFoundError, match="does not load: Repo id must"):
        load_language_model("not a name")


@pytest.mark.parametrize(("field", "value"), [("device", "abacus"), ("device", "cuda:99"), ("dtype", "float33")])
def test_unknown_devices_and_dtypes_are_refused(field, value):
    with pytest.raises(AbsorbError, match=f"`{field}` was '{value}'"):
        load_language_model(str(FOLDERS[0]), **{field: value})


@pytest.mark.parametrize("hook_name", ["blocks.1.hook_resid_post", "blocks.3.hook_resid_pre", "blocks.0.hook_out"])
def test_hooks_are_found_by_name_and_alias(model, hook_name):
    check_hook(model, hook_name)
    seen = []
    model.run_with_hooks(
        torch.zeros(1, 2, dtype=torch.long), fwd_hooks=[(hook_name, lambda x, **_: seen.append(x.shape))]
    )
    assert seen == [(1, 2, 48)]


def test_an_unknown_hook_is_refused_with_the_closest(model):
    with pytest.raises(HookNotFoundError, match=r"'blocks.1.hook_resid_pst'.*Closest: blocks.1.hook_resid_post"):
        check_hook(model, "blocks.1.hook_resid_pst")
    with pytest.raises(HookNotFoundError, match="hook_dict"):
        check_hook(SimpleNamespace(hook_dict={}), "blocks.1.hook_resid_post")


def test_the_context_length_is_the_configured_one():
    assert [context_length(load_language_model(str(folder))) for folder in FOLDERS] == [160, 256]


def test_a_model_s_identity_is_its_content(model, copy):
    identity = model_identity(model)
    model(torch.zeros(1, 3, dtype=torch.long))
    assert model_identity(model) == identity
    elsewhere = model_identity(load_language_model(str(copy)))
    assert (elsewhere == identity) == (model.cfg.n_ctx == 160)


def test_one_changed_weight_or_setting_changes_a_model_s_identity(copy):
    identities = {model_identity(load_language_model(str(copy), dtype=dtype)) for dtype in ("float32", "bfloat16")}
    weights = load_file(copy / "model.safetensors")
    key = next(key for key in weights if key.endswith("ln_f.bias"))
    weights[key][-1] = torch.nextafter(weights[key][-1], torch.tensor(9.0))
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    identities.add(model_identity(load_language_model(str(copy))))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"layer_norm_epsilon": 1e-4}))
    identities.add(model_identity(load_language_model(str(copy))))
    assert len(identities) == 4


def test_a_tokenizer_s_identity_ignores_padding_state_and_added_bos(copy):
    plain = AutoTokenizer.from_pretrained(str(copy))
    identity = tokenizer_identity(plain)
    assert tokenizer_identity(load_language_model(str(copy)).tokenizer) == identity
    plain(["a", "a a"], padding=True, truncation=True, max_length=4)
    assert tokenizer_identity(plain) == identity
    content = json.loads((copy / "tokenizer.json").read_text())
    content["model"]["vocab"] = {
        token: index if index < 200 else 495 - index for token, index in content["model"]["vocab"].items()
    }
    (copy / "tokenizer.json").write_text(json.dumps(content))
    assert tokenizer_identity(AutoTokenizer.from_pretrained(str(copy))) != identity


def test_a_content_hash_sees_every_piece_of_a_large_tensor_and_no_threads(monkeypatch):
    large = torch.arange(2**16, dtype=torch.int64).reshape(256, 256)  # 32 pieces of 8 rows
    monkeypatch.setattr(identity, "_PIECE_BYTES", 2**14)
    expected = content_hash({"a": large}, {})
    assert content_hash({"a": large.T.contiguous().T}, {}) == expected
    for place in range(0, 2**16, 2**11):
        changed = large.clone()
        changed.view(-1)[place] += 1
        assert content_hash({"a": changed}, {}) != expected
    swapped = torch.cat([large[8:16], large[:8], large[16:]])
    assert content_hash({"a": swapped}, {}) != expected
    threads = torch.get_num_threads()
    try:
        for count in (1, 5):
            torch.set_num_threads(count)
            assert content_hash({"a": large}, {}) == expected
    finally:
        torch.set_num_threads(threads)
    assert len({content_hash({"a": torch.zeros(shape)}, {}) for shape in ((), (0,), (0, 3), (3, 0))}) == 4


def test_a_content_hash_sees_names_dtypes_shapes_and_settings():
    zeros = torch.zeros(4)
    hashes = [
        content_hash({"a": zeros}, {}),
        content_hash({"b": zeros}, {}),
        content_hash({"a": zeros.reshape(2, 2)}, {}),
        content_hash({"a": torch.zeros(8, dtype=torch.bfloat16)}, {}),
        content_hash({"a": zeros, "s": torch.tensor(1.0)}, {}),
        content_hash({"a": zeros}, {"k": 1}),
    ]
    assert len(set(hashes)) == len(hashes)
    assert content_hash({"a": torch.zeros(2, 4).T[:, 0]}, {"device": "cuda"}) == hashes[0]
    assert content_hash({"s": torch.tensor(1.0), "a": zeros}, {}) == hashes[4]


TINY = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
MADE = {
    "masked": lambda: BertForMaskedLM(BertConfig(**TINY)),
    "bare": lambda: BertModel(BertConfig(**TINY)),
    "untied": lambda: LlamaModel(LlamaConfig(**TINY)),
    "tied": lambda: GPT2Model(GPT2Config(vocab_size=40, n_embd=32, n_layer=2, n_head=2)),
    "seq2seq": lambda: T5ForConditionalGeneration(
        T5Config(vocab_size=40, d_model=32, d_ff=64, d_kv=16, num_layers=2, num_heads=2)
    ),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Makes the folder of a small model over a WordPiece vocabulary."""

    def make(kind):
        folder = tmp_path_factory.mktemp(kind)
        torch.manual_seed(1)
        MADE[kind]().save_pretrained(folder)
        pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz"]
        BertTokenizerFast(vocab={piece: i for i, piece in enumerate(pieces)}).save_pretrained(folder)
        return folder

    return make


@pytest.mark.parametrize("kind", ["masked", "bare"])
def test_encoders_are_read_behind_their_padding(made, kind):
    folder = made(kind)
    model = load_language_model(str(folder))
    stored = BertModel.from_pretrained(folder, attn_implementation="eager").eval()
    texts = ["a b c d e f", "a b", "c d e"]
    rows = [model.tokenizer(text)["input_ids"] for text in texts]
    lengths, place = torch.tensor([len(row) for row in rows]), torch.tensor([2, 1, 3])
    ids = torch.tensor([row + [0] * (8 - len(row)) for row in rows])
    mask = torch.arange(8) < lengths[:, None]
    hooks = ["blocks.0.hook_resid_pre", "blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]
    found = read_residuals(model, ids, mask, place, hooks)
    unmasked = read_residuals(model, ids, mask | True, place, hooks)
    for row, tokens in enumerate(rows):
        with torch.no_grad():
            states = stored(torch.tensor([tokens]), output_hidden_states=True).hidden_states
        for hook, state in zip(hooks, states, strict=True):
            torch.testing.assert_close(found[hook][row], state[0, place[row]], rtol=1e-5, atol=1e-5)
    assert (unmasked[hooks[2]][1] - found[hooks[2]][1]).abs().max() > 1e-3


def test_weights_that_a_checkpoint_lacks_are_the_same_each_time(made):
    folder = made("bare")
    before = torch.random.get_rng_state()
    first = load_language_model(str(folder))
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(99)
    second = load_language_model(str(folder))
    assert torch.equal(first.mlm_head.weight, second.mlm_head.weight)
    assert model_identity(first) == model_identity(second)


@pytest.mark.parametrize(("kind", "expected"), [("masked", False), ("bare", False), ("untied", False), ("tied", True)])
def test_next_token_logits_need_a_causal_model_with_an_unembedding(made, kind, expected):
    folder = made(kind)
    model = load_language_model(str(folder))
    assert has_next_token_logits(model) is expected
    if kind == "tied":
        require_next_token_logits(model, "the rule 'paper'")
        logits = (
            GPT2Model.from_pretrained(folder).eval()(torch.tensor([[5, 6]])).last_hidden_state @ model.embed.weight.T
        )
        torch.testing.assert_close(model(torch.tensor([[5, 6]])), logits, rtol=1e-4, atol=1e-5)
        return
    with pytest.raises(NotCausalError, match="whose next-token logits the rule 'paper' reads") as caught:
        require_next_token_logits(model, "the rule 'paper'")
    assert caught.value.value == model.cfg.architecture


def test_golden_models_have_next_token_logits(model):
    assert has_next_token_logits(model)
    with torch.no_grad():
        first, second = model(torch.tensor([[3, 4, 5], [3, 4, 6]]))[:, 1]
    assert torch.equal(first, second)


def test_an_encoder_decoder_is_refused(made):
    with pytest.raises(ModelNotFoundError, match="encoder-decoder"):
        load_language_model(str(made("seq2seq")))
