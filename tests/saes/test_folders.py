"""SAEs in the formats of others: training checkpoints of SAELens, Gemma Scope's arrays, transcoders."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sae_lens import SAE, JumpReLUTranscoder, JumpReLUTranscoderConfig, SkipTranscoder, SkipTranscoderConfig
from sae_lens.registry import get_sae_training_class
from sae_lens.saes.sae import SAEMetadata
from sae_lens.training.activation_scaler import ActivationScaler, ActivationWhitening
from safetensors.torch import save_file

from absorb_pl.errors import AbsorbError, HookNotFoundError, SaeArchitectureError, SaeNotFoundError, ShapeError
from absorb_pl.saes import encode_rows, load_sae, sae_architecture, sae_hook_name
from absorb_pl.saes.folders import is_checkpoint
from absorb_pl.saes.gemma_scope import gemma_scope_disk_loader

HOOK = "blocks.1.hook_resid_post"
TRAINING: dict[str, dict[str, Any]] = {
    "standard": {"l1_coefficient": 3.0},
    "gated": {},
    "topk": {"k": 5},
    "abstopk": {"k": 5},
    "jumprelu": {"l0_coefficient": 2.0},
    "matching_pursuit": {},
    "batchtopk": {"k": 5.0},
    "matryoshka_batchtopk": {"k": 5.0, "matryoshka_widths": [12, 48]},
}
X = torch.randn(6, 32, generator=torch.Generator().manual_seed(4))


def training_sae(architecture: str, hook: str | None = HOOK, **options: Any) -> Any:
    kind, config = get_sae_training_class(architecture)
    metadata = SAEMetadata() if hook is None else SAEMetadata(hook_name=hook)
    sae = kind(config(d_in=32, d_sae=48, metadata=metadata, **{**TRAINING[architecture], **options}))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 4)
        if architecture == "jumprelu":
            sae.threshold.abs_()
        if "batchtopk" in architecture:
            sae.topk_threshold += 0.3
    return sae


@pytest.mark.parametrize("architecture", TRAINING)
def test_a_training_checkpoint_is_what_saelens_makes_of_it(tmp_path: Path, architecture: str) -> None:
    training = training_sae(architecture)
    training.save_model(tmp_path / "checkpoint")
    training.save_inference_model(tmp_path / "inference")
    expected = SAE.load_from_disk(tmp_path / "inference")
    found = load_sae(str(tmp_path / "checkpoint"))
    assert (type(found), sae_architecture(found), sae_hook_name(found)) == (type(expected), architecture, HOOK)
    assert is_checkpoint(json.loads((tmp_path / "checkpoint" / "cfg.json").read_text()))
    assert not is_checkpoint(json.loads((tmp_path / "inference" / "cfg.json").read_text()))
    assert {key: value.tolist() for key, value in found.state_dict().items()} == {
        key: value.tolist() for key, value in expected.state_dict().items()
    }
    assert found.cfg.to_dict() == expected.cfg.to_dict()
    assert torch.equal(encode_rows(found, X), encode_rows(expected, X))
    assert load_sae(str(tmp_path / "checkpoint"), dtype="bfloat16").W_dec.dtype == torch.bfloat16


@pytest.mark.parametrize("architecture", ["standard", "batchtopk"])
def test_a_scale_kept_beside_a_checkpoint_is_folded_in(tmp_path: Path, architecture: str) -> None:
    training = training_sae(architecture, normalize_activations="expected_average_only_in")
    training.save_model(tmp_path)
    with pytest.warns(UserWarning, match="hold the scale"):
        plain = load_sae(str(tmp_path))
    scaler = ActivationScaler()
    scaler.scaling_factor = 2.5
    scaler.save(str(tmp_path / "activation_scaler.json"))
    scaled = load_sae(str(tmp_path))
    latents, expected = encode_rows(scaled, X), encode_rows(plain, 2.5 * X)
    assert torch.equal(latents != 0, expected != 0)
    torch.testing.assert_close(scaled.decode(latents), plain.decode(expected) / 2.5, rtol=1e-5, atol=1e-5)


def test_a_whitening_kept_beside_a_checkpoint_is_folded_in(tmp_path: Path) -> None:
    training_sae("standard", normalize_activations="covariance_whitening").save_model(tmp_path)
    plain = load_sae(str(tmp_path))
    matrix = torch.eye(32, dtype=torch.float64) + 0.1 * torch.randn(32, 32, dtype=torch.float64)
    mean = torch.randn(32, dtype=torch.float64)
    scaler = ActivationScaler()
    scaler.whitening = ActivationWhitening(mean, matrix, torch.linalg.inv(matrix))
    scaler.save(str(tmp_path / "activation_scaler.json"))
    whitened = ((X.double() - mean) @ matrix).float()
    torch.testing.assert_close(
        encode_rows(load_sae(str(tmp_path)), X), encode_rows(plain, whitened), rtol=1e-4, atol=1e-4
    )


def test_the_runner_s_configuration_names_a_missing_hook(tmp_path: Path) -> None:
    training_sae("topk", hook=None).save_model(tmp_path)
    with pytest.raises(HookNotFoundError):
        sae_hook_name(load_sae(str(tmp_path)))
    (tmp_path / "runner_cfg.json").write_text(json.dumps({"hook_name": HOOK, "lr": 1e-3}))
    assert sae_hook_name(load_sae(str(tmp_path))) == HOOK
    assert sae_hook_name(load_sae(f"{tmp_path}@blocks.0.hook_mlp_out")) == "blocks.0.hook_mlp_out"


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    shapes = {"W_enc": (32, 48), "W_dec": (48, 32), "b_enc": (48,), "b_dec": (32,), "threshold": (48,)}
    return {name: np.abs(generator.normal(size=shape)).astype(np.float32) for name, shape in shapes.items()}


def write_npz(folder: Path, arrays: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "params.npz", **arrays)
    return folder / "params.npz"


@pytest.mark.parametrize(
    ("layout", "hook"),
    [
        ("gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82", "blocks.12.hook_resid_post"),
        ("gemma-scope-9b-pt-mlp/layer_3/width_16k/average_l0_9", "blocks.3.hook_mlp_out"),
        ("models--google--gemma-scope-2b-pt-att/snapshots/0a/layer_7/x", "blocks.7.attn.hook_z"),
        ("res/layer_0", "blocks.0.hook_resid_post"),
    ],
)
def test_gemma_scope_arrays_are_jumprelu_saes(
    tmp_path: Path, arrays: dict[str, np.ndarray], layout: str, hook: str
) -> None:
    file = write_npz(tmp_path / layout, {**{"w_dec" if k == "W_dec" else k: v for k, v in arrays.items()}})
    for name in (str(file), str(file.parent)):
        sae = load_sae(name)
        assert (sae_hook_name(sae), sae_architecture(sae), sae.W_dec.dtype) == (hook, "jumprelu", torch.float32)
        hidden = X.numpy() @ arrays["W_enc"] + arrays["b_enc"]
        expected = np.where(hidden > arrays["threshold"], np.maximum(hidden, 0), 0)
        np.testing.assert_allclose(encode_rows(sae, X).numpy(), expected, rtol=1e-5, atol=1e-5)
        assert sae.hook_z_reshaping_mode == hook.endswith("hook_z")


def test_the_hook_of_arrays_may_stand_beside_them_or_behind_their_name(
    tmp_path: Path, arrays: dict[str, np.ndarray]
) -> None:
    file = write_npz(tmp_path / "mine", arrays)
    with pytest.raises(HookNotFoundError, match="@<hook name>"):
        sae_hook_name(load_sae(str(file)))
    assert sae_hook_name(load_sae(f"{file}@{HOOK}")) == HOOK
    (file.parent / "cfg.json").write_text(json.dumps({"hook_name": HOOK, "apply_b_dec_to_input": True}))
    sae = load_sae(str(file.parent))
    assert sae_hook_name(sae) == HOOK
    assert sae.cfg.apply_b_dec_to_input


def test_embeddings_are_scaled_as_saelens_scales_them(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    sae = load_sae(str(write_npz(tmp_path / "gemma-scope-2b-pt-res/embedding/width_4k/average_l0_6", arrays)))
    assert sae_hook_name(sae) == "hook_embed"
    np.testing.assert_allclose(sae.W_enc.numpy() * 32**0.5, arrays["W_enc"], rtol=1e-6)
    np.testing.assert_allclose(sae.W_dec.numpy() / 32**0.5, arrays["W_dec"], rtol=1e-6)


def test_other_arrays_are_refused_by_their_names(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    del arrays["threshold"]
    with pytest.raises(SaeNotFoundError, match="lacks threshold and holds W_enc, W_dec, b_enc, b_dec, log_thr"):
        load_sae(str(write_npz(tmp_path, {**arrays, "log_thr": arrays["b_enc"]})))
    with pytest.raises(ShapeError, match=r"W_dec` was \(32, 48\)"):
        load_sae(str(write_npz(tmp_path, {**arrays, "W_dec": arrays["W_dec"].T, "threshold": arrays["b_enc"]})))


def test_nothing_is_unpickled(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    pickled = np.array([{"a": 1}], dtype=object)
    with pytest.raises(SaeNotFoundError, match="allow_pickle=False"):
        load_sae(str(write_npz(tmp_path, {**arrays, "threshold": pickled})))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no archive"])
def test_a_broken_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "params.npz").write_bytes(content)
    with pytest.raises(SaeNotFoundError, match="does not load"):
        load_sae(str(tmp_path))


def test_a_converter_reads_other_formats(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    save_file({key: torch.from_numpy(value) for key, value in arrays.items()}, tmp_path / "other.safetensors")

    def converter(path: Path, device: str, cfg_overrides: dict[str, Any] | None) -> tuple[dict[str, Any], Any]:
        archive = write_npz(tmp_path / "res" / "layer_2", arrays)
        assert (Path(path) / "other.safetensors").is_file()
        return gemma_scope_disk_loader(archive, device, cfg_overrides)

    assert sae_hook_name(load_sae(str(tmp_path), converter=converter)) == "blocks.2.hook_resid_post"
    with pytest.raises(AbsorbError, match="`converter`"):
        load_sae("my_saes:load", converter=converter)


@pytest.mark.parametrize(
    ("kind", "config"), [(JumpReLUTranscoder, JumpReLUTranscoderConfig), (SkipTranscoder, SkipTranscoderConfig)]
)
def test_transcoders_are_refused(tmp_path: Path, kind: Any, config: Any) -> None:
    metadata = SAEMetadata(hook_name="blocks.0.hook_mlp_in", hook_name_out="blocks.0.hook_mlp_out")
    kind(config(d_in=8, d_sae=12, d_out=8, apply_b_dec_to_input=False, metadata=metadata)).save_model(tmp_path)
    with pytest.raises(SaeArchitectureError, match=r"reconstructs its own input.*error term"):
        load_sae(str(tmp_path))


@pytest.mark.parametrize(
    "name",
    [
        "gemma-scope-2b-pt-transcoders/layer_0/width_16k/average_l0_76",
        "mwhanna-qwen3-4b-transcoders/layer_0",
        "mntss-gemma-2-2b-2.5m-clt-as-per-layer/layer_0",
        "gemma-scope-2-1b-pt-transcoders-all/layer_0_width_16k_l0_big_affine",
    ],
)
def test_transcoders_of_releases_are_refused_before_they_are_fetched(name: str) -> None:
    with pytest.raises(SaeArchitectureError, match="reconstructs its own input"):
        load_sae(name)


def test_transcoders_of_gemma_scope_are_refused_by_their_path(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    file = write_npz(tmp_path / "gemma-scope-2b-pt-transcoders/layer_1/width_16k/average_l0_9", arrays)
    with pytest.raises(SaeArchitectureError, match="transcoder reads one hook and writes another"):
        load_sae(str(file))
