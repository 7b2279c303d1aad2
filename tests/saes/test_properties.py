import json
import shutil
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file

from absorb_pl.errors import (
    AbsorbError,
    HookNotFoundError,
    NonFiniteError,
    SaeNotFoundError,
    SaeWidthError,
)
from absorb_pl.models import load_language_model
from absorb_pl.saes import check_sae_fits, load_sae, sae_hook_name, sae_identity

GOLDEN = Path(__file__).parents[1] / "golden"
NAMES = ["sae_standard_A", "sae_jumprelu_A", "sae_topk_B"]


@pytest.fixture(scope="module")
def model():
    return load_language_model(str(GOLDEN / "gpt2-micro"))


@pytest.fixture
def copy(tmp_path):
    """A golden SAE's folder to change at will."""
    for file in ("cfg.json", "sae_weights.safetensors"):
        shutil.copyfile(GOLDEN / "gpt2-micro" / "sae_standard_A" / file, tmp_path / file)
    return tmp_path


def change_weights(folder, **changes):
    weights = load_file(folder / "sae_weights.safetensors")
    save_file(weights | changes, folder / "sae_weights.safetensors")


class HandmadeSae(torch.nn.Module):
    """All that an SAE from elsewhere must have."""

    def __init__(self, d_in):
        super().__init__()
        self.W_dec = torch.nn.Parameter(torch.ones(3, d_in))

    def encode(self, x):
        return x @ self.W_dec.T

    def decode(self, latents):
        return latents @ self.W_dec


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_as_stored_and_frozen(name):
    folder = GOLDEN / "gemma2-micro" / name
    sae = load_sae(str(folder))
    stored = load_file(folder / "sae_weights.safetensors")
    assert {key: value.tolist() for key, value in sae.state_dict().items()} == {
        key: value.tolist() for key, value in stored.items()
    }
    assert not sae.training
    assert not any(parameter.requires_grad for parameter in sae.parameters())
    assert sae_hook_name(sae) == json.loads((folder / "cfg.json").read_text())["metadata"]["hook_name"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_another_dtype_is_taken(dtype):
    sae = load_sae(str(GOLDEN / "gpt2-micro" / "sae_standard_A"), dtype=dtype)
    assert {str(parameter.dtype) for parameter in sae.parameters()} == {f"torch.{dtype}"}
    assert str(sae.encode(torch.zeros(1, 48, dtype=getattr(torch, dtype))).dtype) == f"torch.{dtype}"


@pytest.mark.parametrize("file", ["cfg.json", "sae_weights.safetensors"])
def test_a_folder_that_lacks_a_file_is_refused(copy, file):
    (copy / file).unlink()
    with pytest.raises(SaeNotFoundError, match=f"There is no {file} in that folder"):
        load_sae(str(copy))


@pytest.mark.parametrize(
    "config", ["{", "{}", '{"architecture": "abacus", "d_in": 48, "d_sae": 160}', '{"architecture": "standard"}']
)
def test_a_folder_with_another_config_is_refused(copy, config):
    (copy / "cfg.json").write_text(config)
    with pytest.raises(SaeNotFoundError, match="The folder does not load"):
        load_sae(str(copy))


def test_a_folder_with_other_weights_is_refused(copy):
    change_weights(copy, W_dec=torch.zeros(7, 48))
    with pytest.raises(SaeNotFoundError, match="W_dec"):
        load_sae(str(copy))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(copy, value):
    bias = torch.zeros(160)
    bias[[3, 5]] = value
    change_weights(copy, b_enc=bias)
    with pytest.raises(NonFiniteError, match="but 2 in b_enc are not"):
        load_sae(str(copy))


def test_an_unknown_bundled_sae_is_refused():
    with pytest.raises(SaeNotFoundError, match="bundled"):
        load_sae("speller/no-such-sae")


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("gpt2-small-res-jbb/blocks.0.hook_resid_pre", "Closest releases: gpt2-small-res-jb"),
        ("gpt2-small-res-jb/blocks.0.hook_resid", "Closest ids of this release: blocks.0.hook_resid_pre"),
        ("gpt2-small-res-jb", "Closest ids of this release: blocks"),
        ("~~~", "no such folder and no such release"),
        ("speller/l2-batchtopk-w512-mediun", "Closest: speller/l2-batchtopk-w512-medium, "),
        ("speller/l2-batchtopk-w512-medium/", "Closest: speller/l2-batchtopk-w512-medium, "),
        (" speller/l2-batchtopk-w512-medium", "Closest: speller/l2-batchtopk-w512-medium, "),
    ],
)
def test_an_unknown_release_or_id_is_refused_with_near_ones(name, near):
    with pytest.raises(SaeNotFoundError, match=near):
        load_sae(name)


