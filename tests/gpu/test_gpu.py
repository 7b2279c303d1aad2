"""The same figures on a GPU as on the CPU: attribution, ablation, probes, the cache, a whole study, training.

On a CUDA GPU where one is visible; elsewhere on a pretended one (see `pretended_gpu`), which computes by the CPU's
kernels, so that its verdicts are the CPU's.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from pretended_gpu import PRETENDED
from tiny_models import save_tiny_model
from torch import Tensor

from absorb_pl.attribution import (
    calculate_feature_attribution,
    calculate_individual_feature_ablations,
    word_ablations,
    word_integrated_gradients,
)
from absorb_pl.data import PromptDataModule
from absorb_pl.data.activation_datamodule import ensure_activations
from absorb_pl.engine import compute_prefix
from absorb_pl.evaluators import evaluate_activations
from absorb_pl.evaluators.folds import CrossfitSettings
from absorb_pl.evaluators.training import train_sae_probes
from absorb_pl.models import load_language_model
from absorb_pl.models.divided import is_divided
from absorb_pl.probes import KSparseSettings, train_multi_probe
from absorb_pl.rules.evidence import stored_scores
from absorb_pl.saes import load_sae
from absorb_pl.study import run_study
from absorb_pl.training import (
    AbsorptionMonitor,
    MeasureHedging,
    SaeExport,
    SaeOptimisation,
    SaeSettings,
    SparseAutoencoderModule,
    TokenActivationDataModule,
    WorldActivations,
)
from absorb_pl.truth import HierarchyDataModule
from absorb_pl.words import TaskConfig, TokenizedPrompts

pytestmark = pytest.mark.usefixtures("at_root", "_gpu")

REAL = torch.cuda.is_available()
DEVICE, ACCELERATOR = ("cuda", "gpu") if REAL else (PRETENDED, PRETENDED)
HOOK = "blocks.1.hook_resid_post"
FAMILIES = ["GPT-2", "GPT-NeoX, Pythia"]  # the models that compute in float64 throughout
BEFORE_SCORING = ("activations", "linear_probes", "sae_probing")


@pytest.fixture
def _gpu(request: pytest.FixtureRequest, _one_thread: None) -> None:
    if not REAL:
        request.getfixturevalue("pretended_gpus")


def on(device: str, model: Any) -> Any:
    """A model on a device; it goes back by the next call."""
    model.cfg.device = device
    return model.to(device)


@pytest.fixture(params=FAMILIES)
def both(request: pytest.FixtureRequest, load_tiny: Any, make_sae: Any) -> Callable[[Callable[..., Tensor]], None]:
    """Compares, in float64, what a function of model, SAE and prompts gives on the CPU and on the GPU."""
    model, sae = load_tiny(request.param, torch.float64), make_sae("standard").to(dtype=torch.float64)
    ids = torch.randint(2, 290, (5, 14), generator=torch.Generator().manual_seed(0))
    positions = torch.tensor([4, 8, 8, 9, 11])

    def compare(function: Callable[..., Tensor]) -> None:
        found = []
        for device in ("cpu", DEVICE):
            prompts = TokenizedPrompts(
                ids.to(device), torch.ones_like(ids, dtype=torch.bool, device=device), torch.full((5,), 14), positions
            )
            found.append(function(on(device, model), sae.to(device), prompts).detach())
        on("cpu", model)
        assert (found[1].cpu() - found[0]).abs().max() <= 1e-9 * found[0].abs().max()
        assert found[0].abs().max() > 0

    return compare


def margin(logits: Tensor, *_: Any) -> Tensor:
    return logits[..., 7] - logits[..., 40]


def test_attribution(both: Any) -> None:
    def scores(model: Any, sae: Any, prompts: TokenizedPrompts) -> Tensor:
        found = calculate_feature_attribution(
            model, prompts.input_ids, lambda logits: margin(logits[:, -1]).sum(), include_saes={HOOK: sae}
        )
        return found.sae_feature_attributions[HOOK]

    both(scores)


def test_ablation_of_single_latents(both: Any) -> None:
    def scores(model: Any, sae: Any, prompts: TokenizedPrompts) -> Tensor:
        found = calculate_individual_feature_ablations(
            model, prompts.input_ids[:1], lambda logits: margin(logits[:, -1]), sae, -5
        )
        return torch.tensor(list(found.ablation_scores.values()), dtype=torch.float64)

    both(scores)


@pytest.mark.parametrize("engine", ["suffix", "whole"])
def test_integrated_gradients_at_words(both: Any, engine: Any) -> None:
    def scores(model: Any, sae: Any, prompts: TokenizedPrompts) -> Tensor:
        prefix = compute_prefix(model, prompts, [HOOK], engine=engine)
        assert prefix.engine == engine
        return word_integrated_gradients(model, sae, prompts, margin, hook_name=HOOK, prefix=prefix).scores

    both(scores)


@pytest.mark.parametrize("engine", ["suffix", "whole"])
def test_ablations_at_words(both: Any, engine: Any) -> None:
    both(lambda model, sae, prompts: word_ablations(model, sae, prompts, margin, hook_name=HOOK, engine=engine).scores)


@pytest.mark.parametrize("architecture", ["GPT-2", "Llama", "Gemma 2"])
def test_processed_models_that_are_moved(architecture: str, golden: Path, tmp_path: Path) -> None:
    save_tiny_model(architecture, tmp_path, golden / "gpt2-micro")
    model: Any = load_language_model(str(tmp_path), dtype="float64", processing=["fold_ln", "center_unembed"])
    ids = torch.randint(2, 290, (3, 8), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model.original_model(ids).logits
        for device in (DEVICE, "cpu"):
            torch.nn.ModuleList([model]).to(device)  # as a Trainer moves what its module holds
            found = model.original_model(ids.to(device)).logits
            torch.testing.assert_close(found.cpu(), expected, rtol=1e-5, atol=1e-6)  # norms compute in float32


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA GPUs are visible")
def test_a_model_divided_among_real_gpus(golden: Path) -> None:
    folder = str(golden / "gpt2-micro")
    whole = load_language_model(folder, dtype="float64", device="cuda:0")
    divided: Any = load_language_model(folder, dtype="float64", n_devices=2)
    assert is_divided(divided)
    sae = load_sae(str(golden / "gpt2-micro" / "sae_standard_A")).to("cuda:0", torch.float64)
    ids = torch.randint(2, 290, (5, 14), generator=torch.Generator().manual_seed(0)).to("cuda:0")
    positions = torch.tensor([4, 8, 8, 9, 11])
    prompts = TokenizedPrompts(ids, torch.ones_like(ids, dtype=torch.bool), torch.full((5,), 14), positions)
    hook = "blocks.2.hook_resid_post"
    found, expected = (
        word_integrated_gradients(model, sae, prompts, margin, hook_name=hook, engine="suffix").scores
        for model in (divided, whole)
    )
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-8)


def test_solved_probes_reach_the_same_optimum() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (400,), generator=generator)
    y = torch.nn.functional.one_hot(labels, 4).float()
    x = y @ torch.randn(4, 12, generator=generator) + 2 * torch.randn(400, 12, generator=generator)

    def loss(device: str) -> float:
        probe = train_multi_probe(x, y, weight_decay=1e-3, solver="optimum", show_progress=False, device=device)
        logits = x.double() @ probe.weights.detach().cpu().double().T + probe.biases.detach().cpu().double()
        return torch.nn.functional.binary_cross_entropy_with_logits(logits, y.double()).item()

    assert loss(DEVICE) == pytest.approx(loss("cpu"), rel=1e-6)


def test_ranking_probes_side_by_side(golden: Path) -> None:
    saes = [load_sae(str(golden / "gpt2-micro" / f"sae_{name}")) for name in ("standard_A", "topk_B")]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, saes[0].W_dec.shape[1], generator=generator)
    y = torch.nn.functional.one_hot(torch.randint(0, 3, (300,), generator=generator), 3)
    settings = KSparseSettings(ks=(1, 2), max_epochs=5)
    expected = train_sae_probes(saes, x, y, settings, "abc", seed=0)
    found = train_sae_probes([sae.to(DEVICE) for sae in saes], x, y, settings, "abc", seed=0, device=DEVICE)
    for (on_gpu, _), (on_cpu, _) in zip(found, expected, strict=True):
        assert on_gpu.fc.weight.device.type == DEVICE
        torch.testing.assert_close(on_gpu.fc.weight.cpu(), on_cpu.fc.weight, rtol=1e-3, atol=1e-4)


@pytest.mark.skipif(not REAL, reason="quantised weights cannot be moved to a pretended GPU")
@pytest.mark.parametrize("dtype", ["int8", "nf4"])
def test_quantised_models_that_are_moved(dtype: str) -> None:
    ids = torch.randint(2, 290, (3, 8), generator=torch.Generator().manual_seed(0))
    model: Any = load_language_model("speller", dtype=dtype)
    with torch.no_grad():
        expected = model.original_model(ids).logits.float()
        moved = torch.nn.ModuleList([model]).to(DEVICE)[0]  # as a Trainer moves what its module holds
        found = moved.original_model(ids.to(DEVICE)).logits.float().cpu()
    assert (found - expected).norm() < 2**-4 * expected.norm()


def test_cached_activations(golden: Path, tmp_path: Path) -> None:
    rows = {}
    for accelerator in ("cpu", ACCELERATOR):
        model = load_language_model(str(golden / "gpt2-micro"), dtype="float64")
        data = PromptDataModule(model, TaskConfig(max_words=40, max_icl_examples=2), batch_size=8)

        def trainer_of(callbacks: Any, accelerator: str = accelerator) -> Trainer:
            return Trainer(
                accelerator=accelerator, devices=1, callbacks=callbacks, logger=False, enable_progress_bar=False
            )

        rows[accelerator] = ensure_activations(data, [HOOK], tmp_path / accelerator, "float32", trainer_of)[HOOK].rows()
    torch.testing.assert_close(rows[ACCELERATOR], rows["cpu"], rtol=2e-7, atol=1e-12)


def test_a_study_from_nothing(study: Any, study_config: Any, same_but_rounding: Any, tmp_path: Path) -> None:
    result = run_study(study_config(tmp_path, f"--trainer.accelerator={ACCELERATOR}"))
    for name in ("summary", "letters", "latents", "k_sparse"):
        found, expected = result.tables[name], study[1].tables[name]
        keys = [key for key in ("sae", "rule", "label", "k") if key in expected]
        pd.testing.assert_frame_equal(found[keys], expected[keys])
    columns = ["l0", "explained_variance", "num_words"]
    pd.testing.assert_frame_equal(result.tables["summary"][columns], study[1].tables["summary"][columns], rtol=1e-4)
    for name in () if REAL else ("summary", "letters", "words", "candidates", "held_out"):
        same_but_rounding(result.tables[name], study[1].tables[name])


def test_activations_on_the_gpu(golden: Path) -> None:
    """Cross-fitted, and beside shuffled copies."""
    sae = load_sae(str(golden / "gpt2-micro" / "sae_standard_A"))
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (240,), generator=generator)
    x = torch.randn(240, sae.W_dec.shape[1], generator=generator) + 4 * sae.W_dec[labels * 5].detach()
    names = ["abc"[label] for label in labels.tolist()]
    more: Any = {"rules": ["saebench-0.6.0", "absorb-pl-1"], "shuffles": 2, "crossfit": CrossfitSettings(2, 2)}
    expected = evaluate_activations(sae, x, names, **more)
    found = evaluate_activations(sae, x.to(DEVICE), names, **more, device=DEVICE)
    assert set(found) == set(expected)
    for name in ("summary", "letters", "shuffles", "crossfit", "crossfit_letters", "crossfit_words"):
        pd.testing.assert_frame_equal(found[name], expected[name], rtol=1e-3, atol=1e-5)


def test_training_with_a_monitor(tmp_path: Path) -> None:
    """Two architectures side by side, with looks by rules that read activations, their hedging and their export."""
    checks, hedging, weights = {}, {}, {}
    for accelerator in ("cpu", ACCELERATOR):
        seed_everything(0, verbose=False)
        data = TokenActivationDataModule(
            WorldActivations("superposition", rows_per_chunk=128), batch_size=128, chunks_per_buffer=8
        )
        saes = {
            "standard": SaeSettings("standard", 96, settings={"l1_coefficient": 0.5}),
            "batchtopk": SaeSettings("batchtopk", 96, settings={"k": 2.5}),
        }
        module = SparseAutoencoderModule(saes, data.hook_widths, SaeOptimisation(lr=3e-3))
        words = HierarchyDataModule("superposition", rows_per_parent=40, val_fraction=0.0)
        monitor = AbsorptionMonitor(words, every_n_steps=20, rules=["absorb-pl-1", "saebench-0.6.0"])
        measuring = MeasureHedging(new_latents=8, steps=5, every_n_steps=10)
        trainer = Trainer(
            accelerator=accelerator,
            devices=1,
            max_steps=20,
            callbacks=[monitor, measuring, SaeExport()],
            logger=TensorBoardLogger(tmp_path / accelerator, name="", version=""),
            enable_progress_bar=False,
            enable_checkpointing=False,
        )
        trainer.fit(module, data)
        checks[accelerator], hedging[accelerator] = monitor.checks, measuring.found
        weights[accelerator] = load_sae(str(tmp_path / accelerator / "saes" / "batchtopk")).W_dec
    torch.testing.assert_close(weights[ACCELERATOR], weights["cpu"], rtol=1e-3, atol=1e-4)
    columns = ["step", "sae", "rule", "l0", "explained_variance"]
    pd.testing.assert_frame_equal(checks[ACCELERATOR][columns], checks["cpu"][columns], rtol=1e-3)
    assert checks["cpu"]["absorption_rate"].notna().any()
    pd.testing.assert_frame_equal(hedging[ACCELERATOR], hedging["cpu"], rtol=1e-2, atol=1e-4)


def test_verdicts_differ_only_where_scores_are_within_rounding(
    study: Any, study_config: Any, gpt2: Any, float32_rounding: Any, tmp_path: Path
) -> None:
    """Scored anew on the GPU, from the probes and main latents that the CPU found."""
    for stage in BEFORE_SCORING:
        shutil.copytree(Path(study[0].cache_dir) / stage, tmp_path / "cache" / stage)
    config = study_config(tmp_path, f"--trainer.accelerator={ACCELERATOR}")
    result = run_study(config)
    checked = words = 0
    for rule in config.chosen_rules():
        cpu, gpu = (
            tables["words"][lambda words, name=rule.name: words["rule"] == name].set_index(["sae", "row"])
            for tables in (study[1].tables, result.tables)
        )
        assert cpu.index.equals(gpu.index)
        stored = stored_scores(cpu, rule.reads)
        changed = torch.zeros(len(cpu), dtype=torch.bool)
        for name in rule.reads:
            off = float32_rounding(gpt2) * stored[name].abs().max()
            for sign in (-1, 1):
                moved = rule.decide(stored | {name: stored[name] + sign * off})
                changed |= moved.is_absorption != rule.decide(stored).is_absorption
        differ = torch.tensor((cpu["is_absorption"] != gpu["is_absorption"]).to_numpy())
        assert not (differ & ~changed).any()
        checked, words = checked + int((~changed).sum()), words + len(cpu)
    assert checked > words / 2
