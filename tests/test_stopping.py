"""SIGTERM and SIGINT in every stage: what is said, how the process ends, and what the next run goes on from."""

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from absorb_pl.cli import main
from absorb_pl.data import collector
from absorb_pl.evaluators import writers
from absorb_pl.interruption import interruptible, uninterrupted
from absorb_pl.probes import LinearProbe, fitting, train_multi_probe
from absorb_pl.reports import report
from absorb_pl.study import evidence_stages, firing_stage, rescore, run_study

pytestmark = pytest.mark.usefixtures("at_root", "_one_thread")

ROOT = Path(__file__).parents[1]
CONFIG = "tests/conf/study.yaml"
STAGES = ["activations", "linear_probes", "sae_probing", "projections", "absorption", "firings"]
# Where the signal comes, by stage of the cache: what is called, which call of it, and finished artifacts afterwards.
SENT_AT = {
    "activations": (collector, "write_rows", 3, 0),
    "linear_probes": (fitting._Curve, "on_train_epoch_end", 2, 2 + 1),
    "sae_probing": (fitting._Curve, "on_train_epoch_end", 5, 2 + 2 + 2),  # two of a hook are trained side by side
    "projections": (evidence_stages, "gather_from_rows", 2, 2 + 2 + 3 + 1),
    "absorption": (writers.PredictionTableWriter, "write_on_batch_end", 1, 2 + 2 + 3 + 3),
    "firings": (firing_stage, "firings_table", 2, 2 + 2 + 3 + 3 + 3 + 1),
    "report": (report, "save_figures", 1, 2 + 2 + 3 + 3 + 3 + 3),
}
NAMES = {"linear_probes": "linear probes", "sae_probing": "k-sparse probes"}


def send_at(monkeypatch, place, name, number, signum=signal.SIGTERM):
    """Make a function send this process a signal when it is called for the nth time."""
    function, calls = getattr(place, name), []

    @functools.wraps(function)
    def called(*args, **settings):
        calls.append(name)
        if len(calls) == number:
            os.kill(os.getpid(), signum)
        return function(*args, **settings)

    monkeypatch.setattr(place, name, called)


def artifacts(folder):
    return sorted(path.parent.name for path in (folder / "cache").glob("*/[!.]*/manifest.json"))


def stopped(folder, *words, command="study", config=CONFIG):
    places = [f"--run_dir={folder / 'run'}", f"--cache_dir={folder / 'cache'}"] if command == "study" else []
    with pytest.raises(SystemExit) as raised:
        main([command, f"--config={config}", *places, *words])
    return raised.value.code


@pytest.mark.parametrize("stage", SENT_AT)
def test_a_study_stops_in_every_stage_and_goes_on(stage, study, study_config, monkeypatch, capsys, tmp_path):
    for done in STAGES[: STAGES.index(stage) if stage in STAGES else len(STAGES)]:
        shutil.copytree(Path(study[0].cache_dir) / done, tmp_path / "cache" / done)
    place, name, number, kept = SENT_AT[stage]
    monkeypatch.setattr(report, "draw_figures", lambda _: {})
    handlers = [signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)]
    with monkeypatch.context() as patch:
        send_at(patch, place, name, number)
        assert stopped(tmp_path) == 143
    assert [signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)] == handlers
    said = capsys.readouterr().err
    assert f"Stopped by SIGTERM. In the stage {NAMES.get(stage, stage)!r}; finished stages: load" in said
    assert f"is kept in {tmp_path / 'cache'}. The same command goes on from there." in said
    assert len(artifacts(tmp_path)) == kept
    assert not list(tmp_path.rglob("*.part"))
    assert not (tmp_path / "run" / "tables").exists()
    result = run_study(study_config(tmp_path))
    assert len(artifacts(tmp_path)) == 16
    for table, frame in study[1].tables.items():
        pd.testing.assert_frame_equal(result.tables[table], frame, check_exact=True)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupts_end_with_their_code(signum, code, study, monkeypatch, capsys, tmp_path):
    shutil.copytree(Path(study[0].cache_dir) / "activations", tmp_path / "cache" / "activations")
    send_at(monkeypatch, fitting._Curve, "on_train_epoch_end", 1, signum)
    assert stopped(tmp_path) == code
    assert f"Stopped by {signal.Signals(signum).name}. In the stage 'linear probes'" in capsys.readouterr().err


