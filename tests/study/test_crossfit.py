"""A study that cross-fits: its tables, its cache, and what it leaves as it was."""

import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from absorb_pl.cli import main
from absorb_pl.errors import AbsorbError, CacheCorruptedError, RuleError
from absorb_pl.evaluators.folds import CrossfitSettings
from absorb_pl.rules import registry
from absorb_pl.rules.paper import PaperRule
from absorb_pl.schema import CROSSFIT, CROSSFIT_LETTERS, CROSSFIT_WORDS
from absorb_pl.study import StudyConfig, crossfit_stage, fold_stages
from absorb_pl.study.compare import compare_saes

pytestmark = pytest.mark.usefixtures("at_root", "_one_thread")
CONFIG = "tests/conf/study.yaml"
TWICE = ("--crossfit.folds=2", "--crossfit.repeats=2")
ONE = (
    "--saes=[tests/golden/gpt2-micro/sae_standard_A]",
    "--rules={saebench-0.6.0: {}, absorb-pl-1: {}, paper: {delta_threshold: 0.0004}}",
    "--k_sparse.ks=[1,2]",
)


def study(folder: Path, name: str, *words: str) -> dict[str, pd.DataFrame]:
    main(["study", f"--config={CONFIG}", f"--run_dir={folder / name}", f"--cache_dir={folder / 'cache'}", *ONE, *words])
    return {file.stem: pd.read_parquet(file) for file in (folder / name / "tables").glob("*.parquet")}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> tuple[Path, Any, Any]:
    folder = tmp_path_factory.mktemp("crossfit")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(request.config.rootpath)
        return folder, study(folder, "plain"), study(folder, "crossfit", *TWICE)


def test_the_tables_of_the_single_split_stay_as_they_are(runs: tuple[Path, Any, Any]):
    _, plain, crossfit = runs
    assert set(crossfit) == {*plain, "crossfit", "crossfit_letters", "crossfit_words"}
    for name, table in plain.items():
        pd.testing.assert_frame_equal(crossfit[name], table, check_exact=True)


def test_every_word_that_the_probe_sees_is_judged_once_per_repeat(runs: tuple[Path, Any, Any]):
    _, _, tables = runs
    assert list(tables["crossfit"]) == list(CROSSFIT)
    assert list(tables["crossfit_words"]) == list(CROSSFIT_WORDS)
    words = tables["crossfit_words"]
    assert set(words["rule"]) == {"saebench-0.6.0", "absorb-pl-1", "paper"}
    assert words.groupby(["sae", "rule", "repeat", "row"]).size().max() == 1
    of_sae = tables["crossfit"][tables["crossfit"]["label"] == ""]
    letters = tables["crossfit_letters"]
    assert list(letters) == list(CROSSFIT_LETTERS)
    for row in of_sae.to_dict("records"):
        judged, own = words[words["rule"] == row["rule"]], letters[letters["rule"] == row["rule"]]
        assert (row["folds"], row["repeats"]) == (2, 2)
        assert len(judged) == (own["num_candidates"] * own["sample_portion"]).sum()
        assert row["num_words"] == round(own["num_probe_true_positives"].sum() / 2)
        if row["rule"] != "paper":
            assert (own["num_candidates"] == own["num_probe_true_positives"]).all()


def test_other_thresholds_need_no_new_main_latents_or_gradients(
    runs: tuple[Path, Any, Any], monkeypatch: pytest.MonkeyPatch
):
    folder, _, tables = runs
    monkeypatch.setattr(fold_stages, "fold_mains", None)
    monkeypatch.setattr(fold_stages, "GradientEvaluator", None)
    never = study(folder, "never", *TWICE, "--rules={paper: {delta_threshold: 1000.0}}")
    pd.testing.assert_frame_equal(
        never["crossfit_words"].drop(columns="is_absorption"),
        (was := tables["crossfit_words"])[was["rule"] == "paper"]
        .drop(columns="is_absorption")
        .reset_index(drop=True)
        .astype(never["crossfit_words"].drop(columns="is_absorption").dtypes),
    )
    assert was.loc[was["rule"] == "paper", "is_absorption"].any()
    assert not never["crossfit_words"]["is_absorption"].any()


