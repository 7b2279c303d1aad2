"""Absorption while SAEs train, against the same SAEs judged afterwards by other ways."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import absorb_pl.training.monitor as monitor_module
from absorb_pl import evaluate_activations
from absorb_pl.cli import main
from absorb_pl.data import ActivationDataModule
from absorb_pl.errors import AbsorbError, HookMismatchError, RuleError, SaeWidthError, ShapeError
from absorb_pl.evaluators.sae_probing import SplitSettings
from absorb_pl.probes import LinearProbe
from absorb_pl.probes.settings import KSparseSettings
from absorb_pl.saes import load_sae
from absorb_pl.schema import CHECKS
from absorb_pl.study import StudyConfig, TrainerSettings, run_study
from absorb_pl.training import (
    AbsorptionMonitor,
    SaeExport,
    SaeOptimisation,
    SaeSettings,
    SparseAutoencoderModule,
    SpellingActivations,
    TokenActivationDataModule,
    WorldActivations,
)
from absorb_pl.truth import HierarchyDataModule
from absorb_pl.words import TaskConfig

pytestmark = pytest.mark.usefixtures("_one_thread")

RULES = ["absorb-pl-1", "saebench-0.6.0"]
SAES = {
    "standard": SaeSettings("standard", 128, settings={"l1_coefficient": 0.5}),
    "batchtopk": SaeSettings("batchtopk", 96, settings={"k": 2.5}),
}
HOOK = "blocks.1.hook_resid_post"


def fit(tmp_path, callbacks, saes=None, data=None, max_steps=60, **settings):
    data = data or TokenActivationDataModule(
        WorldActivations("superposition", rows_per_chunk=128), batch_size=128, chunks_per_buffer=8
    )
    module = SparseAutoencoderModule(saes or SAES, data.hook_widths, SaeOptimisation(lr=3e-3))
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    quiet |= {"logger": TensorBoardLogger(tmp_path, name="", version=""), "limit_val_batches": 0}
    trainer = Trainer(accelerator="cpu", max_steps=max_steps, callbacks=callbacks, **quiet | settings)
    trainer.fit(module, data)
    return module


def words():
    return HierarchyDataModule("superposition", rows_per_parent=60, val_fraction=0.0)


def test_looks_are_those_of_the_saved_saes(tmp_path):
    monitor = AbsorptionMonitor(words(), every_n_steps=25, rules=RULES)
    fit(tmp_path, [monitor, SaeExport(every_n_steps=25)])
    checks = pd.read_parquet(tmp_path / "tables" / "checks.parquet")
    pd.testing.assert_frame_equal(checks, monitor.checks)
    assert list(checks) == list(CHECKS)
    assert checks["step"].unique().tolist() == [25, 50, 60]
    assert checks.groupby("step")["activations_seen"].first().tolist() == [25 * 128, 50 * 128, 60 * 128]
    data = words()
    x, labels = data.rows(torch.arange(len(data.labels))), [data.class_names[c] for c in data.label_numbers.tolist()]
    for step, folder in ((25, "saes/step-25"), (60, "saes")):
        for name in SAES:
            sae = load_sae(str(tmp_path / folder / name))
            expected = evaluate_activations(sae, x, labels, RULES)["summary"].set_index("rule")
            found = checks[(checks["step"] == step) & (checks["sae"] == name)].set_index("rule")
            shared = [column for column in found if column in expected and column != "sae"]
            assert {"absorption_rate", "ci_low", "l0", "explained_variance", "num_splits"} <= set(shared)
            pd.testing.assert_frame_equal(found[shared], expected[shared], check_dtype=False)
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == [
        "absorption_while_training.png",
        "absorption_while_training.svg",
    ]


@pytest.mark.parametrize("selection", ["test", "train"])
def test_walks_that_go_far_are_those_of_the_saved_sae(tmp_path, selection, monkeypatch):
    monkeypatch.setattr(monitor_module, "_FIRST_KS", 2)
    splits = SplitSettings(f1_jump=0.0, selection=selection)
    monitor = AbsorptionMonitor(words(), every_n_steps=60, rules=RULES, splits=splits)
    fit(tmp_path, [monitor, SaeExport()])
    data = words()
    x, labels = data.rows(torch.arange(len(data.labels))), [data.class_names[c] for c in data.label_numbers.tolist()]
    longest = []
    for name in SAES:
        sae = load_sae(str(tmp_path / "saes" / name))
        expected = evaluate_activations(sae, x, labels, RULES, splits=splits)
        found = monitor.checks[monitor.checks["sae"] == name].set_index("rule")
        shared = ["absorption_rate", "ci_high", "num_splits", "rate_one_main", "top_latent_f1"]
        pd.testing.assert_frame_equal(found[shared], expected["summary"].set_index("rule")[shared], check_dtype=False)
        longest.append(expected["letters"]["num_splits"].max())
    assert max(longest) >= 3


@pytest.mark.slow
def test_the_last_look_is_a_study_of_the_saved_sae(tmp_path):
    data = TokenActivationDataModule(
        SpellingActivations([HOOK], contexts_per_chunk=16), batch_size=256, chunks_per_buffer=8
    )
    task = TaskConfig(max_words=600, max_icl_examples=3)
    of_words = ActivationDataModule(hook_name=HOOK, task=task, val_fraction=0.0, cache_dir=tmp_path / "cache")
    scaled = {"k": 6, "normalize_activations": "expected_average_only_in"}
    saes = {"batchtopk": SaeSettings("batchtopk", 256, settings=scaled)}
    rules = [*RULES, "paper"]
    monitor = AbsorptionMonitor(of_words, every_n_steps=1000, rules=rules)
    fit(tmp_path, [monitor, SaeExport()], saes, data, max_steps=80)
    study = StudyConfig(
        saes=[str(tmp_path / "saes" / "batchtopk")],
        task=task,
        rules=rules,
        run_dir=str(tmp_path / "run"),
        cache_dir=str(tmp_path / "cache"),
        trainer=TrainerSettings(accelerator="cpu", enable_progress_bar=False),
    )
    expected = run_study(study).tables["summary"].set_index("rule")
    found = monitor.checks.set_index("rule")
    shared = [column for column in found if column in expected and column != "sae"]
    assert expected["absorption_rate"].notna().all()
    pd.testing.assert_frame_equal(found[shared], expected[shared], check_dtype=False)


def test_curves_and_checkpoints_by_absorption(tmp_path):
    best = ModelCheckpoint(
        tmp_path / "best", monitor="absorbed_share/absorb-pl-1/standard", mode="min", every_n_train_steps=20
    )
    monitor = AbsorptionMonitor(words(), every_n_steps=20, rules=RULES)
    fit(tmp_path, [monitor, best], enable_checkpointing=True)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    for row in monitor.checks.to_dict("records"):
        for title, column in {"absorption": "absorption_rate", "absorption_high": "ci_high"}.items():
            curve = events.Scalars(f"{title}/{row['rule']}/{row['sae']}")
            assert [event.step for event in curve] == [20, 40, 60]
            assert {event.step: event.value for event in curve}[row["step"]] == pytest.approx(row[column])
    shares = monitor.checks.query("sae == 'standard' and rule == 'absorb-pl-1'").set_index("step")
    kept = torch.load(best.best_model_path, weights_only=True)
    assert kept["global_step"] == shares["absorption_fraction"].idxmin()


def test_looking_does_not_change_what_is_trained(tmp_path):
    plain = fit(tmp_path / "plain", [])
    watched = fit(tmp_path / "watched", [AbsorptionMonitor(words(), every_n_steps=20)])
    expected, found = plain.state_dict(), watched.state_dict()
    assert all(torch.equal(expected[key], found[key]) for key in expected)


@pytest.mark.slow
def test_two_processes_look_as_one_does(tmp_path):
    monitors = [AbsorptionMonitor(words(), every_n_steps=20, rules=RULES) for _ in range(2)]
    # The batch-wide k of BatchTopK is of each process's rows, so it is not among these.
    saes = {"standard": SAES["standard"], "topk": SaeSettings("topk", 96, settings={"k": 3})}
    fit(tmp_path / "one", [monitors[0]], saes, max_steps=40)
    fit(tmp_path / "two", [monitors[1]], saes, max_steps=40, devices=2, strategy="ddp_fork")
    one, two = (pd.read_parquet(tmp_path / way / "tables" / "checks.parquet") for way in ("one", "two"))
    keys = ["step", "activations_seen", "sae", "rule", "num_words"]
    pd.testing.assert_frame_equal(one[keys], two[keys])
    for column in (
        "l0",
        "explained_variance",
        "absorption_fraction",
    ):
        assert two[column].tolist() == pytest.approx(one[column].tolist(), rel=1e-3)


def test_bad_input_is_refused(tmp_path):
    with pytest.raises(RuleError, match="`rules` was 'paper', expected rules that activations are enough for"):
        AbsorptionMonitor(words(), rules="paper")
    with pytest.raises(ShapeError, match=r"`ks` was .5, 10., expected numbers of latents, 1 among them"):
        AbsorptionMonitor(words(), k_sparse=KSparseSettings(ks=(5, 10)))
    of_hook = ActivationDataModule(hook_name=HOOK, cache_dir=tmp_path)
    with pytest.raises(HookMismatchError, match=f"`words` was .*{HOOK}.*, expected words for each hook .* activations"):
        fit(tmp_path, [AbsorptionMonitor(of_hook)])
    wider = HierarchyDataModule("rare-children", rows_per_parent=30)
    with pytest.raises(SaeWidthError):
        fit(tmp_path, [AbsorptionMonitor(wider)])
    trainer = Trainer(max_epochs=1, logger=False, enable_checkpointing=False, callbacks=[AbsorptionMonitor(words())])
    with pytest.raises(AbsorbError, match="`callbacks` was 'AbsorptionMonitor with LinearProbe', expected a Sparse"):
        trainer.fit(LinearProbe(64, 12), words())


CONFIG = """
model:
  class_path: SparseAutoencoderModule
  init_args:
    saes:
      a: {architecture: batchtopk, d_sae: 96, settings: {k: 3, normalize_activations: expected_average_only_in}}
      b: {architecture: jumprelu, d_sae: 64, settings: {l0_coefficient: 0.1}}
