"""SAEs whose files are damaged, whose weights are no numbers to measure, and folders with odd names."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from absorb_pl.errors import AbsorbError, SaeArchitectureError, SaeNotFoundError, SaeWeightsError
from absorb_pl.saes import encode_rows, expand_sae_names, list_saes, load_sae, sae_architecture

GOLDEN = Path(__file__).parents[1] / "golden" / "gpt2-micro" / "sae_standard_A"


@pytest.fixture
def folder(tmp_path):
    """A golden SAE's folder to change at will."""
    return Path(shutil.copytree(GOLDEN, tmp_path / "sae"))


def change_weights(folder, **changed):
    weights = load_file(folder / "sae_weights.safetensors")
    weights |= {name: change(weights[name]) for name, change in changed.items()}
    save_file(weights, folder / "sae_weights.safetensors")


def change_config(folder, **changed):
    config = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps({**config, **changed}))


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool, torch.complex64])
@pytest.mark.parametrize("name", ["W_enc", "W_dec", "b_enc", "b_dec"])
def test_weights_that_are_no_floats_are_refused(folder, name, dtype):
    change_weights(folder, **{name: lambda weight: weight.to(dtype)})
    with pytest.raises(SaeWeightsError, match=f"{name} is {dtype}"):
        load_sae(str(folder))


@pytest.mark.parametrize("name", ["W_enc", "W_dec"])
def test_weights_that_are_all_zero_are_refused(folder, name):
    change_weights(folder, **{name: torch.zeros_like})
    with pytest.raises(SaeWeightsError, match=f"all of its {name} is zero"):
        load_sae(str(folder))


def test_a_decoder_that_a_narrow_dtype_rounds_to_zero_is_refused(folder):
    change_weights(folder, W_dec=lambda weight: weight * 1e-9)
    assert load_sae(str(folder)).W_dec.any()
    with pytest.raises(SaeWeightsError, match="load it in a wider dtype"):
        load_sae(str(folder), dtype="float16")


OLD = {"d_in": 48, "d_sae": 160, "dtype": "float32", "hook_name": "blocks.1.hook_resid_post"}


@pytest.mark.parametrize("activation", ["tanh-relu", "gelu", "leaky_relu"])
@pytest.mark.parametrize("key", ["activation_fn_str", "activation_fn"])
def test_an_old_configuration_with_another_activation_function_is_refused(folder, key, activation):
    (folder / "cfg.json").write_text(json.dumps({**OLD, key: "relu"}))
    assert load_sae(str(folder)).cfg.d_sae == 160
    change_config(folder, **{key: activation})
    with pytest.raises(SaeArchitectureError, match=f"relu or topk, not '{activation}'"):
        load_sae(str(folder))


PASSED_OVER = {
    "topk without k": {"activation_fn_str": "topk"},
    "topk with other options": {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 5, "signed": True}},
    "topk in a configuration that is no longer read for it": {
        "architecture": "standard",
        "activation_fn": "topk",
        "activation_fn_kwargs": {"k": 5},
        "metadata": {"sae_lens_version": "6.0.0"},
    },
    "identity": {"activation_fn_str": "identity"},
    "both names": {"activation_fn_str": "relu", "activation_fn": "tanh-relu"},
    "another output": {"hook_name_out": "blocks.1.hook_mlp_out"},
    "another output by its oldest name": {
        "hook_point": "blocks.1.hook_mlp_in",
        "out_hook_point": "b",
        "hook_name": None,
    },
    "a transcoder": {"is_transcoder": True},
}


@pytest.mark.parametrize("setting", PASSED_OVER)
def test_what_saelens_would_pass_over_is_refused(folder, setting):
    (folder / "cfg.json").write_text(json.dumps({**OLD, **PASSED_OVER[setting]}))
    with pytest.raises(SaeArchitectureError):
        load_sae(str(folder))


