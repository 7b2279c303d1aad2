"""Calibration from its command to its tables, and again from what is kept."""

from pathlib import Path

import pandas as pd
import pytest

from absorb_pl.cli import main
from absorb_pl.errors import AbsorbError, RuleError
from absorb_pl.schema import CALIBRATION, CALIBRATION_SUMMARY, CHECKS, dtypes
from absorb_pl.study import TrainerSettings, calibration
from absorb_pl.study.calibration import CalibrationConfig, calibrate
from absorb_pl.truth.planted_settings import PLANTED
from absorb_pl.truth.trained import list_trained_saes

ASKED = ["calibrate", "--planted=[split-10, clean-30]", "--trained=[frequent-children/topk-3]", "--seeds=1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("calibration")
    main([*ASKED, f"--run_dir={folder}/run", f"--cache_dir={folder}/cache", "--trainer.enable_progress_bar=false"])
    return folder


def test_the_command_writes_tables_and_figures(folder: Path):
    scores = pd.read_parquet(folder / "run/tables/calibration.parquet")
    summary = pd.read_parquet(folder / "run/tables/calibration_summary.parquet")
    assert list(scores) == list(CALIBRATION)
    assert list(summary) == list(CALIBRATION_SUMMARY)
    assert set(scores["rule"]) == {"absorb-pl-1", "saebench-0.6.0", "saebench-0.3.2"}
    assert set(zip(scores["family"], scores["setting"], strict=True)) == {
        ("planted", "split-10"),
        ("planted", "clean-30"),
        ("frequent-children", "topk-3"),
    }
    ours = summary[summary["rule"] == "absorb-pl-1"]
    assert ours["rate_bias"].abs().max() <= 0.02
    assert ours["share_bias"].abs().max() <= 0.02
    assert {file.stem for file in (folder / "run/figures").glob("*.png")} == {
        "planted_errors",
        "trained_rate",
        "trained_share",
    }


def test_what_is_kept_is_not_made_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(calibration, "evaluate_activations", None)
    main([*ASKED, f"--run_dir={folder}/again", f"--cache_dir={folder}/cache", "--trainer.enable_progress_bar=false"])
    first, again = (pd.read_parquet(folder / name / "tables/calibration.parquet") for name in ("run", "again"))
    pd.testing.assert_frame_equal(first, again)
    assert "split-10" in capsys.readouterr().out


def test_a_calibration_that_was_stopped_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made: list[str] = []
    whole = calibration.CalibrationStage.make

    def stopping(self, unit, device):
        if len(made) == 1:
            raise KeyboardInterrupt
        made.append(unit)
        return whole(self, unit, device)

    config = CalibrationConfig(
        rules="absorb-pl-1",
        planted=["clean-30"],
        trained=["none"],
        seeds=2,
        run_dir=str(tmp_path / "run"),
        cache_dir=str(tmp_path / "cache"),
        trainer=TrainerSettings(enable_progress_bar=False),
    )
    monkeypatch.setattr(calibration.CalibrationStage, "make", stopping)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        calibrate(config)
    assert not (tmp_path / "run/tables").exists()
    made.clear()
    found = calibrate(config)["calibration"]
    assert made == ["clean-30@1"]
    assert found["seed"].tolist() == [0, 1]
    assert found["true_rate"].nunique() == 2


def test_bad_names_and_rules_are_named():
    with pytest.raises(AbsorbError, match="clean-30"):
        CalibrationConfig(planted=["clean-31"])
    with pytest.raises(AbsorbError, match="none"):
        CalibrationConfig(planted=["none"], trained=["none"])
    with pytest.raises(RuleError, match="paper"):
        CalibrationConfig(rules="paper")
    assert CalibrationConfig().planted == list(PLANTED)
    assert CalibrationConfig().trained == list_trained_saes()


def test_looks_at_trainings_come_into_the_summary(folder: Path, capsys: pytest.CaptureFixture[str]):
    looks = pd.DataFrame(columns=list(CHECKS)).astype(dtypes(CHECKS))
    for step in range(1, 6):
        row = {"step": step, "sae": "mine", "rule": "absorb-pl-1", "absorption_rate": step / 10, "evaluable": True}
        looks = pd.concat([looks, pd.DataFrame([row])])
    files = [folder / name / "tables" / "checks.parquet" for name in ("first", "second")]
    for file in files:
        file.parent.mkdir(parents=True)
        looks.to_parquet(file)
    words = [*ASKED, f"--run_dir={folder}/with_looks", f"--cache_dir={folder}/cache"]
    main([*words, f"--checks=[{files[0]}, {files[1]}]", "--trainer.enable_progress_bar=false"])
    summary = pd.read_parquet(folder / "with_looks/tables/calibration_summary.parquet")
    found = summary[summary["family"] == "training"].set_index("setting")
    assert found["rate_spearman"].to_dict() == pytest.approx({"first/mine": 1.0, "second/mine": 1.0})
    printed = capsys.readouterr().out
    assert "first/mine in training" in printed
    assert "…" not in printed
    with pytest.raises(AbsorbError, match="`checks` was 'no-such', expected tables"):
        CalibrationConfig(checks=["no-such"])
