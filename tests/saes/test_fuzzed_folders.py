"""Folders of SAEs and language models with generated damages: each is refused by a named error, none is taken."""

import json
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from damages import of_files, outcome
from safetensors.torch import load_file, save_file

from absorb_pl.models import load_language_model
from absorb_pl.saes import load_sae

GOLDEN = Path(__file__).parents[1] / "golden" / "gpt2-micro"
Damage = Callable[[Path], object]


def change_tensors(file: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(file)
    change(tensors)
    save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, file, metadata={"format": "pt"})


def spoilt(tensor: torch.Tensor, value: float) -> torch.Tensor:
    tensor.view(-1)[-1] = value
    return tensor


OF_TENSORS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "a number": lambda tensor: tensor.sum(),
    "one row less": lambda tensor: tensor[1:],
    "one axis more": lambda tensor: tensor[None],
    "flat": lambda tensor: torch.cat([tensor.flatten(), tensor.flatten()[:1]]),
    "without rows": lambda tensor: tensor[:0],
    "NaN": lambda tensor: spoilt(tensor, float("nan")),
    "infinite": lambda tensor: spoilt(tensor, float("-inf")),
}
OF_SAE_TENSORS = {
    **OF_TENSORS,
    "whole numbers": lambda tensor: tensor.to(torch.int32),
    "true or false": lambda tensor: tensor > 0,
    "complex": lambda tensor: tensor.to(torch.complex64),
}


def of_tensors(
    file: Path, names: list[str], changes: dict[str, Callable[[torch.Tensor], torch.Tensor]]
) -> Iterator[tuple[str, Damage]]:
    def apply(folder: Path, name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        change_tensors(folder / file.name, lambda tensors: tensors.update({name: change(tensors[name])}))

    for name in names:
        yield f"{name} missing", lambda folder, name=name: change_tensors(folder / file.name, lambda t: t.pop(name))
        for kind, change in changes.items():
            yield f"{name} {kind}", partial(apply, name=name, change=change)


def set_value(folder: Path, file: str, keys: tuple[str, ...], value: Any) -> None:
    said = inner = json.loads((folder / file).read_text())
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    (folder / file).write_text(json.dumps(said))


WRONG = {
    "null": None, "a word": "wide", "negative": -1, "zero": 0, "a fraction": 1.5, "a list": [1], "a mapping": {"a": 1},
    "true": True, "huge": 2**40,
}  # fmt: skip


def of_settings(file: str, settings: dict[tuple[str, ...], tuple[str, ...]]) -> Iterator[tuple[str, Damage]]:
    """Wrong values of settings; those named beside a setting are right for it."""
    for keys, right in settings.items():
        for kind, value in WRONG.items():
            if kind not in right:
                yield f"{'.'.join(keys)} {kind}", partial(set_value, file=file, keys=keys, value=value)


SAE = GOLDEN / "sae_standard_A"
SAE_SETTINGS: dict[tuple[str, ...], tuple[str, ...]] = {
    ("d_in",): (),
    ("d_sae",): (),
    ("apply_b_dec_to_input",): ("true",),
    ("normalize_activations",): (),
    ("reshape_activations",): (),
    ("architecture",): (),
    ("metadata",): (),
    ("metadata", "sae_lens_version"): (),
    ("metadata", "hook_name"): ("null", "a word"),
    ("metadata", "prepend_bos"): ("null", "true"),
    ("metadata", "hook_head_index"): ("null", "negative", "zero", "huge"),
    ("metadata", "seqpos_slice"): ("null", "a list"),
    ("metadata", "context_size"): ("null", "negative", "zero", "huge"),
    ("metadata", "model_from_pretrained_kwargs"): ("null", "a mapping"),
}


def sae_damages() -> dict[str, Damage]:
    made: dict[str, Damage] = {
        f"{file} {kind}": lambda folder, file=file, change=change: change(folder / file)
        for file, kind, change in of_files(sorted(SAE.iterdir()))
    }
    made |= of_tensors(SAE / "sae_weights.safetensors", ["W_enc", "W_dec", "b_enc", "b_dec"], OF_SAE_TENSORS)
    made |= of_settings("cfg.json", SAE_SETTINGS)
    return made


MODEL_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
MODEL_SETTINGS: dict[tuple[str, ...], tuple[str, ...]] = {
    ("n_layer",): ("huge",),  # so many layers would be made one by one
    ("n_head",): (),
    ("n_embd",): (),
    ("n_positions",): (),
    ("vocab_size",): (),
    ("activation_function",): (),
    ("model_type",): (),
    ("layer_norm_epsilon",): ("zero", "a fraction", "huge"),
}


def model_damages() -> dict[str, Damage]:
    made: dict[str, Damage] = {
        f"{file} {kind}": lambda folder, file=file, change=change: change(folder / file)
        for file, kind, change in of_files([GOLDEN / file for file in MODEL_FILES[:3]])
    }
    names = ["transformer.wte.weight", "transformer.h.2.attn.c_attn.weight", "transformer.ln_f.bias", "lm_head.weight"]
    made |= of_tensors(GOLDEN / "model.safetensors", names, OF_TENSORS)
    made |= of_settings("config.json", MODEL_SETTINGS)
    made["fewer layers"] = partial(set_value, file="config.json", keys=("n_layer",), value=3)
    made["more layers"] = partial(set_value, file="config.json", keys=("n_layer",), value=5)
    made["shorter context"] = partial(set_value, file="config.json", keys=("n_positions",), value=150)
    del made["config.json without its last byte"]  # a line feed
    return made


SAE_DAMAGES, MODEL_DAMAGES = sae_damages(), model_damages()


@pytest.mark.parametrize("damage", SAE_DAMAGES)
def test_a_damaged_sae_is_refused_by_name(tmp_path: Path, damage: str) -> None:
    folder = Path(shutil.copytree(SAE, tmp_path / "sae"))
    SAE_DAMAGES[damage](folder)
    assert outcome(load_sae, folder) == "refused by name"


@pytest.mark.parametrize("damage", MODEL_DAMAGES)
def test_a_damaged_model_is_refused_by_name(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for file in MODEL_FILES:
        shutil.copyfile(GOLDEN / file, folder / file)
    MODEL_DAMAGES[damage](folder)
    assert outcome(load_language_model, folder) == "refused by name"


def test_whole_folders_are_taken(tmp_path: Path) -> None:
    assert outcome(load_sae, Path(shutil.copytree(SAE, tmp_path / "sae"))) == "taken"
    (tmp_path / "model").mkdir()
    for file in MODEL_FILES:
        shutil.copyfile(GOLDEN / file, tmp_path / "model" / file)
    assert outcome(load_language_model, tmp_path / "model") == "taken"
    assert min(len(SAE_DAMAGES), len(MODEL_DAMAGES)) > 150


@pytest.mark.parametrize("k", [0, -1, 49, "five", 2.5, True, None, [5]])
@pytest.mark.parametrize("architecture", ["topk", "abstopk"])
def test_a_senseless_k_is_refused_by_name(
    make_sae: Callable[..., Any], tmp_path: Path, architecture: str, k: Any
) -> None:
    make_sae(architecture).save_model(tmp_path)
    assert outcome(load_sae, tmp_path) == "taken"
    set_value(tmp_path, "cfg.json", ("k",), k)
    assert outcome(load_sae, tmp_path) == "refused by name"
