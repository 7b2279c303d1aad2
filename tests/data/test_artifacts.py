"""Artifacts are whole or absent; run folders hold one run."""

import json

import pytest
import yaml

from absorb_pl.data.artifacts import artifact_path, open_artifact, write_artifact
from absorb_pl.data.run_folder import RunFolder
from absorb_pl.errors import CacheCorruptedError, ManifestMismatchError, OutputFolderError


def test_an_artifact_interrupted_while_it_is_built_is_absent(tmp_path):
    path = tmp_path / "stage" / "a"

    def build(text):
        with write_artifact(path, {"seed": 1}) as folder:
            (folder / "note.txt").write_text(text)
            if text == "half":
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build("half")
    assert list((tmp_path / "stage").iterdir()) == []
    build("whole")
    with pytest.raises(KeyboardInterrupt):
        build("half")
    assert (open_artifact(path, {"seed": 1}) / "note.txt").read_text() == "whole"


def test_the_manifest_counts_the_files(tmp_path):
    with write_artifact(tmp_path / "a", {"seed": 1}, {"rows": 3}) as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "x.bin").write_bytes(b"12345")
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert manifest["files"]["deep/x.bin"]["bytes"] == 5
    assert (manifest["identity"], manifest["facts"]) == ({"seed": 1}, {"rows": 3})


def test_folders_that_cannot_be_written_are_named(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(OutputFolderError, match=r"file.*Not a directory.*name another folder"),
        write_artifact(tmp_path / "file" / "stage" / "a", {}),
    ):
        pass
    with pytest.raises(OutputFolderError, match=r"file/run.*Not a directory"):
        RunFolder(tmp_path / "file" / "run", {})


def test_a_run_folder_refuses_another_run(tmp_path):
    run = RunFolder(tmp_path, {"seed": 1, "saes": ["a"]})
    run.claim({"seed": 1, "rule": {"steps": 6}}, {"a": "1"})
    with run.stage("work") as facts:
        facts["made"] = 2
    (tmp_path / "tables").mkdir()
    before = (tmp_path / "manifest.json").read_bytes(), (tmp_path / "config.yaml").read_bytes()
    with pytest.raises(ManifestMismatchError, match=r"'steps': 6.*'steps': 7.*Name another folder") as raised:
        RunFolder(tmp_path, {"seed": 1}).claim({"seed": 1, "rule": {"steps": 7}}, {"a": "1"})
    assert raised.value.value == {"rule": {"steps": 6}}
    assert ((tmp_path / "manifest.json").read_bytes(), (tmp_path / "config.yaml").read_bytes()) == before
    RunFolder(tmp_path, {"saes": ["a", "b"]}).claim({"rule": {"steps": 6}, "seed": 1}, {"a": "1", "b": "2"})
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["contents"] == {"a": "1", "b": "2"}
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == {"saes": ["a", "b"]}


def test_a_run_without_results_claims_nothing(tmp_path):
    RunFolder(tmp_path, {"seed": 1}).claim({"seed": 1}, {"a": "1"})
    RunFolder(tmp_path, {"seed": 2}).claim({"seed": 2}, {"b": "1"})
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert (manifest["identity"], manifest["contents"]) == ({"seed": 2}, {"b": "1"})
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == {"seed": 2}


@pytest.mark.parametrize("result", ["tables", "published.json", "summary_so_far.parquet"])
def test_a_run_with_results_keeps_its_folder(result, tmp_path):
    RunFolder(tmp_path, {}).claim({"seed": 1}, {"a": "1"})
    (tmp_path / result).touch()
    with pytest.raises(ManifestMismatchError, match="'seed': 1"):
        RunFolder(tmp_path, {}).claim({"seed": 2}, {"a": "1"})


def test_a_folder_that_could_be_written_is_not_made(tmp_path):
    RunFolder(tmp_path / "deep" / "run", {})
    assert list(tmp_path.iterdir()) == []


def test_long_names_fit_into_file_names(tmp_path):
    path = artifact_path(tmp_path, "stage", "/folder" * 60, {"seed": 1})
    with write_artifact(path, {"seed": 1}):
        pass
    assert open_artifact(path, {"seed": 1}) == path
    assert path != artifact_path(tmp_path, "stage", "/folder" * 60, {"seed": 2})


def test_the_manifest_of_a_run_says_what_it_cost(tmp_path):
    run = RunFolder(tmp_path, {})
    with run.stage("before the claim"):
        pass
    run.claim({"seed": 1}, {})
    with run.stage("work") as facts:
        facts["made"] = 2
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert list(manifest["stages"]) == ["before the claim", "work"]
    assert manifest["stages"]["work"]["made"] == 2
    assert manifest["stages"]["work"]["seconds"] >= 0
    assert 10 < manifest["stages"]["work"]["peak_memory_mib"] < 1e6
    assert {"absorb_pl", "python", "torch", "lightning", "transformer-lens", "sae-lens"} <= manifest["versions"].keys()


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"identity": [], "contents": {}}'])
def test_a_manifest_that_cannot_be_read_is_named(tmp_path, content):
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(CacheCorruptedError, match=r"manifest.json.*Delete the run folder"):
        RunFolder(tmp_path, {}).claim({"seed": 1}, {})


def test_one_process_of_several_writes(tmp_path):
    run = RunFolder(tmp_path / "run", {}, writes=False)
    run.claim({"seed": 1}, {})
    with run.stage("work"):
        pass
    assert not (tmp_path / "run").exists()