data:
  class_path: TokenActivationDataModule
  init_args:
    source: {class_path: WorldActivations, init_args: {world: superposition, rows_per_chunk: 128}}
    batch_size: 128
    chunks_per_buffer: 8
trainer:
  accelerator: cpu
  max_steps: 50
  val_check_interval: 20
  enable_progress_bar: false
  logger: {class_path: TensorBoardLogger, init_args: {save_dir: FOLDER, name: "", version: ""}}
  callbacks:
    - class_path: SaeExport
    - {class_path: ModelCheckpoint, init_args: {every_n_train_steps: 15, save_last: true}}
    - class_path: AbsorptionMonitor
      init_args:
        words: {class_path: HierarchyDataModule, init_args: {world: superposition, rows_per_parent: 40}}
        every_n_steps: 30
"""


@pytest.mark.slow
def test_a_killed_training_goes_on_with_the_same_weights_and_looks(tmp_path):
    root = Path(__file__).parents[2]
    for way in ("whole", "killed"):
        (tmp_path / f"{way}.yaml").write_text(CONFIG.replace("FOLDER", str(tmp_path / way)))
    main(["fit", f"--config={tmp_path / 'whole.yaml'}"])
    killed = ["fit", f"--config={tmp_path / 'killed.yaml'}"]
    command = [sys.executable, "tests/kill_training.py", "40", *killed]
    done = subprocess.run(command, cwd=root, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == -9, done.stderr[-3000:]
    last = tmp_path / "killed" / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == 30
    main([*killed, f"--ckpt_path={last}"])
    for name in ("a", "b"):
        expected, found = (load_sae(str(tmp_path / way / "saes" / name)) for way in ("whole", "killed"))
        for key, tensor in expected.state_dict().items():
            assert torch.equal(tensor, found.state_dict()[key])
    one, two = (pd.read_parquet(tmp_path / way / "tables" / "checks.parquet") for way in ("whole", "killed"))
    assert one["step"].unique().tolist() == [30, 50]
    pd.testing.assert_frame_equal(one, two)


def test_looking_needs_no_logger(tmp_path):
    monitor = AbsorptionMonitor(words(), every_n_steps=40)
    fit(tmp_path, [monitor], logger=False, max_steps=40, default_root_dir=tmp_path)
    assert (tmp_path / "tables" / "checks.parquet").is_file()