def test_an_unreachable_hub_is_named(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(SaeNotFoundError, match="hub cannot be reached") as caught:
        load_sae("gpt2-small-res-jb/blocks.0.hook_resid_pre")
    assert caught.value.value == "gpt2-small-res-jb/blocks.0.hook_resid_pre"


@pytest.mark.parametrize(("field", "value"), [("device", "abacus"), ("dtype", "int8")])
def test_unknown_devices_and_dtypes_are_refused(field, value):
    with pytest.raises(AbsorbError, match=f"`{field}` was '{value}'"):
        load_sae(str(GOLDEN / "gpt2-micro" / "sae_standard_A"), **{field: value})


@pytest.mark.parametrize("name", NAMES)
def test_golden_saes_fit_their_model(model, name):
    check_sae_fits(model, load_sae(str(GOLDEN / "gpt2-micro" / name)))


@pytest.mark.parametrize(
    ("hook_name", "width"),
    [("blocks.1.hook_resid_post", 48), ("blocks.1.mlp.hook_post", 192), ("blocks.1.attn.hook_z", 48)],
)
def test_the_width_is_that_of_the_hook(model, hook_name, width):
    check_sae_fits(model, HandmadeSae(width), hook_name)
    with pytest.raises(SaeWidthError, match=f"d_in = {width + 1}', expected {width}, the width of {hook_name}"):
        check_sae_fits(model, HandmadeSae(width + 1), hook_name)


def test_an_sae_at_a_hook_that_the_model_lacks_is_refused(model, copy):
    config = json.loads((copy / "cfg.json").read_text())
    config["metadata"]["hook_name"] = "blocks.9.hook_resid_post"
    (copy / "cfg.json").write_text(json.dumps(config))
    with pytest.raises(HookNotFoundError, match=r"blocks.9.hook_resid_post.*Closest"):
        check_sae_fits(model, load_sae(str(copy)))


@pytest.mark.parametrize(
    ("hook_name", "remedy"),
    [("blocks.1.attn.hook_result", "set_use_attn_result"), ("blocks.1.attn.qkv.hook_out", "residual-stream")],
)
def test_a_hook_that_the_forward_pass_does_not_reach_is_refused(model, hook_name, remedy):
    with pytest.raises(HookNotFoundError, match=f"forward pass reaches.*{remedy}"):
        check_sae_fits(model, HandmadeSae(48), hook_name)


def test_an_sae_that_names_no_hook_is_refused(model, copy):
    config = json.loads((copy / "cfg.json").read_text())
    del config["metadata"]["hook_name"]
    (copy / "cfg.json").write_text(json.dumps(config))
    for sae in (load_sae(str(copy)), HandmadeSae(48)):
        with pytest.raises(HookNotFoundError, match="Pass hook_name"):
            check_sae_fits(model, sae)


def test_an_sae_s_identity_is_its_content(copy):
    identity = sae_identity(load_sae(str(copy)))
    assert sae_identity(load_sae(str(GOLDEN / "gpt2-micro" / "sae_standard_A"))) == identity
    config = json.loads((copy / "cfg.json").read_text())
    identities = {identity, sae_identity(load_sae(str(copy), dtype="bfloat16"))}
    config["metadata"]["sae_lens_version"] = "6.50.0"
    (copy / "cfg.json").write_text(json.dumps(config))
    assert sae_identity(load_sae(str(copy))) == identity
    config["metadata"]["hook_name"] = "blocks.2.hook_resid_post"
    (copy / "cfg.json").write_text(json.dumps(config))
    identities.add(sae_identity(load_sae(str(copy))))
    (copy / "cfg.json").write_text(json.dumps(config | {"apply_b_dec_to_input": False}))
    identities.add(sae_identity(load_sae(str(copy))))
    change_weights(copy, b_enc=torch.ones(160))
    identities.add(sae_identity(load_sae(str(copy))))
    identities.add(sae_identity(HandmadeSae(48)))
    assert len(identities) == 6