@pytest.mark.parametrize("most", [200, 2])
def test_comparisons_take_the_rates_of_all_rules(runs: tuple[Path, Any, Any], most: int):
    """Also where candidates are sampled, and by a rule with another right answer."""
    folder, _, _ = runs
    tables = study(
        folder,
        f"two-{most}",
        *TWICE,
        "--saes=[tests/golden/gpt2-micro/sae_standard_A, tests/golden/gpt2-micro/sae_jumprelu_A]",
        f"--splits.max_words_per_letter={most}",
        "--rules={saebench-0.6.0: {}, paper: {delta_threshold: 0.0004}, paper-published-token: {delta_threshold: 0.0}}",
    )
    rates = tables["crossfit"].set_index(["sae", "rule", "label"])["absorption_rate"]
    portions = tables["crossfit_letters"].groupby("rule")["sample_portion"].min()
    assert (portions["paper"] < 1) == (portions["paper-published-token"] < 1) == (most == 2)
    assert portions["saebench-0.6.0"] == 1
    for rule in portions.index:
        assert rates.xs(rule, level="rule").max() > 0
    compared = compare_saes(folder / f"two-{most}")
    assert set(compared["rule"]) == set(portions.index)
    for row in compared[compared["label"] != ""].to_dict("records"):
        for side in ("a", "b"):
            assert row[f"rate_{side}"] == pytest.approx(rates[row[side], row["rule"], row["label"]], abs=1e-12)


def test_a_run_folder_without_its_letters_is_named(runs: tuple[Path, Any, Any], tmp_path: Path):
    folder, _, _ = runs
    shutil.copytree(folder / "crossfit", tmp_path / "run")
    (tmp_path / "run/tables/crossfit_letters.parquet").unlink()
    with pytest.raises(CacheCorruptedError, match=r"run_dir.*crossfit_letters"):
        compare_saes(tmp_path / "run")


def test_what_is_kept_is_not_made_again(runs: tuple[Path, Any, Any], monkeypatch: pytest.MonkeyPatch, capsys: Any):
    folder, _, tables = runs
    monkeypatch.setattr(fold_stages, "fold_mains", None)
    monkeypatch.setattr(crossfit_stage, "judge_folds", None)
    monkeypatch.setattr(fold_stages, "GradientEvaluator", None)
    again = study(folder, "again", *TWICE)
    pd.testing.assert_frame_equal(again["crossfit"], tables["crossfit"], check_exact=True)
    said = capsys.readouterr().out
    assert "Cross-fitted" in said
    assert "2 folds, 2 repeats" in said


def test_a_study_can_stop_after_it(runs: tuple[Path, Any, Any], capsys: Any):
    folder, _, _ = runs
    main(
        [
            "study",
            f"--config={CONFIG}",
            f"--run_dir={folder / 'until'}",
            f"--cache_dir={folder / 'cache'}",
            *ONE,
            *TWICE,
            "--until=cross-fit",
        ]
    )
    assert "cross-fit" in capsys.readouterr().out
    assert not (folder / "until/tables").exists()


class _OfMains(PaperRule):
    name = "of-mains"
    reads = ("main_scores",)


def test_bad_settings_are_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(registry._RULES, "of-mains", _OfMains)
    StudyConfig(saes=["a"], rules="of-mains")
    with pytest.raises(RuleError, match=r"crossfit.*of-mains.*main_scores"):
        StudyConfig(saes=["a"], rules="of-mains", crossfit=CrossfitSettings())
    with pytest.raises(AbsorbError, match="until"):
        StudyConfig(saes=["a"], until="cross-fit")
