"""What happens to a run from outside, and what is asked of it by mistake."""

import errno
import json
import os
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from absorb_pl.data import ActivationCacheWriter
from absorb_pl.errors import AbsorbError, CacheCorruptedError, ManifestMismatchError, OutputFolderError
from absorb_pl.evaluators import PredictionTableWriter
from absorb_pl.evaluators.writers import write_table
from absorb_pl.functional.rates import NEVER_FIRES
from absorb_pl.models import load_language_model, model_identity
from absorb_pl.models.placement import own_memory
from absorb_pl.reports import figures, report, saebench_results, tensorboard
from absorb_pl.reports.controls import without_controls
from absorb_pl.reports.saebench_results import result_file
from absorb_pl.saes import load_sae, sae_identity
from absorb_pl.saes.source import SaeSource, tell_equal_saes
from absorb_pl.study import StudyConfig, StudyResult, rescore_run, run_study, stage, sweep

pytestmark = pytest.mark.usefixtures("at_root", "_one_thread")

MODEL = Path("tests/golden/gpt2-micro")
SAE = MODEL / "sae_standard_A"


@pytest.fixture
def cached(study, study_config, monkeypatch, tmp_path):
    """Makes the configuration of a study whose SAEs of the suite's own study are in the cache; it draws no figures."""
    monkeypatch.setattr(report, "draw_figures", lambda _: {})
    shutil.copytree(study[0].cache_dir, tmp_path / "cache")
    return lambda *words: study_config(tmp_path, *words)


def copied(sae, folder):
    return shutil.copytree(sae, folder, copy_function=shutil.copyfile)


