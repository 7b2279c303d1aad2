"""Studies that stop after a stage: what they leave, and that a later run goes on from there."""

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from absorb_pl.cli import main
from absorb_pl.errors import AbsorbError
from absorb_pl.study import StudyConfig, run_study

pytestmark = pytest.mark.usefixtures("at_root", "_one_thread")

# Which folders the cache holds after each stage.
LEFT = {
    "load": [],
    "activations": ["activations"],
    "linear-probes": ["activations", "linear_probes"],
    "k-sparse-probes": ["activations", "linear_probes", "sae_probing"],
    "projections": ["activations", "linear_probes", "projections", "sae_probing"],
    "absorption": ["absorption", "activations", "linear_probes", "projections", "sae_probing"],
    "firings": ["absorption", "activations", "firings", "linear_probes", "projections", "sae_probing"],
}


def stages_of(run_dir):
    return json.loads((run_dir / "manifest.json").read_text())["stages"]


@pytest.mark.usefixtures("_without_figures")
def test_a_study_stopped_after_every_stage_ends_as_one_in_one_go(study, study_config, tmp_path):
    sae = "tests/golden/gpt2-micro/sae_topk_B"
    config = study_config(tmp_path, f"--saes=[{sae}]", "--rules={paper: {delta_threshold: 0.0004}, saebench-0.6.0: {}}")
    for until, folders in LEFT.items():
        result = run_study(replace(config, until=until))
        cache = Path(config.cache_dir)
        assert sorted(path.name for path in cache.glob("*")) == folders
        assert (result.tables, (result.run_dir / "tables").exists()) == ({}, False)
        assert [name.replace(" ", "-") for name in stages_of(result.run_dir)] == list(LEFT)[: len(folders) + 1]
        assert (result.stages is None) == (until in ("load", "activations"))
    assert list(result.stages.subject.saes) == [sae]
    whole = run_study(config)
    assert [stage.get("made", 0) for stage in stages_of(whole.run_dir).values()] == [0] * 9
    for name in ("summary", "k_sparse", "candidates"):
        table = study[1].tables[name]
        expected = table[(table["sae"] == sae) & ~table.get("rule", table["sae"]).eq("saebench-0.3.2")]
        pd.testing.assert_frame_equal(whole.tables[name], expected.reset_index(drop=True), rtol=1e-5)


def test_stages_give_what_they_found(study):
    config, result = study
    hook = "blocks.3.hook_resid_pre"
    stages = run_study(replace(config, until="linear-probes", run_dir=f"{config.run_dir}-until")).stages
    weight, bias = stages.probes.weights(hook)
    x, y, _ = stages.probes.data.split(hook, "test")
    found = ((x @ weight.T + bias) > 0) & y.bool()
    letters = result.tables["letters"].query("hook_name == @hook and rule == 'paper'")
    assert found.sum() == letters["num_probe_true_positives"].sum() > 0


def test_the_command_line_stops_and_says_so(study, capsys, tmp_path):
    words = ["study", "--config", "tests/conf/study.yaml", "--run_dir", str(tmp_path), "--cache_dir"]
    main([*words, study[0].cache_dir, "--until", "k-sparse-probes"])
    assert "Stopped after the stage k-sparse-probes" in capsys.readouterr().out
    assert list(stages_of(tmp_path)) == ["load", "activations", "linear probes", "k-sparse probes"]
    with pytest.raises(SystemExit, match="2"):
        main([*words, study[0].cache_dir, "--until", "linear probes"])
    assert "'linear-probes', 'k-sparse-probes'" in capsys.readouterr().err


def test_several_models_stop_each(study, tmp_path):
    config, _ = study
    sae = config.saes[0].replace("sae_*", "sae_topk_B")
    folder = str(tmp_path / "run")
    result = run_study(replace(config, models={config.model: [sae]}, saes=[], run_dir=folder, until="linear-probes"))
    assert (result.tables, result.stages) == ({}, None)
    assert [path.name for path in result.run_dir.iterdir()] == ["tests-golden-gpt2-micro"]


@pytest.mark.parametrize(
    ("until", "rules", "missing"),
    [
        ("projections", ["paper"], "projections"),
        ("absorption", ["saebench-0.6.0"], "absorption"),
    ],
)
def test_a_stage_that_the_study_does_not_have_is_refused(until, rules, missing):
    with pytest.raises(AbsorbError, match=f"`until` was '{until}', expected a stage that these rules have") as raised:
        StudyConfig(saes=["speller/*"], rules=rules, until=until)
    assert missing not in raised.value.expected
    assert "k-sparse-probes" in raised.value.expected
