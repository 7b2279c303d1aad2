"""Rescored runs beside fresh studies with the same thresholds, and thresholds that cannot be answered."""

import errno
import json
import os
import shutil
from pathlib import Path

import pandas as pd
import pytest

from absorb_pl.cli import main
from absorb_pl.data import publication
from absorb_pl.errors import AbsorbError, CacheCorruptedError, OutputFolderError, RuleError
from absorb_pl.evaluators import AbsorptionInputs, read_probe_weights
from absorb_pl.reports import report
from absorb_pl.study import rescore_run, run_study

pytestmark = pytest.mark.usefixtures("at_root", "_one_thread")

TABLES = ("summary", "letters", "words", "sensitivity")


def tables_of(folder, rule):
    tables = {name: pd.read_parquet(folder / "tables" / f"{name}.parquet") for name in TABLES}
    return {name: table[table["rule"] == rule].reset_index(drop=True) for name, table in tables.items()}


def assert_same(found, expected):
    for name in TABLES:
        # A column that no rule of a run fills has no type of its own. No evidence with one main latent is in a run.
        unknown = [column for column in expected[name] if column == "rate_one_main"]
        empty = [column for column in expected[name] if expected[name][column].isna().all()] + unknown
        assert found[name][empty].isna().all().all()
        plain = [table[name].drop(columns=empty) for table in (found, expected)]
        pd.testing.assert_frame_equal(*plain, check_exact=True)


@pytest.fixture(scope="module")
def run_dir(study, tmp_path_factory):
    """A copy of the finished study's folder."""
    return shutil.copytree(study[1].run_dir, tmp_path_factory.mktemp("rescored") / "run")


@pytest.mark.parametrize("rule", ["paper", "saebench-0.6.0", "saebench-0.3.2"])
def test_the_studys_own_thresholds_give_its_own_tables(study, run_dir, rule, capsys):
    before = {path: path.read_bytes() for path in run_dir.rglob("tables/*")}
    found = rescore_run(run_dir, rule)
    assert_same(tables_of(found.folder, rule), tables_of(study[1].run_dir, rule))
    assert {path: path.read_bytes() for path in before} == before
    assert rule in capsys.readouterr().out


CHANGED = {
    "paper": {"delta_threshold": 0.001, "cos_threshold": 0.1},
    "saebench-0.6.0": {
        "full_cos_threshold": 0.1,
        "fraction_cos_threshold": 0.3,
        "proportion_threshold": 0.7,
        "max_absorbers": 5,
        "silent": 0.5,
    },
}


@pytest.fixture(scope="module")
def fresh(study, study_config, tmp_path_factory, request):
    """A study with other thresholds, on the stages of the first."""
    folder = tmp_path_factory.mktemp("fresh")
    shutil.copytree(study[0].cache_dir, folder / "cache")
    rules = {**study[0].rules, **{name: {**study[0].rules[name], **changed} for name, changed in CHANGED.items()}}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(request.config.rootpath)
        patch.setattr(report, "draw_figures", lambda _: {})
        return run_study(study_config(folder, f"--rules={json.dumps(rules)}")).run_dir


@pytest.mark.parametrize("rule", CHANGED)
def test_other_thresholds_give_the_tables_of_a_fresh_study(study, run_dir, fresh, rule):
    found = rescore_run(run_dir, rule, **CHANGED[rule])
    assert_same(tables_of(found.folder, rule), tables_of(fresh, rule))
    rates = [tables_of(folder, rule)["summary"]["absorption_rate"].tolist() for folder in (fresh, study[1].run_dir)]
    assert rates[0] != rates[1]


def test_the_command_writes_beside_the_run(run_dir, capsys):
    main(["rescore", f"--run_dir={run_dir}", "--rule=saebench-0.6.0", "--max_absorbers=1"])
    folder = run_dir / "rescored" / "saebench-0.6.0-max_absorbers=1"
    assert sorted(path.stem for path in (folder / "tables").iterdir()) == sorted(TABLES)
    names = {path.name for path in (folder / "figures").iterdir()}
    assert names == {
        f"{name}.{kind}" for name in ("absorption_vs_l0", "sensitivity_saebench-0.6.0") for kind in ("png", "svg")
    }
    assert (folder / "report.html").is_file()
    assert list((folder / "tensorboard" / "study").glob("events.*"))
    printed = capsys.readouterr().out
    assert "max_absorbers = 1" in printed
    assert f"tensorboard --logdir {folder / 'tensorboard'}" in printed
    assert str(folder / "tables") in printed


