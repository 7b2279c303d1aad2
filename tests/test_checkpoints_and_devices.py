"""Checkpoints that may hold anything, devices that are not there, files that are no text; and `python -m absorb_pl`."""

import errno
import os
import runpy
from pathlib import Path

import pytest
import torch

from absorb_pl.cli import main

pytestmark = pytest.mark.usefixtures("at_root")

CONFIGS = {"study": "study", "fit": "fit_linear", "test": "fit_linear", "predict": "predict_activations"}


class Dangerous:
    """Writes a file when it is unpickled."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


@pytest.fixture
def refusal(tmp_path, capsys):
    """Runs a command whose folders are below a new folder, and gives what is said when it is refused."""

    def run(command, *words):
        places = {
            "study": [f"--run_dir={tmp_path / 'run'}", f"--cache_dir={tmp_path / 'cache'}"],
            "predict": [f"--trainer.default_root_dir={tmp_path / 'run'}"],
        }.get(command, [f"--trainer.default_root_dir={tmp_path / 'run'}"])
        with pytest.raises(SystemExit) as raised:
            main([command, f"--config=tests/conf/{CONFIGS[command]}.yaml", *places, *words])
        assert raised.value.code == 1
        assert not (tmp_path / "run").exists()
        assert not (tmp_path / "cache").exists()
        return capsys.readouterr().err

    return run


@pytest.mark.parametrize("command", ["study", "fit", "predict"])
@pytest.mark.parametrize(
    "asked",
    [
        "devices=-1",
        "devices=0",
        "accelerator=tpu",
        pytest.param("accelerator=gpu", marks=pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")),
        "accelerator=abacus",
        "strategy=luck",
    ],
)
def test_devices_that_are_not_there(refusal, command, asked):
    said = refusal(command, f"--trainer.{asked}")
    assert f"absorb-pl {command}: TrainerError: `trainer` was " in said
    assert asked.split("=")[1] in said.partition(", expected devices that this machine has. ")[0]


@pytest.mark.parametrize("command", CONFIGS)
def test_a_configuration_that_is_no_text(refusal, command, tmp_path):
    file = tmp_path / "latin.yaml"
    file.write_bytes("seed: 1 # café".encode("latin-1"))
    said = refusal(command, "--config", str(file))
    assert f"ConfigFileError: `config` was '{file}', expected text in UTF-8. Save it so; byte 13 is not." in said


@pytest.mark.parametrize("command", ["fit", "test", "predict"])
@pytest.mark.parametrize("seed", [-1, 2**32, 2**63])
def test_a_seed_that_no_generator_takes(refusal, command, seed):
    assert f"`seed_everything` was {seed}, expected 0 to 2³² - 1." in refusal(command, f"--seed_everything={seed}")


@pytest.mark.parametrize("place", ["http://127.0.0.1:9/a.ckpt", "https://a.org/a.ckpt", "s3://a/a.ckpt", "file:///a"])
def test_addresses_are_not_fetched(refusal, place):
    said = refusal("test", f"--ckpt_path={place}")
    assert f"CheckpointError: `ckpt_path` was '{place}', expected a file on this machine." in said


@pytest.mark.parametrize("place", ["missing.ckpt", "best", "last", "tests"])
def test_a_checkpoint_that_is_not_there(refusal, place):
    said = refusal("test", f"--ckpt_path={place}")
    assert f"CheckpointError: `ckpt_path` was '{place}', expected the file of a checkpoint." in said


def test_code_in_a_checkpoint_does_not_run(refusal, tmp_path):
    torch.save({"state_dict": {}, "hyper_parameters": Dangerous(tmp_path / "ran")}, tmp_path / "a.ckpt")
    said = refusal("test", f"--ckpt_path={tmp_path / 'a.ckpt'}")
    assert (
        "expected a checkpoint that holds weights and settings alone. It is damaged, or carries code, which is not run."
        in said
    )
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"weights", b"PK\x03\x04 half of a file"])
def test_files_that_are_no_checkpoints(refusal, tmp_path, content):
    (tmp_path / "a.ckpt").write_bytes(content)
    assert "CheckpointError: `ckpt_path` was" in refusal("fit", f"--ckpt_path={tmp_path / 'a.ckpt'}")


def test_weights_without_their_checkpoint(refusal, tmp_path):
    torch.save({"weight": torch.zeros(2)}, tmp_path / "a.ckpt")
    assert "with a `state_dict`" in refusal("test", f"--ckpt_path={tmp_path / 'a.ckpt'}")


def test_a_full_disk_while_a_checkpoint_is_saved(study, monkeypatch, capsys, tmp_path):
    def no_space(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("lightning.fabric.plugins.io.torch_io._atomic_save", no_space)
    words = [f"--data.init_args.cache_dir={study[0].cache_dir}", f"--trainer.default_root_dir={tmp_path}"]
    with pytest.raises(SystemExit) as raised:
        main(["fit", "--config=tests/conf/fit_linear.yaml", *words])
    assert raised.value.code == 1
    assert "fit: OutputFolderError: `output folder` was" in (said := capsys.readouterr().err)
    assert "No space left on device. Free space" in said


@pytest.mark.parametrize("module", ["absorb_pl", "absorb_pl.cli"])
@pytest.mark.filterwarnings("ignore:.*found in sys.modules.*:RuntimeWarning")
def test_modules_run_as_the_program(module, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["absorb-pl", "list", "speller/l2-batchtopk-w512-medium"])
    runpy.run_module(module, run_name="__main__")
    assert "1 SAEs" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["absorb-pl", "nonsense"])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_module(module, run_name="__main__")
