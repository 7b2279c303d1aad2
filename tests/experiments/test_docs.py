"""The page about the experiments does what it says, on fewer words."""

import re
import shlex
from pathlib import Path

import pandas as pd
import pytest

from absorb_pl.cli import main

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/experiments.md").read_text(encoding="utf-8").replace("800", "300")


def block(language):
    (found,) = re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)
    return found


@pytest.mark.slow
def test_the_page_runs_in_a_folder_of_its_own(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(compile(block("python"), "experiments.md", "exec"), {})
    shown = [line for line in capsys.readouterr().out.splitlines() if "words judged" in line]
    frames = [pd.read_parquet(file) for file in Path("experiments/feature_absorption").glob("*/*.parquet")]
    assert sorted(int(re.search(r"(\d+) words judged", line)[1]) for line in shown) == sorted(map(len, frames))
    assert len(frames) == 2
    plots = {"latent_evaluation": "recall_vs_l0", "k_sparse_probing": "feature_splitting_vs_l0"}
    plots["feature_absorption"] = "absorption_rate_vs_l0"
    for experiment, plot in plots.items():
        assert Path(f"experiments/{experiment}/{plot}.pdf").read_bytes().startswith(b"%PDF")
    main(shlex.split(block("bash"))[1:])
    assert "Stopped after the stage k-sparse-probes" in capsys.readouterr().out
    # the experiments left the same probes in the same cache
    assert Path("lightning_logs/stopped/manifest.json").read_text(encoding="utf-8").count('"made": 0') == 3