@pytest.mark.parametrize(
    ("rule", "thresholds", "message"),
    [
        ("paper", {"silent": 0.1}, r"at most 1e-08.*splits\.silent"),
        ("saebench-0.6.0", {"max_absorbers": 9}, r"at most 5.*`stored_absorbers`"),
        ("saebench-0.3.2", {"delta_threshold": 1.0}, "expected a threshold of the rule saebench-0.3.2"),
        ("paper-published", {}, "expected a rule of the study: paper, saebench-0.6.0, saebench-0.3.2.*Run the study"),
        ("other", {}, "expected one of paper,"),
    ],
)
def test_what_stored_scores_cannot_answer_is_refused(run_dir, rule, thresholds, message):
    before = sorted(run_dir.rglob("*"))
    with pytest.raises(RuleError, match=message):
        rescore_run(run_dir, rule, **thresholds)
    assert sorted(run_dir.rglob("*")) == before


def test_a_report_cut_short_is_refused_and_made_good(study, study_config, monkeypatch, tmp_path):
    """A study with an SAE more publishes anew in the folder of a finished one, and ends half-way."""
    monkeypatch.setattr(report, "draw_figures", lambda _: {})
    shutil.copytree(study[0].cache_dir, tmp_path / "cache")
    one = study_config(tmp_path, "--saes=[tests/golden/gpt2-micro/sae_topk_B]")
    run_dir = run_study(one).run_dir
    before = rescore_run(run_dir).tables["summary"]
    replace, calls = publication.replace_folder, []

    def replace_one(path, new, aside):
        calls.append(path.name)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(path, new, aside)

    with monkeypatch.context() as patch:
        patch.setattr(publication, "replace_folder", replace_one)
        with pytest.raises(OutputFolderError, match=f"{run_dir}.*No space left"):
            run_study(study_config(tmp_path))
    assert calls == ["probes", "saebench", "tables"]
    assert pd.read_parquet(run_dir / "tables" / "summary.parquet")["sae"].unique().tolist() == one.saes
    for read in (rescore_run, AbsorptionInputs.from_run, read_probe_weights):
        with pytest.raises(CacheCorruptedError, match=r"published\.json: No such file.*Run `absorb-pl study`"):
            read(run_dir)
    result = run_study(study_config(tmp_path))
    after = rescore_run(run_dir).tables["summary"]
    assert (len(before), len(after)) == (1, 3)
    assert_same(rescore_run(run_dir).tables, {name: of_rule(result.tables[name]) for name in TABLES})
    assert AbsorptionInputs.from_run(run_dir).candidates["sae"].nunique() == 3


def of_rule(table, rule="paper"):
    return table[table["rule"] == rule].reset_index(drop=True)


@pytest.mark.parametrize(
    ("file", "read"),
    [
        ("tables/words.parquet", rescore_run),
        ("tables/candidates.parquet", AbsorptionInputs.from_run),
        ("probes/blocks.1.hook_resid_post.safetensors", AbsorptionInputs.from_run),
        ("probes/blocks.3.hook_resid_pre.safetensors", read_probe_weights),
    ],
)
@pytest.mark.parametrize("change", ["of another run", "missing"])
def test_tables_of_two_runs_are_not_mixed(study, tmp_path, file, read, change):
    run_dir = shutil.copytree(study[1].run_dir, tmp_path / "run")
    if change == "missing":
        (run_dir / file).unlink()
    else:
        others = sorted((run_dir / file).parent.iterdir())
        shutil.copyfile(next(path for path in others if path.name != Path(file).name), run_dir / file)
    with pytest.raises(AbsorbError, match=rf"({file}|finished study).*Run `absorb-pl study`"):
        read(run_dir)


@pytest.mark.parametrize("record", ["", "[]", '{"files": {}}', '{"files": []}', '{"files": {"tables/a": {}}}'])
def test_a_record_that_says_nothing_is_named(study, tmp_path, record):
    run_dir = shutil.copytree(study[1].run_dir, tmp_path / "run")
    (run_dir / "published.json").write_text(record)
    with pytest.raises(CacheCorruptedError, match=r"finished study, with published\.json"):
        rescore_run(run_dir)


def test_a_folder_without_a_study_is_named(tmp_path):
    with pytest.raises(CacheCorruptedError, match=r"run folder of a finished study.*absorb-pl study"):
        rescore_run(tmp_path)
