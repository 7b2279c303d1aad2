"""Studies whose small pieces are done in forked processes: the same tables, and a stop that leaves nothing behind."""

import multiprocessing
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from absorb_pl.cli import main
from absorb_pl.data import forks
from absorb_pl.study import evidence_stages, run_study

pytestmark = [
    pytest.mark.usefixtures("at_root", "_one_thread"),
    pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux alone"),
]
CONFIG = "tests/conf/study.yaml"
CROSSFIT = ("--crossfit.folds=2", "--crossfit.repeats=2", "--rules=[saebench-0.6.0, absorb-pl-1]", "--shuffles=3")


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Two processes where there is one thread; gives what they are asked to do."""
    begun, start = [], forks._start

    def recorded(work: Any, *rest: Any) -> None:
        begun.append(work)
        start(work, *rest)

    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(forks, "_start", recorded)
    return begun


def tables_of(folder: Path) -> dict[str, pd.DataFrame]:
    return {file.stem: pd.read_parquet(file) for file in sorted((folder / "tables").glob("*.parquet"))}


def test_tables_are_those_of_one_process_bit_for_bit(study: Any, study_config: Any, forked: list[Any], tmp_path: Path):
    found = run_study(study_config(tmp_path))
    for name, table in study[1].tables.items():
        pd.testing.assert_frame_equal(found.tables[name], table, check_exact=True)
    figures = [sorted(file.name for file in (run / "figures").iterdir()) for run in (found.run_dir, study[1].run_dir)]
    assert figures[0] == figures[1]
    # Two processes each: activations, k-sparse probes, projections, gradients, firings, tables and figures; the two
    # linear probes are trained in two as well.
    assert len(forked) >= 2 * 7


def test_so_are_cross_fitted_ones_and_shuffles(tmp_path: Path, request: pytest.FixtureRequest):
    def run(name: str) -> dict[str, pd.DataFrame]:
        main(
            ["study", f"--config={CONFIG}", f"--run_dir={tmp_path / name}", f"--cache_dir={tmp_path / name}", *CROSSFIT]
        )
        return tables_of(tmp_path / name)

    alone = run("alone")
    begun = request.getfixturevalue("forked")
    found = run("forked")
    assert begun
    assert {"crossfit", "crossfit_words", "shuffles"} <= set(alone)
    for name, table in alone.items():
        pd.testing.assert_frame_equal(found[name], table, check_exact=True)


def test_a_signal_ends_all_processes_and_the_next_run_goes_on(
    study: Any, study_config: Any, forked: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path
):
    assert not forked
    gather, once = evidence_stages.gather_from_rows, tmp_path / "once"

    def stopped(*given: Any) -> Any:
        with suppress(FileExistsError):  # a second signal would end the run on the spot
            once.touch(exist_ok=False)
            os.kill(os.getppid(), signal.SIGTERM)
        return gather(*given)

    with monkeypatch.context() as patch:
        patch.setattr(evidence_stages, "gather_from_rows", stopped)
        with pytest.raises(SystemExit) as raised:
            main(["study", f"--config={CONFIG}", f"--run_dir={tmp_path / 'run'}", f"--cache_dir={tmp_path / 'cache'}"])
    assert raised.value.code == 143
    assert not multiprocessing.active_children()
    said = capsys.readouterr().err
    assert said.count("Stopped by SIGTERM. In the stage 'projections'") == 1
    assert not list((tmp_path / "cache").rglob("*.claim"))
    found = run_study(study_config(tmp_path))
    for name, table in study[1].tables.items():
        pd.testing.assert_frame_equal(found.tables[name], table, check_exact=True)


def test_an_error_in_a_process_is_the_study_s_own(
    forked: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path
):
    def short(*_: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(evidence_stages, "gather_from_rows", short)
    with pytest.raises((OSError, SystemExit)):
        main(["study", f"--config={CONFIG}", f"--run_dir={tmp_path / 'run'}", f"--cache_dir={tmp_path / 'cache'}"])
    assert forked
    assert not multiprocessing.active_children()
