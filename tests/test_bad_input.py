"""Bad input on the command line: a named error, exit code 1, a message that helps, and nothing half-written."""

import errno
import json
import os
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from absorb_pl import errors
from absorb_pl.cli import main
from absorb_pl.data import activation_cache
from absorb_pl.reports import figures

pytestmark = pytest.mark.usefixtures("at_root", "_one_thread")

MODEL = Path("tests/golden/gpt2-micro")
SAE = MODEL / "sae_standard_A"


def files_below(*folders):
    return [str(path) for folder in folders for path in folder.rglob("*") if path.is_file()]


@pytest.fixture
def run(tmp_path, capsys):
    """Run a study that must fail; gives the message after checking its kind and the exit code."""

    def fail(kind, *words, written=()):
        folders = [f"--run_dir={tmp_path / 'run'}", f"--cache_dir={tmp_path / 'cache'}"]
        with pytest.raises(SystemExit) as raised:
            main(["study", "--config=tests/conf/study.yaml", f"--saes=[{SAE}]", *folders, *words])
        assert raised.value.code == 1
        error = raised.value.__cause__
        assert type(error) is kind
        message = capsys.readouterr().err
        assert message == f"absorb-pl study: {kind.__name__}: {error}\n"
        assert f"`{error.argument}` was {error.value!r}, expected {error.expected}. {error.remedy}" in message
        left = files_below(tmp_path / "run", tmp_path / "cache")
        places = {Path(path).relative_to(tmp_path).parts[:2] for path in left}
        # which probes by themselves may have left in the cache that this one began as a copy of
        assert sorted(places - {("cache", "known_activations")}) == sorted(written)
        assert not [path for path in left if ".part" in path]
        return message

    return fail


# What a study that got as far as its activations may leave: its own settings.
STAGES = ("activations", "linear_probes", "sae_probing", "projections", "absorption", "firings")
CLAIMED = (("run", "config.yaml"), ("run", "manifest.json"))


def copy_of(source, folder):
    """A copy of a golden folder that may be changed."""
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("expected_*", "sae_*"), copy_function=shutil.copyfile)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return folder


def changed_sae(folder, change_weights=None, **settings):
    folder.mkdir()
    cfg = json.loads((SAE / "cfg.json").read_text())
    cfg["metadata"] |= settings.pop("metadata", {})
    (folder / "cfg.json").write_text(json.dumps(cfg | settings))
    weights = load_file(SAE / "sae_weights.safetensors")
    save_file(change_weights(weights) if change_weights else weights, folder / "sae_weights.safetensors")
    return folder


@pytest.mark.parametrize("name", ["/no/such/folder", "no-such/model"])
def test_unknown_model(run, name):
    message = run(errors.ModelNotFoundError, f"--model={name}")
    assert name in message
    assert "'speller'" in message
    assert "config.json" in message


@pytest.mark.parametrize("name", ["/no/such/folder", "no-such-release/layer_1", "speller/no-such-sae"])
def test_unknown_sae(run, name):
    message = run(errors.SaeNotFoundError, f"--saes=[{name}]")
    assert repr(name) in message
    assert ("speller/" if name.startswith("speller/") else "cfg.json") in message


def test_a_pattern_that_selects_no_sae(run):
    assert "'tests/golden/gpt2-micro/no*'" in run(errors.SaeNotFoundError, f"--saes=[{MODEL}/no*]")


def test_a_hook_that_does_not_exist(run, tmp_path):
    sae = changed_sae(tmp_path / "sae", metadata={"hook_name": "blocks.9.hook_resid_post"})
    message = run(errors.HookNotFoundError, f"--saes=[{sae}]")
    assert "'blocks.9.hook_resid_post'" in message
    assert "Closest: blocks." in message


def test_an_sae_of_another_width(run, tmp_path):
    def widen(weights):
        return {
            "W_enc": torch.ones(64, 160),
            "W_dec": torch.ones(160, 64),
            "b_enc": weights["b_enc"],
            "b_dec": torch.ones(64),
        }

    message = run(errors.SaeWidthError, f"--saes=[{changed_sae(tmp_path / 'sae', widen, d_in=64)}]")
    assert "d_in = 64" in message
    assert "expected 48, the width of blocks.1.hook_resid_post" in message


