"""SAEs whose files are damaged, whose weights are no numbers to measure, and folders with odd names."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from absorb_pl.errors import AbsorbError, SaeArchitectureError, SaeNotFoundError, SaeWeightsError
from absorb_pl.models import expand_sae_names, list_saes, load_sae

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


@pytest.mark.parametrize("activation", ["tanh-relu", "gelu", "leaky_relu"])
@pytest.mark.parametrize("key", ["activation_fn_str", "activation_fn"])
def test_an_old_configuration_with_another_activation_function_is_refused(folder, key, activation):
    old = {"d_in": 48, "d_sae": 160, "dtype": "float32", "hook_name": "blocks.1.hook_resid_post"}
    (folder / "cfg.json").write_text(json.dumps({**old, key: "relu"}))
    assert load_sae(str(folder)).cfg.d_sae == 160
    change_config(folder, **{key: activation})
    with pytest.raises(SaeArchitectureError, match=f"relu or topk, not '{activation}'"):
        load_sae(str(folder))


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
