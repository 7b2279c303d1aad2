"""A study with shuffled copies: its table, its figure, its cache, and what it leaves as it was."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from sae_lens import MatchingPursuitSAE, MatchingPursuitSAEConfig
from sae_lens.saes.sae import SAEMetadata

from absorb_pl.cli import main
from absorb_pl.errors import SaeArchitectureError
from absorb_pl.schema import SHUFFLES
from absorb_pl.study import shuffle_stage

ONE = ("--saes=[speller/l1-standard-w512-dense]", "--rules=[saebench-0.6.0,absorb-pl-1]", "--task.max_words=400")


def study(folder: Path, name: str, *words: str) -> dict[str, pd.DataFrame]:
    main(["study", f"--run_dir={folder / name}", f"--cache_dir={folder / 'cache'}", *ONE, *words])
    return {file.stem: pd.read_parquet(file) for file in (folder / name / "tables").glob("*.parquet")}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    folder = tmp_path_factory.mktemp("shuffles")
    return folder, study(folder, "plain"), study(folder, "held", "--shuffles=4")


def test_the_table_stands_beside_the_others_which_stay(runs: tuple[Path, Any, Any]):
    folder, plain, held = runs
    assert set(held) == {*plain, "shuffles"}
    for name, table in plain.items():
        pd.testing.assert_frame_equal(held[name], table, check_exact=True)
    assert list(held["shuffles"]) == list(SHUFFLES)
    assert held["shuffles"].groupby(["rule", "amount"]).size().to_dict() == {
        (rule, amount): 1
        for rule in ("absorb-pl-1", "saebench-0.6.0")
        for amount in ("absorption_fraction", "absorption_rate")
    }
    assert (folder / "held/figures/shuffles.png").is_file()
    assert not (folder / "plain/figures/shuffles.png").exists()


def test_copies_are_kept(runs: tuple[Path, Any, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    folder, _, held = runs
    monkeypatch.setattr(shuffle_stage, "shuffled_rates", None)
    again = study(folder, "again", "--shuffles=4")
    pd.testing.assert_frame_equal(again["shuffles"], held["shuffles"], check_exact=True)
    assert "4 copies of each SAE" in capsys.readouterr().out


def test_an_sae_that_cannot_be_shuffled_is_refused_before_anything_is_made(tmp_path: Path):
    metadata = SAEMetadata(hook_name="blocks.1.hook_resid_post", model_name="speller")
    sae = MatchingPursuitSAE(MatchingPursuitSAEConfig(d_in=128, d_sae=16, metadata=metadata))
    sae.save_model(tmp_path / "pursuit")
    with pytest.raises(SystemExit) as stopped:
        study(tmp_path, "run", f"--saes=[{tmp_path / 'pursuit'}]", "--shuffles=4")
    assert isinstance(stopped.value.__cause__, SaeArchitectureError)
    assert "encoder" in str(stopped.value.__cause__)
    assert not (tmp_path / "cache" / "activations").exists()
