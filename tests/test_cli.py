"""The command line as it is typed: help, configurations, fit, test, predict, study."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file

from absorb_pl import __version__
from absorb_pl.cli import COMMANDS, main
from absorb_pl.data import ActivationDataModule
from absorb_pl.models import load_language_model
from absorb_pl.probes import LinearProbe, SaeProbe
from absorb_pl.reports.names import short_names
from absorb_pl.words import TaskConfig

pytestmark = pytest.mark.usefixtures("at_root")

ROOT = Path(__file__).parents[1]
CONF = "tests/conf"
MODEL = "tests/golden/gpt2-micro"
LETTERS = 26


def test_help_lists_the_commands_without_loading_anything_heavy():
    code = (
        "import sys\n"
        "from absorb_pl.cli import main\n"
        "main(['--help'])\n"
        "main(['--version'])\n"
        "heavy = {'torch', 'lightning', 'transformers', 'sae_lens', 'pandas', 'jsonargparse'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    lines = [line for line in done.stdout.splitlines() if line.split(" ")[2:3] and line.startswith("  ")]
    for command, description in COMMANDS.items():
        assert sum(line.split()[0] == command and line.endswith(description) for line in lines) == 1
    assert f"absorb-pl {__version__}" in done.stdout


def test_no_words_show_the_help(capsys):
    main([])
    shown = capsys.readouterr().out
    assert all(command in shown for command in COMMANDS)


def test_an_unknown_command_is_named(capsys):
    with pytest.raises(SystemExit) as raised:
        main(["analyse"])
    assert raised.value.code == 2
    assert "no command 'analyse'" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict", "demo", "study", "rescore"])
def test_each_command_has_its_help(command, capsys):
    with pytest.raises(SystemExit) as raised:
        main([command, "--help"])
    assert raised.value.code == 0
    assert "--print_config" in capsys.readouterr().out


def printed_config(capsys, *words):
    with pytest.raises(SystemExit) as raised:
        main([*words, "--print_config"])
    assert raised.value.code == 0
    return yaml.safe_load(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("command", "file"),
    [
        ("fit", "fit_linear"),
        ("fit", "fit_k_sparse"),
        ("test", "fit_linear"),
        ("predict", "predict_activations"),
        ("predict", "predict_absorption"),
    ],
)
def test_configurations_are_printed_whole(command, file, capsys):
    printed = printed_config(capsys, command, f"--config={CONF}/{file}.yaml", "--seed_everything=7")
    given = yaml.safe_load(Path(f"{CONF}/{file}.yaml").read_text())
    assert printed["model"]["class_path"] == given["model"]["class_path"]
    assert printed["model"]["init_args"].items() >= given["model"].get("init_args", {}).items()
    assert printed["data"]["init_args"]["task"]["max_icl_examples"] == given["data"]["init_args"].get("task", {}).get(
        "max_icl_examples"
    )
    assert printed["seed_everything"] == 7


def test_the_study_prints_its_settings_with_overrides(capsys):
    printed = printed_config(capsys, "study", f"--config={CONF}/study.yaml", "--rules.paper.steps=9", "--task.seed=3")
    assert (printed["rules"]["paper"]["steps"], printed["rules"]["paper"]["delta_threshold"]) == (9, 0.0004)
    assert printed["task"] | {"seed": 3, "max_icl_examples": 5} == printed["task"]
    assert printed["saes"] == ["tests/golden/gpt2-micro/sae_*"]


def test_saes_may_have_names_of_ones_own(capsys):
    printed = printed_config(capsys, "study", "--saes={mine: my_folder, all: speller/*}", "--model=12")
    assert (printed["saes"], printed["model"]) == ({"mine": "my_folder", "all": "speller/*"}, "12")
    for wrong in ("[3]", "{mine: [a]}", "[{a: b}]"):
        with pytest.raises(SystemExit) as raised:
            main(["study", f"--saes={wrong}"])
        assert raised.value.code == 1
        assert "AbsorbError: `saes` was" in capsys.readouterr().err


def test_the_demo_is_the_study_of_its_configuration(capsys):
    given = ["--rules.paper.steps=9", "--task.seed=3"]
    shown = printed_config(capsys, "demo", *given)
    assert shown == printed_config(capsys, "study", "--config=configs/demo.yaml", *given)
    assert (shown["run_dir"], shown["rules"]["paper"]["steps"]) == ("lightning_logs/demo", 9)


@pytest.mark.parametrize("file", sorted(path.name for path in (ROOT / "configs").glob("*.yaml")))
def test_the_configurations_of_the_repository_parse(file, capsys):
    text = Path(f"configs/{file}").read_text()
    named = (name for name in ("fit", "test", "predict", "calibrate") if file.startswith(name))
    command = "fit" if file.startswith("train_") else next(named, "study")
    printed = printed_config(capsys, command, f"--config=configs/{file}")
    for key, value in yaml.safe_load(text).items():
        if not isinstance(value, dict):
            assert printed[key] == value


def fit(file, folder, *words):
    places = [f"--data.init_args.cache_dir={folder / 'cache'}", f"--trainer.default_root_dir={folder / 'run'}"]
    main(["fit", f"--config={CONF}/{file}.yaml", *places, *words])
    (checkpoint,) = (folder / "run").rglob("*.ckpt")
    return checkpoint, places


def figures_of(folder, capsys):
    """The figures of the latest test, from the table that Lightning prints."""
    out = capsys.readouterr().out
    cells = [[cell.strip() for cell in line.strip("│┃ ").split("│")] for line in out.splitlines() if "test/" in line]
    assert cells, folder
    return {name: float(value) for name, value in cells}


def held_out(folder):
    data = ActivationDataModule(
        load_language_model(MODEL), "blocks.1.hook_resid_post", TaskConfig(max_icl_examples=5), folder / "cache"
    )
    rows = data.splits["test"]
    return data.cache.rows(rows), data.labels[rows].bool()


def f1(said, truth):
    return 2 * (said & truth).sum(0) / (said.sum(0) + truth.sum(0)).clamp(min=1)


def test_fit_and_test_a_linear_probe(tmp_path, capsys):
    checkpoint, places = fit("fit_linear", tmp_path)
    state = torch.load(checkpoint, weights_only=True)
    assert state["state_dict"]["fc.weight"].shape == (LETTERS, 48)
    assert state["hyper_parameters"]["input_dim"] == 48
    capsys.readouterr()
    main(["test", f"--config={CONF}/fit_linear.yaml", *places, f"--ckpt_path={checkpoint}"])
    figures = figures_of(tmp_path, capsys)
    probe = LinearProbe.load_from_checkpoint(checkpoint, weights_only=True)
    x, y = held_out(tmp_path)
    with torch.no_grad():
        said = probe(x) > 0
    occurs = y.any(dim=0)
    assert figures["test/f1"] == pytest.approx(f1(said, y)[occurs].mean().item(), abs=1e-5)


@pytest.mark.parametrize(("command", "split"), [("test", "test"), ("validate", "val")])
def test_words_that_were_trained_on_are_not_scored(tmp_path, capsys, command, split):
    checkpoint, places = fit("fit_linear", tmp_path)
    words = [command, f"--config={CONF}/fit_linear.yaml", *places, f"--ckpt_path={checkpoint}"]
    main(words)
    capsys.readouterr()
    with pytest.raises(SystemExit) as raised:
        main([*words, "--data.init_args.split_seed=7"])
    assert raised.value.code == 1
    model, task = load_language_model(MODEL), TaskConfig(max_icl_examples=5)
    before, now = (ActivationDataModule(model, task=task, split_seed=seed).splits for seed in (42, 7))
    scored = set(now[split].tolist())
    seen = len(scored & set(before["train"].tolist()))
    said = f"`split_seed` was 7, expected words that were held out in training; {seen} of {len(scored)} were trained on"
    assert f"SplitError: {said}" in capsys.readouterr().err
    assert seen > len(scored) / 2


def test_fit_and_test_a_k_sparse_probe(tmp_path, capsys):
    checkpoint, places = fit("fit_k_sparse", tmp_path)
    state = torch.load(checkpoint, weights_only=True)
    assert state["hyper_parameters"]["sae"] == f"{MODEL}/sae_standard_A"
    assert not [name for name in state["state_dict"] if "W_dec" in name]
    capsys.readouterr()
    main(["test", f"--config={CONF}/fit_k_sparse.yaml", *places, f"--ckpt_path={checkpoint}"])
    figures = figures_of(tmp_path, capsys)
    probe = SaeProbe.load_from_checkpoint(checkpoint, weights_only=True)
    x, y = held_out(tmp_path)
    with torch.no_grad():
        said = probe(x) > 0
    occurs = y.any(dim=0)
    for number, k in enumerate((1, 2, 5)):
        assert figures[f"test/f1_k{k}"] == pytest.approx(f1(said[:, number], y)[occurs].mean().item(), abs=1e-5)


def test_evaluators_run_as_callbacks_of_test(tmp_path, capsys):
    checkpoint, places = fit("fit_linear", tmp_path)
    capsys.readouterr()
    main(
        [
            "test",
            f"--config={CONF}/fit_linear.yaml",
            *places,
            f"--ckpt_path={checkpoint}",
            "--trainer.callbacks+=absorb_pl.evaluators.Evaluate",
            f"--trainer.callbacks.sae={MODEL}/sae_standard_A",
            "--trainer.callbacks.rules=saebench-0.6.0",
        ]
    )
    (file,) = (tmp_path / "run").rglob("latents.parquet")
    table = pd.read_parquet(file)
    shown = figures_of(tmp_path, capsys)["test/sae/top_latent_recall"]
    assert shown == pytest.approx(table[table["rank"] == 0]["recall"].mean(), abs=1e-5)


def test_fit_is_repeatable(tmp_path):
    states = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        checkpoint, _ = fit("fit_k_sparse", tmp_path / name)
        states.append(torch.load(checkpoint, weights_only=True)["state_dict"])
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_predict_caches_activations(study, tmp_path):
    words = [
        "predict",
        f"--config={CONF}/predict_activations.yaml",
        f"--trainer.default_root_dir={tmp_path}",
        "--trainer.callbacks=absorb_pl.data.ActivationCacheWriter",
        f"--trainer.callbacks.cache_dir={tmp_path}",
    ]
    for _ in range(2):
        main(words)
    found = sorted(tmp_path.glob("activations/*/00000.bin"))
    expected = sorted(Path(study[0].cache_dir).glob("activations/*/00000.bin"))
    assert [path.parent.name for path in found] == [path.parent.name for path in expected]
    assert len(found) == 2
    for ours, theirs in zip(found, expected, strict=True):
        a, b = (torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.float32) for path in (ours, theirs))
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_predict_judges_the_candidates_of_a_study(study, tmp_path):
    folder = study[1].run_dir
    main(
        [
            "predict",
            f"--config={CONF}/predict_absorption.yaml",
            f"--trainer.default_root_dir={tmp_path}",
            f"--model.init_args.inputs={folder}",
            f"--data.init_args.rows={folder}/tables/candidates.parquet",
            "--trainer.callbacks=absorb_pl.evaluators.VerdictWriter",
            f"--trainer.callbacks.path={tmp_path / 'words.parquet'}",
            "--trainer.callbacks.rules={paper: {delta_threshold: 0.0004}}",
        ]
    )
    words = study[1].tables["words"]
    expected = words[(words["rule"] == "paper") & (words["sae"] == f"{MODEL}/sae_topk_B")].reset_index(drop=True)
    found = pd.read_parquet(tmp_path / "words.parquet")
    assert len(found) >= 3
    columns = ["row", "word", "label", "prompt", "is_absorption", "top_latent"]
    pd.testing.assert_frame_equal(found[columns], expected[columns])
    assert found["top_score"].tolist() == pytest.approx(expected["top_score"].tolist(), rel=1e-4)


def test_the_study_command(study, tmp_path, capsys):
    main(["study", f"--config={CONF}/study.yaml", f"--run_dir={tmp_path}", f"--cache_dir={study[0].cache_dir}"])
    out = capsys.readouterr().out
    assert all(name in out for name in short_names(study[1].tables["summary"]["sae"]).values())
    found = pd.read_parquet(tmp_path / "tables" / "summary.parquet")
    pd.testing.assert_frame_equal(found, pd.read_parquet(study[1].run_dir / "tables" / "summary.parquet"))
    for hook in ("blocks.1.hook_resid_post", "blocks.3.hook_resid_pre"):
        a, b = (load_file(folder / "probes" / f"{hook}.safetensors") for folder in (tmp_path, study[1].run_dir))
        assert all(torch.equal(a[name], b[name]) for name in ("weight", "bias"))
