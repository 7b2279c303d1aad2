import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer
from transformers.utils import logging as transformers_logging

from absorb_pl.errors import AbsorbError, HookNotFoundError, ModelNotFoundError
from absorb_pl.models import (
    check_hook,
    content_hash,
    context_length,
    load_language_model,
    model_identity,
    tokenizer_identity,
)

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
