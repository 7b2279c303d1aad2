"""A study that cross-fits: its tables, its cache, and what it leaves as it was."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from absorb_pl.cli import main
from absorb_pl.errors import AbsorbError, RuleError
from absorb_pl.schema import CROSSFIT, CROSSFIT_WORDS
from absorb_pl.study import StudyConfig, crossfit_stage

pytestmark = pytest.mark.usefixtures("at_root", "_one_thread")
CONFIG = "tests/conf/study.yaml"
TWICE = ("--crossfit.folds=2", "--crossfit.repeats=2")
ONE = (
    "--saes=[tests/golden/gpt2-micro/sae_standard_A]",
    "--rules=[saebench-0.6.0, absorb-pl-1]",
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
    assert set(crossfit) == {*plain, "crossfit", "crossfit_words"}
    for name, table in plain.items():
        pd.testing.assert_frame_equal(crossfit[name], table, check_exact=True)


def test_every_word_that_the_probe_sees_is_judged_once_per_repeat(runs: tuple[Path, Any, Any]):
    _, _, tables = runs
    assert list(tables["crossfit"]) == list(CROSSFIT)
    assert list(tables["crossfit_words"]) == list(CROSSFIT_WORDS)
    words = tables["crossfit_words"]
    assert set(words["rule"]) == {"saebench-0.6.0", "absorb-pl-1"}
    assert words.groupby(["sae", "rule", "repeat", "row"]).size().max() == 1
    of_sae = tables["crossfit"][tables["crossfit"]["label"] == ""]
    for row in of_sae.to_dict("records"):
        judged = words[words["rule"] == row["rule"]]
        assert (row["folds"], row["repeats"]) == (2, 2)
        assert row["num_words"] <= len(judged) / 2 + 1


def test_what_is_kept_is_not_made_again(runs: tuple[Path, Any, Any], monkeypatch: pytest.MonkeyPatch, capsys: Any):
    folder, _, tables = runs
    monkeypatch.setattr(crossfit_stage, "crossfit", None)
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


def test_bad_settings_are_named():
    with pytest.raises(RuleError, match="crossfit"):
        StudyConfig(saes=["a"], rules="paper", crossfit=crossfit_stage.CrossfitSettings())
    with pytest.raises(AbsorbError, match="until"):
        StudyConfig(saes=["a"], until="cross-fit")
