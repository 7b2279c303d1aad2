"""Models divided among two pretended GPUs: the figures of an undivided one bit for bit, and which cannot be divided."""

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from accelerate import infer_auto_device_map
from pretended_gpu import PRETENDED
from sae_lens import StandardSAE, StandardSAEConfig
from tiny_models import ARCHITECTURES, save_tiny_model
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM

from absorb_pl.attribution import (
    calculate_feature_attribution,
    calculate_individual_feature_ablations,
    calculate_integrated_gradient_attribution_patching,
    word_ablations,
    word_integrated_gradients,
)
from absorb_pl.data import ActivationCollector
from absorb_pl.data.residuals import read_contexts, read_residuals
from absorb_pl.engine import compute_prefix
from absorb_pl.errors import AbsorbError
from absorb_pl.evaluators import SpellingSweep
from absorb_pl.models import divided, load_language_model
from absorb_pl.models.identity import model_identity
from absorb_pl.models.placement import borrowed
from absorb_pl.study import run_study
from absorb_pl.words import TokenizedPrompts

pytestmark = pytest.mark.usefixtures("pretended_gpus")

FIRST, SECOND = f"{PRETENDED}:0", f"{PRETENDED}:1"
HOOKS = [f"blocks.{block}.hook_resid_post" for block in (0, 2)]  # one on each device
REFUSED = {"Falcon", "Mamba", "Mamba 2"}
# Learned positions and rotary ones, tied embeddings and others, windows, softcaps, experts; and one in whole sequences.
DIVIDED = ["GPT-2", "GPT-NeoX, Pythia", "OPT", "Llama", "Gemma 2", "Gemma 3", "Qwen3", "Mixtral", "GPT-J"]


def halves(config: Any) -> dict[str, str]:
    """accelerate's own division of a model into two parts, the embeddings in the first."""
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config)
    empty.tie_weights()
    size = sum(weight.nbytes for weight in empty.parameters())
    limits: Any = {0: int(0.65 * size), 1: 3 * size}
    found = infer_auto_device_map(empty, limits, no_split_module_classes=list(empty._no_split_modules))
    return {name: f"pretend:{number}" for name, number in found.items()}


@pytest.fixture
def divide(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Loads a folder's model divided, as on a machine with two GPUs."""

    def load(folder: str, **settings: Any) -> Any:
        device_map = halves(transformers.AutoConfig.from_pretrained(folder))
        monkeypatch.setattr(divided, "resolve_device_map", lambda *_: (device_map, None))
        return load_language_model(folder, n_devices=2, **settings)

    return load


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory, golden: Path) -> Callable[[str], str]:
    """The folder of an architecture's tiny model."""
    made: dict[str, str] = {}

    def save(architecture: str) -> str:
        if architecture not in made:
            folder = tmp_path_factory.mktemp("tiny")
            save_tiny_model(architecture, folder, golden / "gpt2-micro")
            made[architecture] = str(folder)
        return made[architecture]

    return save


def sae_of(model: Any) -> StandardSAE:
    sae = StandardSAE(StandardSAEConfig(d_in=model.cfg.d_model, d_sae=48, device="cpu"))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in sae.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3)
    return sae.to(FIRST)


def prompts() -> TokenizedPrompts:
    ids = torch.randint(2, 290, (5, 14), generator=torch.Generator().manual_seed(0)).to(FIRST)
    real = torch.ones_like(ids, dtype=torch.bool)
    return TokenizedPrompts(ids, real, torch.full((5,), 14), torch.tensor([4, 8, 8, 9, 11]))


def margin(logits: Tensor, *_: Any) -> Tensor:
    return logits[..., 7] - logits[..., 40]


@pytest.mark.parametrize("architecture", DIVIDED)
def test_scores_are_those_of_an_undivided_model(architecture: str, divide: Any, folder_of: Any):
    folder = folder_of(architecture)
    parted, whole = divide(folder), load_language_model(folder, device=FIRST)
    assert set(map(str, divided.devices_of(parted))) == {FIRST, SECOND}
    assert model_identity(parted) == model_identity(whole)
    sae, asked = sae_of(whole), prompts()
    for hook in HOOKS:
        found = [compute_prefix(model, asked, [hook]) for model in (parted, whole)]
        assert found[0].engine == found[1].engine == ("whole" if architecture == "GPT-J" else "suffix")
        scores = [
            word_integrated_gradients(model, sae, asked, margin, hook_name=hook, prefix=prefix).scores
            for model, prefix in zip((parted, whole), found, strict=True)
        ]
        assert str(scores[0].device) == FIRST
        assert scores[0].equal(scores[1])
        assert scores[0].any()


@pytest.mark.parametrize("architecture", ["GPT-2", "Gemma 2"])
def test_all_that_runs_a_model(architecture: str, divide: Any, folder_of: Any):
    folder = folder_of(architecture)
    parted, whole = divide(folder), load_language_model(folder, device=FIRST)
    sae, asked = sae_of(whole), prompts()
    ids, last = asked.input_ids, lambda logits: margin(logits[:, -1])

    def figures(model: Any) -> list[Tensor]:
        saes, position = dict.fromkeys(HOOKS, sae), {HOOKS[1]: sae}
        attributed = calculate_feature_attribution(model, ids, lambda logits: last(logits).sum(), include_saes=saes)
        patched = calculate_integrated_gradient_attribution_patching(
            model, ids, last, patch_indices=-3, include_saes=position, interpolation_steps=2, batch_size=4
        )
        sae.cfg.metadata.hook_name = HOOKS[1]
        ablated = calculate_individual_feature_ablations(model, ids[:1], last, sae, -5).ablation_scores
        words = word_ablations(model, sae, asked, margin, hook_name=HOOKS[1]).scores
        rows = read_residuals(model, ids, asked.attention_mask, asked.word_positions, HOOKS)
        contexts = read_contexts(model, ids, HOOKS)
        return [
            *attributed.sae_feature_attributions.values(),
            *patched.sae_feature_attributions.values(),
            torch.tensor(list(ablated.values())),
            words,
            *rows.values(),
            *contexts.values(),
        ]

    for found, expected in zip(figures(parted), figures(whole), strict=True):
        assert found.cpu().equal(expected.cpu())
        assert found.cpu().any()