def test_an_interrupt_is_a_keyboard_interrupt_in_python(study_config, monkeypatch, tmp_path):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background may ignore it
    send_at(monkeypatch, collector, "write_rows", 1, signal.SIGINT)
    try:
        with pytest.raises(KeyboardInterrupt):
            run_study(study_config(tmp_path))
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_trainer_commands_stop_too(signum, code, study, monkeypatch, capsys, tmp_path):
    send_at(monkeypatch, LinearProbe, "training_loss", 2, signum)
    places = [
        "--model.init_args.solver=adam",
        f"--data.init_args.cache_dir={study[0].cache_dir}",
        f"--trainer.default_root_dir={tmp_path}",
    ]
    assert stopped(tmp_path, *places, command="fit", config="tests/conf/fit_linear.yaml") == code
    assert f"Stopped by {signal.Signals(signum).name}." in capsys.readouterr().err


def test_a_probe_fitted_by_itself_stops(monkeypatch):
    """Lightning's own answer to SIGTERM in a fit is to end the process with exit code 0."""
    x = torch.eye(2).repeat(8, 1)
    send_at(monkeypatch, fitting._Curve, "on_train_epoch_end", 2)
    with pytest.raises(SystemExit, match="143"):
        train_multi_probe(x, x, num_epochs=5, show_progress=False)


def test_rescoring_stops_and_leaves_the_tables_of_before(study, monkeypatch, tmp_path):
    run_dir = shutil.copytree(study[1].run_dir, tmp_path / "run")
    words = ["rescore", f"--run_dir={run_dir}", "--delta_threshold=0.001"]
    main(words)
    before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    send_at(monkeypatch, rescore, "save_figures", 1)
    with pytest.raises(SystemExit, match="143"):
        main(words)
    assert {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()} == before


def test_signals_wait_for_what_must_not_be_cut_in_two():
    done = []

    def work():
        with interruptible():
            with uninterrupted():
                os.kill(os.getpid(), signal.SIGTERM)
                done.append("held back")
            done.append("never")

    with pytest.raises(SystemExit, match="143"):
        work()
    assert done == ["held back"]


def child(code):
    environment = {**os.environ, "LOCAL_RANK": "0"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, text=True, env=environment, **pipes)


def test_a_process_that_does_not_listen_is_ended():
    """Its main thread swallows what is raised in it and keeps on."""
    process = child(
        "import signal\n"
        "from absorb_pl import interruption\n"
        "interruption.GRACE_SECONDS = 0.05\n"
        "with interruption.interruptible(lambda: 'Two rows are kept.'):\n"
        "    print('begun', flush=True)\n"
        "    while True:\n"
        "        try:\n"
        "            signal.pause()\n"
        "        except BaseException: pass\n"
    )
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143
    assert said == "Stopped by SIGTERM. Two rows are kept.\n"


def alive(pid):
    """Whether a process runs; one that has ended and was not yet collected does not."""
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


# When the main process of two is sent the signal: stage of the cache, what is called, which call, rank of the sender.
IN_TWO = {
    "activations": ("collector.write_rows", 2, 0),
    "sae_probing": ("fitting._Curve.on_train_epoch_end", 2, 1),
}


@pytest.mark.slow
@pytest.mark.parametrize("stage", IN_TWO)
def test_two_processes_stop_together(stage, study, tmp_path):
    for done in STAGES[: STAGES.index(stage)]:
        shutil.copytree(Path(study[0].cache_dir) / done, tmp_path / "cache" / done)
    place, number, sender = IN_TWO[stage]
    words = [
        "study",
        f"--config={CONFIG}",
        f"--run_dir={tmp_path / 'run'}",
        f"--cache_dir={tmp_path / 'cache'}",
        "--trainer.devices=2",
        "--trainer.strategy=ddp",
    ]
    command = [sys.executable, "tests/stop_study.py", str(tmp_path), place, str(number), str(sender), *words]
    environment = {key: value for key, value in os.environ.items() if key not in ("LOCAL_RANK", "WORLD_SIZE")}
    done = subprocess.run(
        command, cwd=ROOT, env={**environment, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 143, done.stderr[-3000:]
    assert done.stderr.count("Stopped by SIGTERM. In the stage ") == 1
    assert "Traceback" not in done.stderr
    processes = {path.name: json.loads(path.read_text()) for path in tmp_path.glob("rank-*.json")}
    assert sorted(processes) == ["rank-0.json", "rank-1.json"]
    assert not any(alive(process["pid"]) for process in processes.values())
    assert not list(tmp_path.rglob("*.part"))