def overwrite(file):
    """Write over the middle of a file in place, as a training run that saves its next checkpoint may."""
    size = os.path.getsize(file)
    with open(file, "r+b") as stream:
        stream.seek(size // 2)
        stream.write(b"\1" * (size // 4))


def save_another(sae):
    weights = load_file(sae / "sae_weights.safetensors")
    weights["W_dec"] = -weights["W_dec"]
    save_file(weights, sae / "sae_weights.safetensors")


@pytest.mark.parametrize("number", [1, 2, 3], ids=["k-sparse probes", "projections", "absorption"])
def test_an_sae_saved_anew_while_a_study_runs_is_refused(number, cached, monkeypatch, tmp_path):
    sae = copied(SAE, tmp_path / "sae")
    load, calls = SaeSource.load, []

    def load_after_another_was_saved(source, device):
        calls.append(source.name)
        if len(calls) == number:
            save_another(sae)
        return load(source, device)

    before = {path.name for path in (tmp_path / "cache").glob("*/*")}
    monkeypatch.setattr(SaeSource, "load", load_after_another_was_saved)
    with pytest.raises(ManifestMismatchError, match=r"as when the study began.*Copy it to a folder that stays"):
        run_study(cached(f"--saes=[{sae}]"))
    kept = {path for path in (tmp_path / "cache").glob("*/*") if path.name not in before}
    assert sorted(path.parent.name for path in kept) == sorted(["sae_probing", "projections"][: number - 1])
    assert not (tmp_path / "run" / "tables").exists()


def test_weights_in_use_do_not_follow_their_files(tmp_path):
    """Safetensors maps files into memory; what is written to them later would be seen by whoever loaded them."""
    folder = copied(MODEL, tmp_path / "model")
    model, sae = load_language_model(str(folder)), load_sae(str(folder / SAE.name))
    before = model_identity(model), sae_identity(sae)
    overwrite(folder / "model.safetensors")
    overwrite(folder / SAE.name / "sae_weights.safetensors")
    assert (model_identity(model), sae_identity(sae)) == before
    assert sae_identity(load_sae(str(folder / SAE.name))) != before[1]


def test_memory_that_tensors_share_they_share_afterwards():
    layer = torch.nn.Linear(3, 2, bias=False)
    layer.tied = torch.nn.Parameter(layer.weight.data[:, 1:].T)
    whole = layer.weight.clone()
    own_memory(layer)
    layer.weight.data[0, 1] = 7
    assert layer.tied.tolist() == [[7, whole[1, 1]], [whole[0, 2], whole[1, 2]]]


def test_a_control_alone_is_measured(cached, tmp_path):
    result = run_study(cached(f"--saes=['{SAE}#random']"))
    assert result.tables["summary"][["sae", "control"]].drop_duplicates().to_numpy().tolist() == [
        [f"{SAE}#random", "random"]
    ]
    assert [path.name for path in (tmp_path / "run" / "saebench").iterdir()] == [result_file(f"{SAE}#random")]
    assert len(rescore_run(result.run_dir).tables["summary"]) == 1


def test_a_control_alone_is_drawn(study):
    summary = study[1].tables["summary"].assign(control="random")
    tables = {**study[1].tables, "summary": summary}
    assert sorted(figures.draw_figures(without_controls(tables))) == sorted(figures.draw_figures(study[1].tables))


def test_an_sae_that_never_fires_has_no_rates(cached, tmp_path, capsys):
    sae = copied(SAE, tmp_path / "silent")
    weights = load_file(sae / "sae_weights.safetensors")
    weights["b_enc"] = torch.full_like(weights["b_enc"], -1e4)
    save_file(weights, sae / "sae_weights.safetensors")
    result = run_study(cached(f"--saes=[{SAE},{sae}]"))
    for tables in (result.tables, rescore_run(result.run_dir).tables):
        for table in (tables["summary"], tables["letters"]):
            own = table[table["sae"] == str(sae)]
            assert own["absorption_rate"].isna().all()
            assert set(own["reason"]) - {"no held-out words"} == {NEVER_FIRES}
            assert table.loc[table["sae"] == str(SAE), "evaluable"].any()
    assert (result.tables["summary"].set_index("sae").loc[str(sae), "l0"] == 0).all()
    assert [path.name for path in (tmp_path / "run" / "saebench").iterdir()] == [result_file(str(SAE))]
    said = capsys.readouterr().out
    assert f"Not evaluable by paper, saebench-0.6.0, saebench-0.3.2, {NEVER_FIRES}: " in " ".join(said.split())


def test_saes_whose_names_differ_in_a_slash_have_files_of_their_own(cached, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    copied(Path(__file__).parents[1] / SAE, tmp_path / "a" / "b")
    copied(Path(__file__).parents[1] / MODEL / "sae_topk_B", tmp_path / "a_b")
    run_study(cached(f"--model={Path(__file__).parents[1] / MODEL}", "--saes=[a/b,a_b]"))
    written = [json.loads(path.read_text()) for path in (tmp_path / "run" / "saebench").iterdir()]
    assert sorted(result["sae_lens_release_id"] for result in written) == ["a/b", "a_b"]


def test_models_whose_names_differ_in_a_slash_have_folders_of_their_own(monkeypatch, tmp_path):
    models = {"a/b": ["x"], "a-b": ["y"], "..": ["z"]}
    seen = {}

    def study_of(config, _processing, *, show):
        assert show
        seen[config.model] = config.run_dir
        return StudyResult(Path(config.run_dir), {"summary": pd.DataFrame({"sae": config.saes})})

    monkeypatch.setattr(sweep, "study_of_model", study_of)
    monkeypatch.setattr(sweep, "saes_by_processing", lambda saes, _dtype: {(): saes})
    monkeypatch.setattr(sweep, "print_summary", lambda *_, **__: None)
    run_study(StudyConfig(models=models, run_dir=str(tmp_path)))
    assert len(set(seen.values())) == 3
    assert all(Path(folder).parent == tmp_path for folder in seen.values())
    assert len(pd.read_parquet(tmp_path / "tables" / "summary.parquet")) == 3


def test_a_tilde_is_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    config = StudyConfig(saes=["x"], run_dir="~/run", cache_dir="cache")
    assert (config.run_dir, config.cache_dir) == (str(tmp_path / "run"), str(Path.cwd() / "cache"))
    assert ActivationCacheWriter("~/cache").cache_dir == tmp_path / "cache"
    assert PredictionTableWriter("~/words.parquet").path == tmp_path / "words.parquet"
    with pytest.raises(CacheCorruptedError, match=str(tmp_path / "run")):
        rescore_run("~/run")
    with pytest.raises(AbsorbError, match="a user that exists"):
        StudyConfig(saes=["x"], run_dir="~no-such-user/run")


def test_an_sae_named_twice_is_scored_once_and_said(cached):
    again = f"./{SAE}"
    with pytest.warns(UserWarning, match=rf"scored once: {SAE}, {again} \(as {SAE}\)\."):
        result = run_study(cached(f"--saes=[{SAE},{SAE},{again}]"))
    assert result.tables["summary"]["sae"].unique().tolist() == [str(SAE)]


def test_one_sae_under_two_names_is_said(tmp_path):
    copied(SAE, tmp_path / "copy")
    model = load_language_model(str(MODEL))
    saes = {str(name): SaeSource.check(str(name), model) for name in (SAE, tmp_path / "copy", MODEL / "sae_topk_B")}
    with pytest.warns(UserWarning, match=rf"^{SAE} and {tmp_path / 'copy'} are the same SAE"):
        tell_equal_saes(saes)


def no_space(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def no_space_for_tensors(*_, **__):
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


FULL = {
    "probes of a stage": (stage, "save_file", no_space_for_tensors, "cache/linear_probes"),
    "probes": (report, "save_file", no_space_for_tensors, "run/probes"),
    "events": (tensorboard.FileWriter, "add_summary", no_space, "run"),
    "a table": (report, "write_table", no_space, "run"),
    "SAEBench's results": (saebench_results, "saebench_result", no_space, "run/saebench"),
}


@pytest.mark.parametrize("what", FULL)
def test_a_full_disk_is_named_and_leaves_nothing_half_written(what, cached, monkeypatch, tmp_path):
    place, name, fail, folder = FULL[what]
    if what == "probes of a stage":
        shutil.rmtree(tmp_path / "cache" / "linear_probes")
    monkeypatch.setattr(report, "draw_figures", lambda _: {"empty": figures.Figure()})
    with monkeypatch.context() as patch:
        patch.setattr(place, name, fail)
        with pytest.raises(OutputFolderError, match="No space left on device") as raised:
            run_study(cached())
    assert raised.value.value == str(tmp_path / folder)
    assert not list(tmp_path.rglob("*.part"))
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert left == {"config.yaml", "manifest.json"}


@pytest.mark.parametrize("cut", ["figure", "table"])
def test_what_is_cut_short_does_not_replace_what_was_there(cut, tmp_path, monkeypatch):
    """A kill while a file is written, which leaves half of it."""
    table = pd.DataFrame({"row": [1, 2]})
    write = {
        "figure": lambda: figures.save_figures({"a": figures.Figure()}, tmp_path),
        "table": lambda: write_table(table, tmp_path / "a.parquet"),
    }[cut]
    write()
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    assert before

    def half(_, path, **__):
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(figures.Figure, "savefig", half)
    monkeypatch.setattr(pd.DataFrame, "to_parquet", half)
    with pytest.raises(KeyboardInterrupt):
        write()
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before