def test_topk_of_an_old_configuration_is_topk(folder):
    (folder / "cfg.json").write_text(
        json.dumps({**OLD, "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 5, "signed": False}})
    )
    sae = load_sae(str(folder))
    assert (sae_architecture(sae), sae.cfg.k) == ("topk", 5)
    assert set((encode_rows(sae, torch.randn(9, 48)) > 0).sum(1).tolist()) == {5}


@pytest.mark.parametrize("said", [False, True])
@pytest.mark.parametrize("factor", [1, 2])
def test_a_factor_from_finetuning_is_not_passed_over(folder, factor, said):
    weights = load_file(folder / "sae_weights.safetensors")
    save_file({**weights, "scaling_factor": torch.full((160,), float(factor))}, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps({**OLD, "finetuning_scaling_factor": said}))
    if factor == 1:
        assert load_sae(str(folder)).cfg.d_sae == 160
    else:
        with pytest.raises(SaeNotFoundError, match="caling"):
            load_sae(str(folder))


def test_metadata_that_saelens_would_pass_over_are_refused(folder):
    (folder / "cfg.json").write_text(
        json.dumps({**OLD, "metadata": {"model_from_pretrained_kwargs": {"center_writing_weights": True}}})
    )
    with pytest.raises(SaeNotFoundError, match="metadata hold no sae_lens_version"):
        load_sae(str(folder))


def test_a_release_is_refused_by_its_configuration_too(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--jbloom--GPT2-Small-SAEs-Reformatted"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    cached = repository / "snapshots" / ("0" * 40) / "blocks.1.hook_resid_pre"
    shutil.copytree(folder, cached)
    name = "gpt2-small-res-jb/blocks.1.hook_resid_pre"
    (cached / "cfg.json").write_text(json.dumps(OLD))
    assert load_sae(name).cfg.d_sae == 160
    (cached / "cfg.json").write_text(json.dumps({**OLD, "activation_fn_str": "tanh-relu"}))
    with pytest.raises(SaeArchitectureError, match=f"{name}', expected latents that go through relu or topk"):
        load_sae(name)


@pytest.mark.parametrize("name", ["sae[1]", "sae[l1=3]", "a*b", "what?", "[x"])
def test_a_folder_that_exists_is_a_folder(folder, name):
    path = str(folder.rename(folder.with_name(name)))
    for asked in (path, f"{path}@blocks.0.hook_resid_pre", f"{path}#random"):
        assert expand_sae_names([asked]) == [asked]
        assert load_sae(asked).cfg.d_sae == 160
    assert list_saes([path])["d_sae"].tolist() == [160]


def test_a_folder_is_taken_by_its_relative_path(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    for name in ("sae", "./sae", "sae/", "../" + folder.parent.name + "/sae"):
        assert torch.equal(load_sae(name).W_dec, load_sae(str(folder)).W_dec)


def test_arrays_linked_from_a_cache_keep_the_hook_of_their_path(tmp_path):
    generator = np.random.default_rng(0)
    shapes = {"W_enc": (8, 12), "W_dec": (12, 8), "b_enc": (12,), "b_dec": (8,), "threshold": (12,)}
    np.savez(tmp_path / "blob.npz", **{name: generator.normal(size=shape) for name, shape in shapes.items()})
    layout = tmp_path / "models--google--gemma-scope-2b-pt-res/snapshots/0a/layer_7/width_16k/average_l0_9"
    layout.mkdir(parents=True)
    (layout / "params.npz").symlink_to(tmp_path / "blob.npz")
    assert load_sae(str(layout)).cfg.metadata.hook_name == "blocks.7.hook_resid_post"


def truncate(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


DAMAGES = {
    "weights are text": lambda folder: (folder / "sae_weights.safetensors").write_text("<html>not found</html>"),
    "weights are empty": lambda folder: (folder / "sae_weights.safetensors").write_bytes(b""),
    "weights are cut": lambda folder: truncate(folder / "sae_weights.safetensors"),
    "weights lack a tensor": lambda folder: save_file(
        {"W_dec": torch.ones(160, 48)}, folder / "sae_weights.safetensors"
    ),
    "a matrix is turned": lambda folder: change_weights(folder, W_dec=lambda weight: weight.T.contiguous()),
    "a bias is a number": lambda folder: change_weights(folder, b_enc=lambda weight: weight.sum()),
    "config is cut": lambda folder: truncate(folder / "cfg.json"),
    "config is a list": lambda folder: (folder / "cfg.json").write_text("[]"),
    "config is empty": lambda folder: (folder / "cfg.json").write_text("{}"),
    "config is no UTF-8": lambda folder: (folder / "cfg.json").write_bytes(b"\xff\xfe{}\x80"),
    "width is a word": lambda folder: change_config(folder, d_sae="wide"),
    "width is missing": lambda folder: change_config(folder, d_in=None),
    "width is another": lambda folder: change_config(folder, d_in=47),
    "an unknown architecture": lambda folder: change_config(folder, architecture="abacus"),
    "an architecture that is a number": lambda folder: change_config(folder, architecture=3),
    "metadata is a list": lambda folder: change_config(folder, metadata=[1]),
    "reshaping of its own": lambda folder: change_config(folder, reshape_activations="sideways"),
    "an unknown normalisation": lambda folder: change_config(folder, normalize_activations="sideways"),
    "a version that is no version": lambda folder: change_config(folder, metadata={"sae_lens_version": "new"}),
    "the runner's file is a list": lambda folder: (
        change_config(folder, metadata={"sae_lens_version": "6.54.0"}),
        (folder / "runner_cfg.json").write_text("[]"),
    ),
    "arrays beside nothing": lambda folder: (
        (folder / "sae_weights.safetensors").unlink(),
        np.savez(
            folder / "params.npz", **{key: np.ones(3) for key in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")}
        ),
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_refused_by_name(folder, damage):
    DAMAGES[damage](folder)
    with pytest.raises(AbsorbError) as caught:
        load_sae(str(folder))
    assert str(folder) in str(caught.value.value) or isinstance(caught.value, SaeNotFoundError)