def test_a_tokenizer_without_alphabetic_tokens(run, tmp_path):
    folder = copy_of(MODEL, tmp_path / "model")
    backend = Tokenizer(models.WordLevel({"<s>": 0, "1": 1, "22": 2, ":": 3}, unk_token="<s>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", unk_token="<s>").save_pretrained(folder)
    assert "`tokenizer` was [], expected a vocabulary" in run(errors.VocabularyError, f"--model={folder}")


@pytest.mark.parametrize(
    ("words", "figures"),
    [
        (["--task.max_words=5"], ("was 5, expected at most 4",)),
        (["--task.max_icl_examples=500"], ("was 500, expected at most 237",)),
    ],
)
def test_fewer_words_than_examples_asked_for(run, words, figures):
    message = run(errors.PromptError, *words)
    assert "`max_icl_examples`" in message
    assert all(figure in message for figure in figures)


def test_a_prompt_longer_than_the_context(run):
    message = run(errors.ContextLengthError, "--task.max_icl_examples=20")
    # Twenty examples of seven tokens with their line ends, the question and the beginning of the sequence.
    assert "was 160, expected at least 167" in message
    assert "fewer ICL examples" in message


def test_no_words_to_hold_out(run):
    message = run(
        errors.LabelError,
        "--task.max_words=12",
        "--task.max_icl_examples=2",
    )
    assert "`test_fraction` was 0.2" in message
    assert "max_words" in message


def test_letters_without_words_say_so(study, tmp_path):
    main(
        [
            "study",
            "--config=tests/conf/study.yaml",
            f"--saes=[{SAE}]",
            "--task.max_words=70",
            f"--run_dir={tmp_path / 'run'}",
            f"--cache_dir={tmp_path / 'cache'}",
        ]
    )
    tables = {path.stem: pd.read_parquet(path) for path in (tmp_path / "run" / "tables").iterdir()}
    full = {path.stem: pd.read_parquet(path) for path in (study[1].run_dir / "tables").iterdir()}
    absent = tables["letters"]["reason"] == "no held-out words"
    for _, of_rule in tables["letters"].groupby("rule"):
        assert len(of_rule) == full["letters"]["label"].nunique() == 26
        assert 3 < (of_rule["reason"] != "no held-out words").sum() < 26
    assert not tables["letters"][absent]["evaluable"].any()
    assert (tables["letters"][absent][["num_words", "num_probe_true_positives", "num_absorbed"]] == 0).all(axis=None)
    rates = ["absorption_rate", "ci_low", "ci_high", "absorption_fraction", "fraction_ci_low", "fraction_ci_high"]
    rates += ["se_words", "se_absorbers", "se_sampling"]
    letters = [part.drop(columns=rates) for _, part in tables["letters"][~absent].groupby("rule")]
    words = [part for _, part in tables["words"].groupby("rule")]
    assert [part["sum_fraction"].isna().all() for part in letters] == [True, False, False]
    # What a rule does not have is missing from all its rows, what it has from none.
    by_rule = [part.dropna(axis="columns", how="all") for part in (*letters, *words)]
    for table in (*by_rule, tables["k_sparse"], tables["latents"], tables["candidates"]):
        assert not table.isna().any().any()
    assert tables["letters"][tables["letters"]["evaluable"]]["absorption_rate"].notna().all()
    for path in (tmp_path / "run" / "probes").iterdir():
        assert all(tensor.isfinite().all() for tensor in load_file(path).values())
    assert tables["summary"][["l0", "explained_variance", "probe_f1", "num_splits"]].notna().all().all()


def changed_biases(folder, values):
    """A copy of the model with other values in biases, by the end of their names."""
    copy_of(MODEL, folder)
    weights = load_file(folder / "model.safetensors")
    for end, value in values.items():
        weights[next(name for name in weights if name.endswith(end))][3] = value
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_model_that_is_not_finite(run, tmp_path, value):
    folder = changed_biases(tmp_path / "model", {"h.0.mlp.c_proj.bias": float(value)})
    assert "expected finite weights, but 1 in " in run(errors.NonFiniteError, f"--model={folder}")


def test_activations_that_are_not_finite(run, tmp_path):
    folder = changed_biases(tmp_path / "model", {"h.0.mlp.c_proj.bias": 3e38, "h.1.mlp.c_proj.bias": 3e38})
    message = run(errors.NonFiniteError, f"--model={folder}", written=CLAIMED)
    assert "blocks.1.hook_resid_post" in message
    assert "row" in message
    assert "weights" in message


def test_an_sae_that_is_not_finite(run, tmp_path):
    def spoil(weights):
        weights["W_enc"][0, 0] = float("nan")
        return weights

    assert "W_enc" in run(errors.NonFiniteError, f"--saes=[{changed_sae(tmp_path / 'sae', spoil)}]")


def shard_of(cache):
    return next(cache.glob("activations/blocks.1*/00000.bin"))


def test_a_corrupted_shard(run, study, tmp_path):
    shutil.copytree(study[0].cache_dir, tmp_path / "cache")
    shard = shard_of(tmp_path / "cache")
    os.truncate(shard, 1000)
    kept = {("cache", stage) for stage in STAGES}
    message = run(errors.CacheCorruptedError, written=(*CLAIMED, *kept))
    assert f"`{shard}` was '1000 bytes', expected {238 * 48 * 4} bytes" in message
    assert f"Delete {shard.parent}" in message


def test_a_wrong_start_does_not_stand_in_the_way(study, tmp_path, monkeypatch):
    folders = [f"--run_dir={tmp_path / 'run'}", f"--cache_dir={tmp_path / 'cache'}"]
    words = ["study", "--config=tests/conf/study.yaml", f"--saes=[{SAE}]", *folders]
    for wrong in ("--test_fraction=0", "--seed=7"):
        with monkeypatch.context() as patch:
            patch.setattr(pd.DataFrame, "to_parquet", no_space)
            with pytest.raises(SystemExit, match="1"):
                main([*words, wrong])
    main(words)
    found = pd.read_parquet(tmp_path / "run" / "tables" / "letters.parquet")
    expected = study[1].tables["letters"]
    pd.testing.assert_frame_equal(found, expected[expected["sae"] == str(SAE)].reset_index(drop=True))


def test_the_manifest_of_another_model(run, study, tmp_path):
    shutil.copytree(study[0].cache_dir, tmp_path / "cache")
    manifest = shard_of(tmp_path / "cache").with_name("manifest.json")
    content = json.loads(manifest.read_text())
    content["identity"]["model"] = "0" * 32
    manifest.write_text(json.dumps(content))
    kept = {("cache", stage) for stage in STAGES}
    message = run(errors.CacheCorruptedError, written=(*CLAIMED, *kept))
    assert str(manifest) in message
    assert "a manifest that matches its own checksum" in message


def test_the_run_folder_of_another_model(run, study, tmp_path):
    shutil.copytree(study[1].run_dir, tmp_path / "run")
    manifest = tmp_path / "run" / "manifest.json"
    content = json.loads(manifest.read_text())
    content["identity"]["model"] = "0" * 32
    manifest.write_text(json.dumps(content))
    before = {path: Path(path).read_bytes() for path in files_below(tmp_path / "run")}
    names = {("run", path.name) for path in study[1].run_dir.iterdir()}
    message = run(errors.ManifestMismatchError, written=names)
    assert "'model'" in message
    assert "Name another folder" in message
    assert {path: Path(path).read_bytes() for path in files_below(tmp_path / "run")} == before


@pytest.mark.parametrize("setting", ["run_dir", "cache_dir"])
def test_a_folder_below_a_file(run, tmp_path, setting):
    (tmp_path / "file").write_text("")
    message = run(errors.OutputFolderError, f"--{setting}={tmp_path / 'file' / 'x'}")
    assert str(tmp_path / "file" / "x") in message
    assert "Not a directory" in message
    assert (tmp_path / "file").read_text() == ""


def no_space(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_while_activations_are_cached(run, monkeypatch):
    monkeypatch.setattr(activation_cache.os, "pwrite", no_space)
    assert "No space left on device" in run(errors.OutputFolderError, written=CLAIMED)


def test_a_full_disk_while_a_stage_is_written(run, monkeypatch, tmp_path):
    monkeypatch.setattr(pd.DataFrame, "to_parquet", no_space)
    message = run(errors.OutputFolderError, written=(*CLAIMED, ("cache", "activations")))
    assert "No space left on device" in message
    assert str(tmp_path / "cache" / "linear_probes") in message


def test_a_full_disk_while_figures_are_saved(run, monkeypatch, study, tmp_path):
    shutil.copytree(study[0].cache_dir, tmp_path / "cache")
    monkeypatch.setattr(figures.Figure, "savefig", no_space)
    kept = {("cache", stage) for stage in STAGES}
    message = run(errors.OutputFolderError, written=(*CLAIMED, *kept))
    assert f"'{tmp_path / 'run' / 'figures'}'" in message
    assert "No space left on device" in message


@pytest.mark.parametrize(
    "words", [["--seed=abc"], ["--no_such_setting=1"], ["--task.vocabulary=all"], ["--config=no/such.yaml"]]
)
def test_settings_that_do_not_exist_are_bad_command_lines(words, tmp_path, capsys):
    with pytest.raises(SystemExit) as raised:
        main(["study", "--config=tests/conf/study.yaml", f"--run_dir={tmp_path / 'run'}", *words])
    assert raised.value.code == 2
    assert words[0].split("=")[0].removeprefix("--").split(".")[0] in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "kind", "text"),
    [
        (["fit", "--model.init_args.num_outputs=5"], "ShapeError", "`positives` was (26,), expected 5 classes"),
        (["fit", "--data.init_args.hook_name=blocks.7.x"], "HookNotFoundError", "'blocks.7.x'"),
        (["fit", "--data.init_args.model=/no/folder"], "ModelNotFoundError", "'/no/folder'"),
        (["fit", "--data.init_args.test_fraction=1.5"], "RangeError", "`test_fraction` was 1.5"),
    ],
)
def test_trainer_commands_name_their_errors(words, kind, text, tmp_path, capsys):
    command, *settings = words
    places = [f"--data.init_args.cache_dir={tmp_path / 'cache'}", f"--trainer.default_root_dir={tmp_path / 'run'}"]
    with pytest.raises(SystemExit) as raised:
        main([command, "--config=tests/conf/fit_linear.yaml", *places, *settings])
    assert raised.value.code == 1
    message = capsys.readouterr().err
    assert f"absorb-pl fit: {kind}: " in message
    assert text in message
    assert not list(tmp_path.rglob("*.ckpt"))
