"""Studies whose small pieces are done in forked processes: the same tables, and a stop that leaves nothing behind."""

import multiprocessing
import os
import signal
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from absorb_pl.cli import main
from absorb_pl.data import forks
from absorb_pl.errors import ShapeError
from absorb_pl.study import evidence_stages, run_study

pytestmark = [
    pytest.mark.usefixtures("at_root", "_one_thread"),
    pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux alone"),
]
CONFIG = "tests/conf/study.yaml"
MORE = (
    "--crossfit.folds=2",
    "--crossfit.repeats=2",
    "--shuffles=3",
    "--rules={paper: {delta_threshold: 0.0004}, saebench-0.6.0: {}, absorb-pl-1: {}}",
    "--prompt_batch_size=3",  # several batches of the few words whose main latents are silent
)


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Two processes where there is one thread; gives what they are asked to do."""
    begun, start = [], forks._start

    def recorded(work: Any, *rest: Any) -> None:
        begun.append(work)
        start(work, *rest)

    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(forks, "MOST_VALUES", 2**24)  # the micro model has GPT-2's vocabulary
    monkeypatch.setattr(forks, "_start", recorded)
    return begun


def name_of(work: Any) -> str:
    """What forked processes do: the title of a stage, the name of a module, or of a function."""
    module = getattr(work, "__self__", None)
    return str(getattr(getattr(module, "stage", None), "title", type(module).__name__)) if module else work.__name__


def tables_of(folder: Path) -> dict[str, pd.DataFrame]:
    return {file.stem: pd.read_parquet(file) for file in sorted((folder / "tables").glob("*.parquet"))}


def test_tables_are_those_of_one_process_bit_for_bit(study: Any, study_config: Any, forked: list[Any], tmp_path: Path):
    found = run_study(study_config(tmp_path))
    for name, table in study[1].tables.items():
        pd.testing.assert_frame_equal(found.tables[name], table, check_exact=True)
    figures = [sorted(file.name for file in (run / "figures").iterdir()) for run in (found.run_dir, study[1].run_dir)]
    assert figures[0] == figures[1]
    stages = ["linear probes", "k-sparse probes", "projections", "firings"]
    others = ["ActivationCollector", "tables_of", "save"]
    assert Counter(map(name_of, forked)) == dict.fromkeys([*stages, *others], 2)


def test_so_are_those_of_gradients_cross_fitting_and_shuffles(tmp_path: Path, request: pytest.FixtureRequest):
    def run(name: str) -> dict[str, pd.DataFrame]:
        main(["study", f"--config={CONFIG}", f"--run_dir={tmp_path / name}", f"--cache_dir={tmp_path / name}", *MORE])
        return tables_of(tmp_path / name)

    alone = run("alone")
    begun = request.getfixturevalue("forked")
    found = run("forked")
    assert {"AbsorptionEvaluator", "cross-fit", "shuffles"} <= set(map(name_of, begun))
    assert {"crossfit", "crossfit_letters", "crossfit_words", "shuffles"} <= set(alone)
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


def test_a_profiler_sees_all_work(study_config: Any, forked: list[Any], tmp_path: Path):
    run_study(study_config(tmp_path, "--profile=true", "--until=linear-probes"))
    assert not forked


def test_an_error_in_a_process_is_the_study_s_own(
    study_config: Any, forked: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    def refused(*_: Any) -> Any:
        raise ShapeError("x", 3, expected="four", remedy="Take another.")

    monkeypatch.setattr(evidence_stages, "gather_from_rows", refused)
    with pytest.raises(ShapeError, match=r"`x` was 3, expected four. Take another."):
        run_study(study_config(tmp_path))
    assert forked
    assert not multiprocessing.active_children()
