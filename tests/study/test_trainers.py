"""What a study's Trainers are given from outside, and the traces that they leave."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from absorb_pl.cli import main
from absorb_pl.errors import TrainerError
from absorb_pl.study import TrainerSettings, run_study
from absorb_pl.study.trainers import stage_trainers

pytestmark = pytest.mark.usefixtures("at_root", "_one_thread")

CALLBACKS = """
import json
from lightning.pytorch import Callback

class Record(Callback):
    def __init__(self, file: str):
        self.file, self.seen = file, 0

    def on_predict_end(self, trainer, pl_module):
        self.seen += 1
        with open(self.file, "a") as stream:
            loggers = [type(logger).__name__ for logger in trainer.loggers]
            stream.write(json.dumps([type(pl_module).__name__, self.seen, loggers]) + "\\n")
"""


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, Any], Path]:
    """A callback of a user's, as settings name it, and the file that it writes."""
    (tmp_path / "callbacks_of_mine.py").write_text(CALLBACKS)
    monkeypatch.syspath_prepend(str(tmp_path))
    file = tmp_path / "seen.jsonl"
    return {"class_path": "callbacks_of_mine.Record", "init_args": {"file": str(file)}}, file


def test_each_stage_calls_a_callback_of_its_own(study_config: Any, tmp_path: Path, record: Any):
    given, file = record
    logger = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": str(tmp_path / "logs")}}
    words = [f"--trainer.callbacks={json.dumps([given])}", f"--trainer.logger={json.dumps([logger])}"]
    config = study_config(tmp_path, *words, "--until=linear-probes")
    assert asdict(config.trainer)["callbacks"] == [given]
    run_study(config)
    seen = [json.loads(line) for line in file.read_text().splitlines()]
    assert seen == [["ActivationCollector", 1, ["CSVLogger"]], ["_UnitLoop", 1, ["CSVLogger"]]]


@pytest.mark.parametrize("given", [{"class_path": "no.such.Class"}, {"class_path": "torch.nn.Linear"}, {"a": 1}])
@pytest.mark.parametrize("argument", ["callbacks", "logger", "plugins"])
def test_other_classes_are_refused_by_argument(argument: str, given: dict[str, Any]):
    settings: Any = {argument: [given]}
    with pytest.raises(TrainerError, match=rf"`trainer.{argument}` was "):
        stage_trainers(TrainerSettings(**settings), "a stage")([])


def test_a_precision_plugin_is_no_cluster():
    given = [{"class_path": "lightning.pytorch.plugins.HalfPrecision"}]
    with pytest.raises(TrainerError, match="`class_path` of a ClusterEnvironment"):
        stage_trainers(TrainerSettings(plugins=given), "a stage")([])


def test_devices_are_those_that_there_are():
    auto = TrainerSettings(accelerator="cpu", devices="auto", enable_progress_bar=False)
    assert stage_trainers(auto, "a stage")([]).num_devices == 1
    with pytest.raises(TrainerError, match=r"expected devices that this machine has.*CPUAccelerator"):
        stage_trainers(TrainerSettings(accelerator="cpu", devices=-1), "a stage")([])


@pytest.mark.parametrize("option", ["precision", "limit_predict_batches", "inference_mode", "no_such_option"])
def test_options_that_a_study_does_not_leave_open_are_refused_by_name(
    option: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    with pytest.raises(SystemExit):
        main(["study", "--config=tests/conf/study.yaml", f"--run_dir={tmp_path}", f"--trainer.{option}=1"])
    assert f"trainer.{option}" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_a_profiled_study_leaves_traces(study_config: Any, tmp_path: Path):
    run_study(study_config(tmp_path, "--profile=true", "--until=linear-probes"))
    for stage in ("activations", "linear-probes"):
        [file] = (tmp_path / "run" / "profile" / stage).glob("*.pt.trace.json")
        events = json.loads(file.read_text())["traceEvents"]
        assert any(event.get("name") == "aten::mm" or event.get("name") == "aten::addmm" for event in events)


def test_a_profiled_study_is_the_same_study(study: Any, study_config: Any, tmp_path: Path):
    config, found = study
    again = run_study(study_config(tmp_path, "--profile=true", f"--cache_dir={config.cache_dir}"))
    assert not (tmp_path / "run" / "profile").exists()  # nothing was made
    for name, table in found.tables.items():
        pd.testing.assert_frame_equal(again.tables[name], table)
