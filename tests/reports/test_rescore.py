"""Rescored runs beside fresh studies with the same thresholds, and thresholds that cannot be answered."""

import shutil

import pandas as pd
import pytest

from absorb_pl.cli import main
from absorb_pl.errors import CacheCorruptedError, RuleError
from absorb_pl.reports import rescore_run
from absorb_pl.study import run_study

pytestmark = pytest.mark.usefixtures("at_root", "_one_thread")

TABLES = ("summary", "letters", "words", "sensitivity")


def tables_of(folder, rule):
    tables = {name: pd.read_parquet(folder / "tables" / f"{name}.parquet") for name in TABLES}
    return {name: table[table["rule"] == rule].reset_index(drop=True) for name, table in tables.items()}


def assert_same(found, expected):
    for name in TABLES:
        # A column that no rule of a run fills has no type of its own.
        empty = [column for column in expected[name] if expected[name][column].isna().all()]
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
    sections = {"rule": CHANGED["paper"], "saebench": CHANGED["saebench-0.6.0"]}
    words = [f"--{section}.{name}={value}" for section, changed in sections.items() for name, value in changed.items()]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(request.config.rootpath)
        return run_study(study_config(folder, *words)).run_dir


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
    assert names == {"absorption_vs_l0.png", "sensitivity_saebench-0.6.0.png"}
    assert list((folder / "tensorboard" / "study").glob("events.*"))
    printed = capsys.readouterr().out
    assert "max_absorbers = 1" in printed
    assert f"tensorboard --logdir {folder / 'tensorboard'}" in printed
    assert str(folder / "tables") in printed


@pytest.mark.parametrize(
    ("rule", "thresholds", "message"),
    [
        ("paper", {"silent": 0.1}, r"at most 1e-08.*splits\.silent"),
        ("saebench-0.6.0", {"max_absorbers": 9}, r"at most 5.*saebench\.stored_absorbers"),
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


def test_a_folder_without_a_study_is_named(tmp_path):
    with pytest.raises(CacheCorruptedError, match=r"run folder of a finished study.*absorb-pl study"):
        rescore_run(tmp_path)
