"""The formats of SAELens's releases, from folders and files and from the hub's cache, with the hub out of reach."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import yaml
from damages import of_files, outcome
from sae_lens.loading.pretrained_sae_loaders import NAMED_PRETRAINED_SAE_LOADERS
from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory
from safetensors.torch import save_file

from absorb_pl.errors import HookNotFoundError, SaeArchitectureError, SaeNotFoundError
from absorb_pl.saes import (
    decode_rows,
    encode_rows,
    expand_sae_names,
    list_saes,
    load_sae,
    sae_architecture,
    sae_hook_name,
    sae_identity,
)

D, L, K = 12, 24, 5
X = torch.randn(7, D, generator=torch.Generator().manual_seed(1))


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape) + len(shape)))


ENC, DEC, BE, BD = drawn(D, L), drawn(L, D), drawn(L) / 2, drawn(D) / 2
THRESHOLD = drawn(L).abs()
SCALE = 2.5  # of the activations that an SAE was trained on
NORM = D**0.5 / SCALE


def write_json(file: Path, content: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))


def write_tensors(file: Path, **tensors: torch.Tensor) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    contiguous = {name.replace("__", "."): tensor.clone().contiguous() for name, tensor in tensors.items()}
    if file.suffix == ".safetensors":
        save_file(contiguous, file)
    else:
        torch.save(contiguous, file)


LINEAR = {"encoder__weight": ENC.T, "decoder__weight": DEC.T, "encoder__bias": BE, "decoder__bias": BD}


def gemma_2(root: Path) -> None:
    root.mkdir(parents=True)
    arrays: dict[str, Any] = {"W_enc": ENC, "W_dec": DEC, "b_enc": BE, "b_dec": BD, "threshold": THRESHOLD}
    np.savez(root / "params.npz", **{name: tensor.numpy() for name, tensor in arrays.items()})


def gemma_3(root: Path) -> None:
    at = "model.layers.13.output"
    said = {
        "hf_hook_point_in": at,
        "hf_hook_point_out": at,
        "architecture": "jump_relu",
        "model_name": "gemma-v3-1b-pt",
    }
    write_json(root / "config.json", {**said, "width": L, "l0": 9, "affine_connection": False, "type": "sae"})
    tensors = {"w_enc": ENC, "w_dec": DEC, "b_enc": BE, "b_dec": BD, "threshold": THRESHOLD}
    write_tensors(root / "params.safetensors", **tensors)


def dictionary_learning(kind: str) -> Callable[[Path], None]:
    plain = {"encoder__weight": ENC.T, "decoder__weight": DEC.T}
    named = {"W_enc": ENC, "W_dec": DEC, "b_enc": BE, "b_dec": BD}
    tensors = {
        "AutoEncoder": {**plain, "encoder__bias": BE, "bias": BD},
        "AutoEncoderTopK": {**plain, "encoder__bias": BE, "b_dec": BD, "threshold": torch.tensor(0.2)},
        "BatchTopKSAE": {**plain, "encoder__bias": BE, "b_dec": BD, "threshold": torch.tensor(0.4)},
        "GatedAutoEncoder": {**plain, "gate_bias": BE, "mag_bias": BE - 0.1, "r_mag": BE / 3, "decoder_bias": BD},
        "JumpReluAutoEncoder": {**named, "threshold": THRESHOLD},
        "MatryoshkaBatchTopKSAE": {
            "W_enc": ENC,
            "W_dec": DEC,
            "b_enc": BE,
            "b_dec": BD,
            "threshold": torch.tensor(0.4),
        },
    }[kind]

    def write(root: Path) -> None:
        trainer = {"dict_class": kind, "layer": 12, "activation_dim": D, "dict_size": L, "lm_name": "google/gemma-2-2b"}
        trainer |= {"k": K} if "TopK" in kind else {}
        write_json(root / "config.json", {"trainer": trainer, "buffer": {"ctx_len": 128}})
        write_tensors(root / "ae.pt", **tensors)

    return write


def llama_scope(root: Path) -> None:
    hook = "blocks.3.hook_resid_post"
    said = {"d_model": D, "d_sae": L, "hook_point_in": hook, "hook_point_out": hook, "act_fn": "jumprelu"}
    norms = {"in": NORM, "out": NORM}
    said |= {"jump_relu_threshold": 0.3, "norm_activation": "dataset-wise", "dataset_average_activation_norm": norms}
    write_json(root / "hyperparams.json", said)
    write_tensors(root / "checkpoints" / "final.safetensors", **LINEAR)


def openmoss(root: Path) -> None:
    hook = "blocks.0.hook_resid_post"
    said = {"d_model": D, "expansion_factor": L // D, "hook_point_in": hook, "hook_point_out": hook}
    write_json(root / "config.json", said)
    norm = {f"dataset_average_activation_norm__{hook.replace('.', '__')}": torch.tensor(NORM)}
    write_tensors(root / "sae_weights.safetensors", **LINEAR, log_jumprelu_threshold=THRESHOLD.log(), **norm)


def linear(root: Path) -> None:
    write_tensors(root, **LINEAR)


def goodfire(root: Path) -> None:
    write_tensors(root, **{name.replace("__", "_linear__"): tensor for name, tensor in LINEAR.items()})


def qwen(root: Path) -> None:
    write_tensors(root, W_enc=ENC.T, W_dec=DEC.T, b_enc=BE, b_dec=BD)


def connor(root: Path) -> None:
    said = {"act_size": D, "dict_size": L, "act_name": "blocks.0.attn.hook_z"}
    write_json(root.with_name(root.name.split(".pt")[0] + "_cfg.json"), said)
    write_tensors(root, W_enc=ENC, W_dec=DEC, b_enc=BE, b_dec=BD)


def sparsify(signed: bool) -> Callable[[Path], None]:
    def write(root: Path) -> None:
        said = {"d_in": D, "num_latents": 0, "expansion_factor": 2, "normalize_decoder": True, "k": K, "signed": signed}
        write_json(root / "cfg.json", said)
        tensors = {"encoder__weight": ENC.T, "encoder__bias": BE, "W_dec": DEC, "b_dec": BD}
        write_tensors(root / "sae.safetensors", **tensors)

    return write


def temporal(root: Path) -> None:
    sae = {"exp_factor": L // D, "n_heads": 2, "n_attn_layers": 1, "bottleneck_factor": 3, "tied_weights": True}
    sae |= {"sae_diff_type": "topk", "kval_topk": K, "scaling_factor": 0.7}
    root.mkdir(parents=True)
    (root / "conf.yaml").write_text(yaml.dump({"llm": {"dimin": D}, "data": {"dtype": "float32"}, "sae": sae}))
    attention = {}
    for name, rows in {"k_ctx": L // 3, "q_target": L // 3, "v_ctx": L, "c_proj": L}.items():
        attention |= {f"attn_layers__0__{name}__weight": drawn(rows, L), f"attn_layers__0__{name}__bias": drawn(rows)}
    write_tensors(root / "latest_ckpt.safetensors", D=DEC, b=BD, **attention)


def relu(hidden: torch.Tensor) -> torch.Tensor:
    return hidden.clamp(min=0)


def above(threshold: torch.Tensor | float) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda hidden: torch.where(hidden > threshold, hidden.clamp(min=0), 0)


def largest(hidden: torch.Tensor, size: Callable[[torch.Tensor], torch.Tensor] = relu) -> torch.Tensor:
    kept = torch.zeros_like(hidden, dtype=torch.bool).scatter(1, size(hidden).topk(K).indices, True)
    return torch.where(kept, hidden if size is torch.abs else relu(hidden), 0)


def gated(hidden: torch.Tensor) -> torch.Tensor:
    magnitude = (hidden - BE) * (BE / 3).exp() + BE - 0.1
    return (hidden > 0) * relu(magnitude)


class Case(NamedTuple):
    """A format: where its files lie in their repository, and what its latents are by definition."""

    write: Callable[[Path], None]
    path: str
    hook_name: str
    architecture: str
    function: Callable[[torch.Tensor], torch.Tensor]
    subtracts: bool = False
    scale: float = 1.0


RES = "blocks.{}.hook_resid_post".format
LEARNT = "saebench_gemma-2-2b/resid_post_layer_12/trainer_0"
CASES = {
    "gemma_2": Case(
        gemma_2, "gemma-scope-2b-pt-res/layer_5/width_16k/average_l0_9", RES(5), "jumprelu", above(THRESHOLD)
    ),
    "gemma_3": Case(
        gemma_3, "gemma-scope-2-1b-pt/resid_post/layer_13_width_16k_l0_small", RES(13), "jumprelu", above(THRESHOLD)
    ),
    "AutoEncoder": Case(dictionary_learning("AutoEncoder"), LEARNT, RES(12), "standard", relu, True),
    "AutoEncoderTopK": Case(dictionary_learning("AutoEncoderTopK"), LEARNT, RES(12), "topk", largest, True),
    "BatchTopKSAE": Case(dictionary_learning("BatchTopKSAE"), LEARNT, RES(12), "jumprelu", above(0.4), True),
    "GatedAutoEncoder": Case(dictionary_learning("GatedAutoEncoder"), LEARNT, RES(12), "gated", gated, True),
    "JumpReluAutoEncoder": Case(
        dictionary_learning("JumpReluAutoEncoder"), LEARNT, RES(12), "jumprelu", above(THRESHOLD)
    ),
    "MatryoshkaBatchTopKSAE": Case(
        dictionary_learning("MatryoshkaBatchTopKSAE"), LEARNT, RES(12), "jumprelu", above(0.4), True
    ),
    "llama_scope": Case(
        llama_scope, "Llama3_1-8B-Base-L3R-8x", RES(3), "jumprelu", above(0.3 * SCALE), scale=SCALE
    ),
    "llama_scope_r1_distill": Case(
        openmoss, "Llama-Scope-R1-Distill/x/L0R", RES(0), "jumprelu", above(THRESHOLD), scale=SCALE
    ),
    "deepseek_r1": Case(linear, "r1/DeepSeek-R1-Distill-Llama-8B-SAE-l19.pt", RES(19), "standard", relu),
    "goodfire": Case(goodfire, "goodfire/Llama-3.1-8B-Instruct-SAE-l19.pth", RES(19), "standard", relu),
    "qwen_scope": Case(qwen, "SAE-Res-Qwen3-1.7B-Base-W32K-L0_5/layer4.sae.pt", RES(4), "topk", largest),
    "connor_rob_hook_z": Case(
        connor, "attn-saes/gpt2-small_L0_Hcat_z_v5.pt", "blocks.0.attn.hook_z", "standard", relu, True
    ),
    "sparsify": Case(sparsify(False), "sae-pythia/layers.7", RES(7), "topk", largest, True),
    "sparsify_signed": Case(
        sparsify(True), "sae-pythia/layers.7.mlp", "blocks.7.hook_mlp_out", "abstopk",
        lambda hidden: largest(hidden, torch.abs), True,
    ),
}  # fmt: skip


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Case, Path]:
    """A format and where its files were written."""
    found = CASES[request.param]
    found.write(tmp_path / found.path)
    return found, tmp_path / found.path


def test_a_format_is_read_as_it_is_defined(case: tuple[Case, Path]) -> None:
    wanted, path = case
    sae = load_sae(str(path))
    assert (sae_hook_name(sae), sae_architecture(sae), sae.W_dec.dtype) == (
        wanted.hook_name, wanted.architecture, torch.float32
    )  # fmt: skip
    x = wanted.scale * X
    latents = wanted.function((x - BD if wanted.subtracts else x) @ ENC + BE)
    torch.testing.assert_close(encode_rows(sae, X), latents, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(decode_rows(sae, latents), (latents @ DEC + BD) / wanted.scale, rtol=1e-5, atol=1e-5)
    assert 0.1 < (latents != 0).float().mean() < 0.9
    assert sae.hook_z_reshaping_mode == wanted.hook_name.endswith("hook_z")
    assert sae_hook_name(load_sae(f"{path}@blocks.1.hook_mlp_out")) == "blocks.1.hook_mlp_out"


def test_a_format_is_listed_by_its_shapes(case: tuple[Case, Path]) -> None:
    wanted, path = case
    row = list_saes([str(path)]).iloc[0]
    assert (row["hook_name"], row["d_sae"], row["architecture"]) == (wanted.hook_name, L, wanted.architecture)
    pattern = f"{path.parent}/*{path.suffix}" if path.is_file() else f"{path.parent}/{path.name[:4]}*"
    assert str(path) in expand_sae_names([pattern])


def test_a_folder_with_one_file_or_the_file_of_a_folder_will_do(case: tuple[Case, Path]) -> None:
    path = case[1]
    others = [path.parent] if path.is_file() else [file for file in path.glob("*") if "json" not in file.suffix]
    for other in (other for other in others if other.name != "checkpoints"):
        assert sae_identity(load_sae(str(other))) == sae_identity(load_sae(str(path)))


def test_damaged_files_of_a_format_are_refused_by_name(case: tuple[Case, Path], tmp_path: Path) -> None:
    """All but what is no damage: Gemma Scope 2 without its configuration, and a short file cut behind its end."""
    path = case[1].relative_to(tmp_path)
    whole, outcomes = tmp_path / path.parts[0], {}
    for file in [found.relative_to(whole) for found in whole.rglob("*") if found.is_file()]:
        for _, kind, damage in of_files([file]):
            broken = Path(shutil.copytree(whole, tmp_path / "broken" / path.parts[0]))
            before = (broken / file).read_bytes()
            damage(broken / file)
            if not (broken / file).is_file() or (broken / file).read_bytes() != before:
                outcomes[file.name, kind] = outcome(load_sae, broken.parent / path)
                assert outcome(lambda name: list_saes([name]), broken.parent / path) in ("taken", "refused by name")
            shutil.rmtree(broken)
    taken = {damage for damage, found in outcomes.items() if found == "taken"}
    assert taken == ({("config.json", "missing")} if path.name.startswith("layer_13_") else set())
    assert set(outcomes.values()) <= {"taken", "refused by name"}
    assert len(outcomes) > 15


def test_a_temporal_sae_is_read_whole(tmp_path: Path) -> None:
    temporal(tmp_path / "layer_12" / "temporal")
    sae: Any = load_sae(str(tmp_path / "layer_12" / "temporal"))
    assert (sae_hook_name(sae), sae_architecture(sae), sae.cfg.kval_topk) == (RES(12), "temporal", K)
    assert sae.cfg.activation_normalization_factor == 0.7
    assert torch.equal(sae.W_dec, DEC)
    assert list_saes([str(tmp_path / "layer_12" / "temporal")])["architecture"].tolist() == ["temporal"]


# Formats whose files SAELens takes in any size; the others' widths stand in its code.
RELEASES = {
    "gemma_3": "gemma-scope-2-1b-pt-res/layer_13_width_16k_l0_small",
    "AutoEncoderTopK": "sae_bench_gemma-2-2b_topk_width-2pow12_date-1109/blocks.12.hook_resid_post__trainer_0",
    "connor_rob_hook_z": "gpt2-small-hook-z-kk/blocks.0.hook_z",
    "llama_scope": "llama_scope_lxr_8x/l3r_8x",
    "llama_scope_r1_distill": "llama_scope_r1_distill/l0r_800m_slimpajama",
    "temporal": "temporal-sae-gemma-2-2b/blocks.12.hook_resid_post",
}


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Gives where a release's SAE lies in a cache of the hub's; nothing else is there."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))

    def place(name: str) -> Path:
        release, _, sae_id = name.partition("/")
        found = get_pretrained_saes_directory()[release]
        repository = tmp_path / "hub" / f"models--{found.repo_id.replace('/', '--')}"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text("0" * 40)
        return repository / "snapshots" / ("0" * 40) / found.saes_map[sae_id]

    return place


@pytest.mark.parametrize("kind", RELEASES)
def test_a_release_in_the_hub_s_cache_is_the_same_sae_as_its_folder(
    hub_cache: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    release, _, sae_id = RELEASES[kind].partition("/")
    known = get_pretrained_saes_directory()[release]
    if "llama" in kind:
        monkeypatch.setitem(known.norm_scaling_factor, sae_id, SCALE)
    path = hub_cache(RELEASES[kind])
    (temporal if kind == "temporal" else CASES[kind].write)(path)
    by_name: Any = load_sae(RELEASES[kind])
    by_path: Any = load_sae(str(path))
    assert sae_hook_name(by_name) == sae_hook_name(by_path)
    assert sae_architecture(by_name) == sae_architecture(by_path)
    assert {key: value for key, value in by_name.cfg.to_dict().items() if key != "metadata"} == {
        key: value for key, value in by_path.cfg.to_dict().items() if key != "metadata"
    }
    for key, weight in by_name.state_dict().items():
        torch.testing.assert_close(by_path.state_dict()[key], weight, rtol=1e-6, atol=1e-6)
    encode = (lambda sae, x: sae.encode(x[None])) if kind == "temporal" else encode_rows
    assert torch.equal(encode(by_name, X) != 0, encode(by_path, X) != 0)


def test_gemma_scope_2_loads_without_its_configuration(hub_cache: Callable[[str], Path]) -> None:
    name = RELEASES["gemma_3"]
    path = hub_cache(name)
    gemma_3(path)
    (path / "config.json").unlink()
    for asked in (name, str(path)):
        assert sae_hook_name(load_sae(asked)) == RES(13)
    (path / "params.safetensors").unlink()
    with pytest.raises(SaeNotFoundError, match="local cache does not hold the SAE"):
        load_sae(name)


def test_every_loader_of_saelens_is_thought_of() -> None:
    read = {"sae_lens", "dictionary_learning_1", "temporal", *CASES}
    refused = {"gemma_2_transcoder", "mwhanna_transcoder", "mntss_clt_layer_transcoder"}
    assert set(NAMED_PRETRAINED_SAE_LOADERS) <= read | refused


def transcoding_gemma_3(root: Path, **said: Any) -> None:
    gemma_3(root)
    write_json(root / "config.json", {**json.loads((root / "config.json").read_text()), **said})


def layered(root: Path) -> None:
    write_tensors(root / "layer_3.safetensors", W_enc=ENC.T, W_dec=DEC, b_enc=BE, b_dec=BD)


def cross_layer(root: Path) -> None:
    write_tensors(root / "W_enc_3.safetensors", W_enc_3=ENC.T, b_enc_3=BE, b_dec_3=BD)


def transcoding_llama(root: Path) -> None:
    llama_scope(root)
    said = json.loads((root / "hyperparams.json").read_text())
    write_json(root / "hyperparams.json", {**said, "hook_point_out": "blocks.3.hook_mlp_out"})


def transcoding_sparsify(root: Path) -> None:
    sparsify(False)(root)
    write_json(root / "cfg.json", {**json.loads((root / "cfg.json").read_text()), "transcode": True})


@pytest.mark.parametrize(
    "write",
    [
        lambda root: transcoding_gemma_3(root, hf_hook_point_out="model.layers.13.post_feedforward_layernorm.output"),
        lambda root: transcoding_gemma_3(root, affine_connection=True),
        lambda root: transcoding_gemma_3(root, type="transcoder"),
        lambda root: gemma_3(root / "transcoder_all" / "layer_3_width_16k_l0_big"),
        layered,
        cross_layer,
        transcoding_llama,
        transcoding_sparsify,
    ],
)
def test_transcoders_on_disk_are_refused(tmp_path: Path, write: Callable[[Path], None]) -> None:
    write(tmp_path / "sae")
    holding = next(path.parent for path in sorted((tmp_path / "sae").rglob("*.*")) if path.parent.name != "checkpoints")
    with pytest.raises(SaeArchitectureError, match="reads one hook and writes another"):
        load_sae(str(holding))


def edited(write: Callable[[Path], None], file: str, change: Callable[[dict[str, Any]], object]) -> Any:
    def made(root: Path) -> None:
        write(root)
        said = json.loads((root / file).read_text())
        change(said)
        write_json(root / file, said)

    return made


learnt = dictionary_learning("AutoEncoder")
UNREADABLE = {
    "another dictionary class": (
        edited(learnt, "config.json", lambda said: said["trainer"].update(dict_class="Moe")),
        SaeArchitectureError, "dict_class` was 'Moe', expected one of AutoEncoder",
    ),
    "another function": (
        edited(llama_scope, "hyperparams.json", lambda said: said.update(act_fn="tanh")),
        SaeArchitectureError, "act_fn` was 'tanh', expected one of jumprelu",
    ),
    "another scale": (
        edited(llama_scope, "hyperparams.json", lambda said: said.update(norm_activation="token-wise")),
        SaeArchitectureError, "norm_activation` was 'token-wise'",
    ),
    "groups": (
        edited(sparsify(False), "cfg.json", lambda said: said.update(activation="groupmax")),
        SaeArchitectureError, "activation` was 'groupmax'",
    ),
    "another Gemma Scope": (
        edited(gemma_3, "config.json", lambda said: said.update(architecture="topk")),
        SaeArchitectureError, "architecture` was 'topk'",
    ),
    "no trainer": (
        edited(learnt, "config.json", lambda said: said.pop("trainer")),
        SaeNotFoundError, "it lacks 'trainer'",
    ),
    "no latents": (
        lambda root: write_tensors(root / "a-l3.pt", other=ENC),
        SaeNotFoundError, "it lacks encoder.weight and holds other",
    ),
    "no number of latents that fire": (
        lambda root: qwen(root / "layer4.sae.pt"), SaeNotFoundError, "how many latents fire"
    ),
    "several": (
        lambda root: [qwen(root / f"layer{i}.sae.pt") for i in range(2)], SaeNotFoundError, "such as .*layer0.sae.pt"
    ),
    "a bias without weights": (
        lambda root: write_tensors(root / "params.safetensors", b_enc=BE), SaeNotFoundError, "lacks W_enc, W_dec, b_dec"
    ),
    "a language model": (
        lambda root: write_tensors(root / "model.safetensors", a=BE), SaeNotFoundError, "no cfg.json and no sae_weights"
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", UNREADABLE)
def test_what_cannot_be_read_is_refused_by_name(tmp_path: Path, damage: str) -> None:
    write, error, message = UNREADABLE[damage]
    write(tmp_path / "sae")
    with pytest.raises(error, match=message):
        load_sae(str(tmp_path / "sae"))


def test_a_pickle_s_code_does_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (tmp_path / "ran").write_text, ("x",)

    torch.save({"encoder.weight": Evil()}, tmp_path / "sae-l3.pt")
    with pytest.raises(SaeNotFoundError, match="does not load"):
        load_sae(str(tmp_path / "sae-l3.pt"))
    assert not (tmp_path / "ran").exists()


def test_a_hook_that_the_files_do_not_name_is_asked_for(tmp_path: Path) -> None:
    change = edited(learnt, "config.json", lambda said: said["trainer"].update(submodule_name="mlp_layer_3"))
    change(tmp_path / "sae")
    with pytest.raises(HookNotFoundError, match="@<hook name>"):
        sae_hook_name(load_sae(str(tmp_path / "sae")))