def test_a_model_is_processed_where_it_is(divide: Any, folder_of: Any):
    folder, steps = folder_of("Llama"), ["fold_ln", "center_unembed"]
    ids = prompts().input_ids
    parted, whole = divide(folder, processing=steps), load_language_model(folder, device=FIRST, processing=steps)
    assert set(map(str, divided.devices_of(parted))) == {FIRST, SECOND}
    with torch.no_grad():
        found, expected = (model.original_model(ids).logits for model in (parted, whole))
        raw = load_language_model(folder, device=FIRST).original_model(ids).logits
    assert found.cpu().equal(expected.cpu())
    assert not found.cpu().equal(raw.cpu())


def test_a_divided_model_stays_where_it_is(divide: Any, folder_of: Any):
    model = divide(folder_of("GPT-2"))
    before = [str(weight.device) for weight in model.parameters()]
    torch.nn.ModuleList([model]).to("cpu")
    with borrowed(model):
        torch.nn.ModuleList([model]).to(SECOND)
    assert [str(weight.device) for weight in model.parameters()] == before
    assert set(before) == {FIRST, SECOND}
    model.to(torch.float64)
    assert {weight.dtype for weight in model.parameters()} == {torch.float64}


def test_a_model_that_is_given_stays_too(folder_of: Any):
    folder = folder_of("Llama")
    device_map = halves(transformers.AutoConfig.from_pretrained(folder))
    hf_model = AutoModelForCausalLM.from_pretrained(folder, device_map=device_map)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    bridge = TransformerBridge.boot_transformers(folder, hf_model=hf_model, tokenizer=tokenizer)
    for holder in (ActivationCollector(bridge, HOOKS), SpellingSweep(bridge, answer="first_letter")):
        holder.to(SECOND)
        assert set(map(str, divided.devices_of(bridge))) == {FIRST, SECOND}


def test_models_that_the_gpus_do_not_hold(folder_of: Any, monkeypatch: pytest.MonkeyPatch):
    folder = folder_of("Llama")
    parts = halves(transformers.AutoConfig.from_pretrained(folder))
    parts |= {next(reversed(parts)): "disk"}
    monkeypatch.setattr(divided, "resolve_device_map", lambda *_: (parts, None))
    with pytest.raises(AbsorbError, match=r"`n_devices` was 2, expected GPUs that hold .* together.*more GPUs"):
        load_language_model(folder, n_devices=2)

    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    with pytest.raises(AbsorbError, match="expected GPUs that hold model together"):
        divided.require_divided("model", 2, SimpleNamespace(original_model=full))


@pytest.mark.usefixtures("at_root")
def test_a_study(
    study: Any, study_config: Any, same_but_rounding: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    device_map = halves(transformers.AutoConfig.from_pretrained("tests/golden/gpt2-micro"))
    monkeypatch.setattr(divided, "resolve_device_map", lambda *_: (device_map, None))
    found = run_study(study_config(tmp_path, "--trainer.accelerator=pretend", "--n_devices=2"))
    assert found.stages is not None
    assert divided.is_divided(found.stages.subject.model)
    for name in ("summary", "letters", "candidates"):
        same_but_rounding(found.tables[name], study[1].tables[name])
    assert found.tables["words"]["engine"].dropna().unique().tolist() == ["suffix"]


@pytest.mark.parametrize("architecture", sorted(REFUSED))
def test_models_that_cannot_be_divided(architecture: str, divide: Any, folder_of: Any):
    with pytest.raises(
        AbsorbError, match="`n_devices` was 2, expected a model whose layers TransformerLens can divide"
    ):
        divide(folder_of(architecture))


def test_the_documentation_names_them():
    text = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    [named] = re.findall(r"cannot be divided: (.*?)\.\n", text, flags=re.DOTALL)
    assert set(re.split(r",\s+|\s+and\s+", named)) == REFUSED
    assert set(ARCHITECTURES) > REFUSED


def test_more_gpus_than_there_are(folder_of: Any):
    count = torch.cuda.device_count()
    with pytest.raises(AbsorbError, match=f"`n_devices` was {count + 2}, expected at most .* GPUs here, {count}"):
        load_language_model(folder_of("GPT-2"), n_devices=count + 2)
    with pytest.raises(AbsorbError, match="`device` was 'pretend:1', expected no device beside `n_devices` 2"):
        load_language_model(folder_of("GPT-2"), n_devices=2, device="pretend:1")


@pytest.mark.parametrize(
    "words", [["accelerator=cpu"], ["accelerator=gpu", "devices=2"], ["devices=-1"], ["devices=[1]"], ["num_nodes=2"]]
)
def test_a_study_in_several_processes_is_refused(study_config: Any, tmp_path: Path, words: list[str]):
    with pytest.raises(AbsorbError, match=r"`trainer` was .* expected one process on GPU 0, the first of 2"):
        study_config(tmp_path, "--trainer.accelerator=auto", "--n_devices=2", *(f"--trainer.{word}" for word in words))
