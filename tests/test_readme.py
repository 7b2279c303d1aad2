"""Every command and piece of Python of the README and the pages about results and commands runs, in order."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from absorb_pl.cli import main
from absorb_pl.data import ActivationDataModule
from absorb_pl.saes import bundled_sae_path, list_bundled_saes
from absorb_pl.words import TaskConfig

ROOT = Path(__file__).parent.parent
PAGES = ("README.md", "docs/reading-results.md", "docs/page.md", "docs/commands.md")
TEXT = "\n".join((ROOT / page).read_text(encoding="utf-8") for page in PAGES)
# As many SAEs and words as show what the commands are for; the first SAE absorbs most, so few words have candidates.
SAES = ["speller/l1-standard-w1024-medium", "speller/l2-batchtopk-*", "speller/l2-matryoshka-*"]
TASK = {"max_words": 400, "max_icl_examples": 3}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, flags=re.DOTALL)


def commands() -> list[str]:
    lines = [line.split(" #")[0].strip() for block in blocks("bash") for line in block.splitlines()]
    return [line for line in lines if line]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the configurations, made small: three SAEs and the most frequent words, with short prompts."""
    folder = tmp_path_factory.mktemp("readme")
    shutil.copytree(ROOT / "configs", folder / "configs")
    shutil.copytree(bundled_sae_path(list_bundled_saes()[0]), folder / "my_sae")
    for file in (folder / "configs").iterdir():
        config = yaml.safe_load(file.read_text(encoding="utf-8").replace("speller/l1-batchtopk-w1024-medium", SAES[0]))
        if file.name == "demo.yaml":
            config |= {"saes": SAES, "task": TASK}
        elif file.name == "train_sae.yaml":
            config["model"]["init_args"]["optimisation"] |= {"lr_warm_up_steps": 2, "lr_decay_steps": 2}
            config["data"]["init_args"] |= {"batch_size": 256, "chunks_per_buffer": 4}
            config["trainer"] |= {"max_steps": 8, "val_check_interval": 4, "log_every_n_steps": 2}
            monitor, _, saving = config["trainer"]["callbacks"]
            monitor["init_args"]["every_n_steps"] = saving["init_args"]["every_n_train_steps"] = 4
            monitor["init_args"]["words"]["init_args"]["task"] = TASK
        elif config.get("data", {}).get("class_path", "").endswith(("PromptDataModule", "ActivationDataModule")):
            config["data"]["init_args"].setdefault("task", TASK)
        file.write_text(yaml.safe_dump(config), encoding="utf-8")
    return folder


def run(words: list[str], folder: Path) -> str:
    """Run a program of this environment in a folder, and give what it prints."""
    program = [str(Path(sys.executable).with_name(words[0])), *words[1:]]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(program, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def test_make_targets_of_the_readme_do_what_it_says():
    dry = {t: subprocess.check_output(["make", "-n", "-C", ROOT, t], text=True) for t in ("demo", "test")}
    assert [line for line in commands() if line.startswith("make")] == ["make demo", "make test"]
    assert "absorb-pl demo" in dry["demo"]
    assert "-m pytest" in dry["test"]


@pytest.mark.slow
@pytest.mark.usefixtures("_one_thread")
def test_commands_of_the_readme_run_in_order(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(workplace)
    ran: list[str] = []
    for program, *words in map(shlex.split, commands()):
        if program == "tensorboard":
            assert "scalars" in run([program, *words, "--inspect"], workplace)
        elif program == "absorb-pl" and (not ran or "ddp" in words):
            run([program, *words, *(["--config=configs/demo.yaml"] if words == ["demo"] else [])], workplace)
        elif program == "absorb-pl":  # without a process of its own, which would import all libraries again
            small = [] if "--config" in words or words[0] != "study" else [f"--task={json.dumps(TASK)}"]
            few = ["--crossfit.repeats=2", "--shuffles=2"] if "--shuffles" in words else []
            main([*words, *small, *few])
        ran += words[:1] if program == "absorb-pl" else []
    assert set(ran) == {"demo", "study", "rescore", "compare", "power", "list", "fit", "test", "predict", "page"}

    demo, ddp = workplace / "lightning_logs/demo", workplace / "lightning_logs/demo_ddp"
    one, two = (pd.read_parquet(folder / "tables/summary.parquet") for folder in (demo, ddp))
    one = one[one["sae"].isin(two["sae"])].reset_index(drop=True)
    assert len(one) == len(two) == 2 * 4
    # Other SAEs in a pass change the last digits of scores, and nothing else.
    pd.testing.assert_frame_equal(one, two, check_exact=False, rtol=1e-4, atol=1e-5)
    words_table = pd.read_parquet(demo / "tables/words.parquet")
    assert not words_table.duplicated(["sae", "rule", "row"]).any()
    again = pd.read_parquet(workplace / "lightning_logs/absorption/words.parquet")
    same = words_table[words_table["sae"].isin(again["sae"]) & (words_table["rule"] == "paper")].reset_index(drop=True)
    assert len(again)
    assert again["is_absorption"].tolist() == same["is_absorption"].tolist()

    checks = pd.read_parquet(workplace / "lightning_logs/train_sae/tables/checks.parquet")
    assert checks["step"].unique().tolist() == [4, 8]
    assert (workplace / "lightning_logs/train_sae/saes/batchtopk/cfg.json").is_file()

    events = EventAccumulator(str(demo / "tensorboard" / "study")).Reload()
    assert "figures/absorption_vs_l0" in events.Tags()["images"]
    assert len(events.Scalars("linear_probe/blocks.1.hook_resid_post/train/loss")) == 1

    data = ActivationDataModule(task=TaskConfig(**TASK), cache_dir="lightning_logs/cache")
    own = {"activations": data.cache.rows(), "labels": [data.class_names[c] for c in data.prompt_data.labels.tolist()]}
    for code in blocks("python"):
        capsys.readouterr()
        small = code.replace('score(load_sae("my_sae"))', 'score(load_sae("my_sae"), task=TASK)')
        exec(small, {"TASK": TaskConfig(**TASK), **own})
        assert capsys.readouterr().out.strip()
