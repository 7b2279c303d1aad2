"""The commands that do not go through a study, on a GPU."""

import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from pretended_gpu import PRETENDED

from absorb_pl.cli import main

pytestmark = pytest.mark.usefixtures("pretended_gpus", "_one_thread")

ROOT = Path(__file__).parents[2]
ACCELERATOR = "gpu" if torch.cuda.is_available() else PRETENDED
SAE = "speller/l1-standard-w512-medium"
TASK = {"max_words": 120, "max_icl_examples": 2}


def configured(folder: Path, name: str, **changed: dict[str, Any]) -> str:
    """A configuration of the project, made small and for the GPU."""
    text = (ROOT / "configs" / f"{name}.yaml").read_text(encoding="utf-8")
    config = yaml.safe_load(text.replace("speller/l1-batchtopk-w1024-medium", SAE))
    config["trainer"]["accelerator"] = ACCELERATOR
    if config["data"]["class_path"].endswith(("PromptDataModule", "ActivationDataModule")):
        config["data"]["init_args"]["task"] = TASK
    for part, settings in changed.items():
        owner = config[part]
        (owner if part == "trainer" else owner["init_args"]).update(settings)
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    return f"--config={file}"


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("commands")
    shutil.copytree(ROOT / "absorb_pl" / "truth" / "assets", folder / "absorb_pl" / "truth" / "assets")
    return folder


@pytest.fixture(autouse=True)
def _there(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)


def test_linear_probes_and_evaluation(workplace: Path):
    main(["fit", configured(workplace, "fit_linear"), "--trainer.default_root_dir=linear"])
    [checkpoint] = (workplace / "linear").rglob("*.ckpt")
    main(["test", configured(workplace, "test_linear"), f"--ckpt_path={checkpoint}", "--trainer.default_root_dir=test"])
    summary = pd.read_parquet(next((workplace / "test").rglob("summary.parquet")))
    assert summary["rule"].tolist() == ["paper", "saebench-0.6.0"]
    assert (summary["num_words"] > 0).all()


def test_k_sparse_probes(workplace: Path):
    small = {"max_epochs": 3, "default_root_dir": "k_sparse"}
    main(["fit", configured(workplace, "fit_k_sparse", trainer=small)])
    assert len(list((workplace / "k_sparse").rglob("*.ckpt"))) == 1


def test_a_known_world(workplace: Path):
    main(["fit", configured(workplace, "fit_world"), "--trainer.default_root_dir=world"])
    [checkpoint] = (workplace / "world").rglob("*.ckpt")
    main(["test", configured(workplace, "test_world"), f"--ckpt_path={checkpoint}", "--trainer.default_root_dir=truth"])
    [truth] = (workplace / "truth").rglob("truth*.parquet")
    assert 0 < pd.read_parquet(truth)["is_absorbed"].mean() < 1


def test_spelling(workplace: Path):
    few = {"word_lengths": [3], "num_icl_examples": [0, 2], "casings": ["upper"], "separators": ["-"]}
    main(["predict", configured(workplace, "predict_spelling", data=few, model={"num_words": 8})])
    assert len(pd.read_parquet(workplace / "lightning_logs" / "spelling" / "sweep.parquet")) > 0


def test_ablation_of_a_studys_words(workplace: Path):
    run = [f"--saes=[{SAE}]", f"--task={TASK}", "--rules=paper", "--run_dir=lightning_logs/demo", "--cache_dir=cache"]
    main(["study", *run, f"--trainer.accelerator={ACCELERATOR}"])
    main(["predict", configured(workplace, "predict_ablation")])
    candidates = pd.read_parquet(workplace / "lightning_logs" / "demo" / "tables" / "candidates.parquet")
    found = pd.read_parquet(workplace / "lightning_logs" / "ablation" / "ablations.parquet")
    assert set(found["row"]) == set(candidates["row"])
