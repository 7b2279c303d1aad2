"""The study end to end on the micro model: its folder, repeated, on two processes, and killed."""

import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from kill_study import run_until_death
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from absorb_pl.cli import main
from absorb_pl.data import PromptDataModule, stratified_split
from absorb_pl.errors import CacheCorruptedError, ManifestMismatchError
from absorb_pl.reports import report
from absorb_pl.reports.names import short_names
from absorb_pl.study import rescore_run, run_study

pytestmark = pytest.mark.usefixtures("at_root", "_one_thread")

ROOT = Path(__file__).parents[2]
CONFIG = "tests/conf/study.yaml"
SAES = [f"tests/golden/gpt2-micro/sae_{name}" for name in ("jumprelu_A", "standard_A", "topk_B")]
HOOKS = ["blocks.1.hook_resid_post", "blocks.3.hook_resid_pre"]
TABLES = [
    "candidates",
    "firings",
    "held_out",
    "k_sparse",
    "latents",
    "letters",
    "sensitivity",
    "summary",
    "training",
    "words",
]
RULES = ["paper", "saebench-0.6.0", "saebench-0.3.2"]
FIGURES = [
    "absorption_by_letter",
    "absorption_fraction_vs_l0",
    "absorption_vs_l0",
    "absorption_vs_layer",
    "f1_vs_k",
    "sensitivity_paper",
    "sensitivity_saebench-0.3.2",
    "sensitivity_saebench-0.6.0",
    "splits_vs_l0",
    "top_latent_vs_l0",
    "top_latent_vs_layer",
]
STAGES = ["activations", "linear_probes", "sae_probing", "projections", "absorption", "firings", "report"]
# What a rerun makes after a kill: linear probes, SAEs probed, projected, judged and followed; and kept artifacts.
REMADE = {
    "activations": (2, 3, 3, 3, 3),
    "activations_unnamed": (2, 3, 3, 3, 3),
    "linear_probes": (1, 3, 3, 3, 3),
    "sae_probing": (0, 2, 3, 3, 3),
    "sae_probing_half_written": (0, 2, 3, 3, 3),
    "projections": (0, 0, 2, 3, 3),
    "absorption_words": (0, 0, 0, 3, 3),
    "absorption": (0, 0, 0, 2, 3),
    "firings": (0, 0, 0, 0, 2),
    "report": (0, 0, 0, 0, 0),
    "report_figures": (0, 0, 0, 0, 0),
    "report_half_published": (0, 0, 0, 0, 0),
}
KEPT = {"activations": 0, "activations_unnamed": 1}


def read_tables(run_dir):
    return {file.stem: pd.read_parquet(file) for file in sorted((run_dir / "tables").glob("*.parquet"))}


def assert_same(found, expected):
    assert sorted(found) == sorted(expected) == TABLES
    for name in TABLES:
        pd.testing.assert_frame_equal(found[name], expected[name], check_exact=True)


STAGE_NAMES = ("linear probes", "k-sparse probes", "projections", "absorption", "firings")


def made(run_dir):
    stages = json.loads((run_dir / "manifest.json").read_text())["stages"]
    return tuple(stages[name]["made"] for name in STAGE_NAMES)


def artifacts(cache_dir):
    """Finished artifacts with the time of their last change."""
    return {path.parent: path.stat().st_mtime_ns for path in Path(cache_dir).glob("*/[!.]*/manifest.json")}


def subprocess_environment():
    return {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def test_the_run_folder_is_complete(study):
    config, result = study
    folder = result.run_dir
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.yaml",
        "figures",
        "manifest.json",
        "probes",
        "published.json",
        "report.html",
        "saebench",
        "tables",
        "tensorboard",
    ]
    for name, written in read_tables(folder).items():
        plain = [
            table.map(lambda value: value.tolist() if isinstance(value, np.ndarray) else value)
            for table in (written, result.tables[name])
        ]
        pd.testing.assert_frame_equal(*plain, check_exact=True, check_dtype=False)
    assert sorted(path.name for path in (folder / "figures").iterdir()) == [
        f"{name}.{kind}" for name in FIGURES for kind in ("png", "svg")
    ]
    for name in FIGURES:
        content = (folder / "figures" / f"{name}.png").read_bytes()
        assert content.startswith(b"\x89PNG")
        assert len(content) > 10_000
    resolved = yaml.safe_load((folder / "config.yaml").read_text())
    assert (resolved["seed"], resolved["task"]["max_icl_examples"]) == (config.seed, 5)
    assert resolved["rules"]["paper"]["steps"] == 6
    assert not list(folder.rglob("*.part"))


def test_the_manifest_says_what_was_made_from_what(study):
    manifest = json.loads((study[1].run_dir / "manifest.json").read_text())
    assert list(manifest["stages"]) == [
        "load",
        "activations",
        "linear probes",
        "k-sparse probes",
        "projections",
        "absorption",
        "firings",
        "tables",
        "report",
    ]
    assert made(study[1].run_dir) == (2, 3, 3, 3, 3)
    assert all(stage["seconds"] >= 0 and stage["peak_memory_mib"] > 10 for stage in manifest["stages"].values())
    assert list(manifest["contents"]) == SAES
    assert len({*manifest["contents"].values()}) == 3
    assert manifest["identity"]["rows"] == 238
    assert manifest["versions"]["torch"] == torch.__version__


def test_tables_hold_each_thing_once(study, gpt2):
    config, result = study
    tables = result.tables
    assert tables["summary"][["sae", "rule"]].to_numpy().tolist() == [[sae, rule] for sae in SAES for rule in RULES]
    keys = {
        "letters": ["sae", "rule", "label"],
        "words": ["sae", "rule", "row"],
        "latents": ["sae", "label", "rank"],
        "k_sparse": ["sae", "label", "k"],
        "candidates": ["sae", "row"],
        "training": ["probe", "name", "epoch"],
        "sensitivity": ["sae", "rule", "threshold", "value"],
    }
    for name, key in keys.items():
        assert not tables[name].duplicated(key).any(), name
    words = PromptDataModule(gpt2, config.task)
    _, held_out = stratified_split(words.labels, (0.8, 0.2), config.seed)
    present = [words.task.classes[label] for label in words.labels[held_out].unique().tolist()]
    for sae, rule in itertools.product(SAES, RULES):
        letters = of_row(tables["letters"], {"sae": sae, "rule": rule})
        assert sorted(letters["label"]) == sorted(words.task.classes)
        assert sorted(letters[letters["reason"] != "no held-out words"]["label"]) == sorted(present)
        assert letters["num_words"].sum() == len(held_out)
    # q, x and y have one word each or so few that none is held out; the table of letters says so.
    absent = set(words.task.classes) - set(present)
    assert absent
    for name in ("latents", "k_sparse"):
        assert not set(tables[name]["label"]) & absent
    evaluated = tables["letters"][~tables["letters"]["label"].isin(absent)]
    fractions = ["sum_fraction", "absorption_fraction", "fraction_ci_low", "fraction_ci_high"]
    errors = ["se_words", "se_absorbers", "se_sampling"]
    assert not evaluated.drop(columns=["absorption_rate", "ci_low", "ci_high", *errors, *fractions]).isna().any().any()
    with_fractions = evaluated[evaluated["rule"] != "paper"]
    assert not with_fractions.loc[with_fractions["evaluable"], fractions].isna().any().any()
    assert evaluated.loc[evaluated["rule"] == "paper", fractions].isna().all().all()


def test_words_are_the_candidates_with_verdicts(study):
    tables = study[1].tables
    words, candidates = tables["words"].query("rule == 'paper'"), tables["candidates"]
    assert len(words) >= 5
    assert words["is_absorption"].nunique() == 2
    key = ["sae", "row", "label", "word", "prompt"]
    pd.testing.assert_frame_equal(
        words[key].sort_values(key, ignore_index=True), candidates[key].sort_values(key, ignore_index=True)
    )
    assert (words["main_activation"] < 1e-8).all()
    assert (candidates["probe_logit"] > 0).all()
    assert (candidates["k_sparse_logit"] <= 0).all()
    lead = words["top_score"].abs() - words["second_score"].abs()
    by_hand = (words["top_score"] <= 0) & (lead >= 0.0004) & (words["top_probe_cos"] >= 0.025)
    assert words["is_absorption"].tolist() == by_hand.tolist()


def of_row(table, row):
    return table[(table["sae"] == row["sae"]) & (table["rule"] == row["rule"])]


def test_rates_follow_from_the_words(study):
    tables = study[1].tables
    for row in tables["summary"].to_dict("records"):
        letters, words = (of_row(tables[name], row) for name in ("letters", "words"))
        rates, fractions = [], []
        for letter in letters.to_dict("records"):
            absorbed = words[words["label"] == letter["label"]]["is_absorption"].sum()
            assert letter["num_absorbed"] == absorbed
            assert letter["evaluable"] == (letter["num_probe_true_positives"] > 0)
            if letter["evaluable"]:
                rates.append(absorbed / letter["sample_portion"] / letter["num_probe_true_positives"])
                assert letter["absorption_rate"] == pytest.approx(rates[-1])
                taken = words[words["label"] == letter["label"]]["absorption_fraction"].sum()
                fractions.append(taken / letter["num_probe_true_positives"])
            else:
                assert letter["reason"] in ("no probe true positives", "no held-out words")
        assert row["absorption_rate"] == pytest.approx(sum(rates) / len(rates))
        if row["rule"] != "paper":
            assert len(words) == letters["num_probe_true_positives"].sum() == letters["num_candidates"].sum()
            assert (words["probe_projection"].notna() & words["absorption_fraction"].between(0, 1)).all()
            assert row["absorption_fraction"] == pytest.approx(sum(fractions) / len(fractions))
            assert row["fraction_ci_low"] <= row["absorption_fraction"] <= row["fraction_ci_high"]
        assert row["num_words"] == letters[letters["evaluable"]]["num_probe_true_positives"].sum()
        assert row["ci_low"] <= row["absorption_rate"] <= row["ci_high"]
        assert row["probe_f1"] == pytest.approx(letters["probe_f1"].mean())


def test_probes_are_those_of_the_tables(study, gpt2):
    config, result = study
    words = PromptDataModule(gpt2, config.task)
    for hook in HOOKS:
        probe = load_file(result.run_dir / "probes" / f"{hook}.safetensors")
        assert (tuple(probe["weight"].shape), tuple(probe["bias"].shape)) == ((26, 48), (26,))
        rows = result.tables["candidates"].query("hook_name == @hook").to_dict("records")
        for row in rows:
            position = words.prompts.word_positions[row["row"]]
            ids = words.prompts.input_ids[row["row"], : words.prompts.lengths[row["row"]]]
            with torch.no_grad():
                _, cache = gpt2.run_with_cache(ids[None], names_filter=hook)
            c = words.task.classes.index(row["label"])
            logit = cache[hook][0, position] @ probe["weight"][c] + probe["bias"][c]
            assert logit.item() == pytest.approx(row["probe_logit"], rel=1e-4, abs=1e-4)


def events(folder):
    accumulator = EventAccumulator(str(folder), size_guidance={"images": 0, "tensors": 0, "scalars": 0})
    return accumulator.Reload()


def test_tensorboard_holds_curves_figures_and_rates(study):
    config, result = study
    folder, tables = result.run_dir / "tensorboard", result.tables
    top = events(folder / "study")
    assert sorted(top.Tags()["images"]) == [f"figures/{name}" for name in FIGURES]
    assert all(len(top.Images(tag)[0].encoded_image_string) > 5_000 for tag in top.Tags()["images"])
    text = top.Tensors("summary/text_summary")[0].tensor_proto.string_val[0].decode()
    runs = short_names(SAES)
    lines = [line for line in text.splitlines() if line.startswith(tuple(runs.values()))]
    assert len(lines) == len(SAES)
    assert f"{tables['summary']['l0'][0]:.1f}" in lines[0]
    assert sorted(run.name for run in folder.iterdir()) == sorted([*runs.values(), "study"])
    for probe, names in (("linear_probe", HOOKS), ("k_sparse_probe", SAES)):
        for name in names:
            curve = top if name in HOOKS else events(folder / runs[name])
            tag = f"{probe}/{name}/train/loss" if name in HOOKS else f"{probe}/train/loss"
            expected = tables["training"].query("probe == @probe and name == @name")
            assert len(expected) == (1 if name in HOOKS else config.k_sparse.max_epochs)
            scalars = curve.Scalars(tag)
            assert [event.step for event in scalars] == expected["epoch"].tolist()
            assert [event.value for event in scalars] == pytest.approx(expected["train/loss"].tolist(), rel=1e-6)
    for row in tables["summary"].to_dict("records"):
        run = events(folder / runs[row["sae"]])
        for name in ("l0", "probe_f1", "num_splits"):
            assert run.Scalars(f"sae/{name}")[0].value == pytest.approx(row[name], rel=1e-6)
        assert run.Scalars(f"rate/{row['rule']}")[0].value == pytest.approx(row["absorption_rate"], rel=1e-6)
        if row["rule"] != "paper":
            fraction = run.Scalars(f"fraction/{row['rule']}")[0].value
            assert fraction == pytest.approx(row["absorption_fraction"], rel=1e-6)
        plugin = run.SummaryMetadata("_hparams_/session_start_info").plugin_data
        assert row["architecture"].encode() in plugin.content
        assert row["hook_name"].encode() in plugin.content


@pytest.fixture
def _without_figures(monkeypatch):
    """Figures take longer to draw than all else that a small study does."""
    monkeypatch.setattr(report, "draw_figures", lambda _: {})


@pytest.mark.usefixtures("_without_figures")
def test_the_same_seed_gives_the_same_tables(study, study_config, tmp_path):
    torch.manual_seed(99)
    result = run_study(study_config(tmp_path))
    assert made(result.run_dir) == (2, 3, 3, 3, 3)
    assert_same(result.tables, study[1].tables)
    assert_same(read_tables(tmp_path / "run"), read_tables(study[1].run_dir))


@pytest.mark.usefixtures("_without_figures")
def test_another_seed_gives_other_tables_and_another_folder(study, study_config, tmp_path):
    with pytest.raises(ManifestMismatchError, match=r"'seed': 42.*'seed': 1.*Name another folder"):
        run_study(study_config(study[1].run_dir.parent, "--seed=1"))
    result = run_study(study_config(tmp_path, "--seed=1"))
    assert made(result.run_dir) == (2, 3, 3, 3, 3)
    assert result.tables["candidates"]["row"].tolist() != study[1].tables["candidates"]["row"].tolist()


@pytest.mark.usefixtures("_without_figures")
def test_a_rerun_makes_nothing_and_new_saes_only_themselves(study, study_config, tmp_path):
    shutil.copytree(study[0].cache_dir, tmp_path / "cache")
    before = artifacts(tmp_path / "cache")
    assert len(before) == 2 + 2 + 3 + 3 + 3 + 3
    one = run_study(study_config(tmp_path, f"--saes=[{SAES[2]}]"))
    assert made(one.run_dir) == (0, 0, 0, 0, 0)
    assert len(one.tables["summary"]) == len(RULES)
    shutil.rmtree(next(path for path in before if path.parent.name == "absorption" and "topk" in path.name))
    every = run_study(study_config(tmp_path))
    assert made(every.run_dir) == (0, 0, 0, 1, 0)
    assert_same(every.tables, study[1].tables)
    after = artifacts(tmp_path / "cache")
    assert [path.name for path in before if after[path] != before[path]] == [
        path.name for path in before if path.parent.name == "absorption" and "topk" in path.name
    ]


@pytest.mark.usefixtures("_without_figures")
def test_other_thresholds_reuse_what_they_do_not_touch(study, study_config, tmp_path):
    shutil.copytree(study[0].cache_dir, tmp_path / "cache")
    result = run_study(study_config(tmp_path, "--rules.paper.delta_threshold=0.1", f"--saes=[{SAES[2]}]"))
    assert made(result.run_dir) == (0, 0, 0, 0, 0)
    assert not result.tables["words"].query("rule == 'paper'")["is_absorption"].any()


def test_a_bar_that_no_letter_reaches_is_said_and_drawn(study, study_config, tmp_path):
    shutil.copytree(study[0].cache_dir, tmp_path / "cache")
    result = run_study(study_config(tmp_path, "--rates.min_probe_f1=1.0"))
    assert made(result.run_dir) == (0, 0, 0, 0, 0)
    summary = result.tables["summary"]
    assert summary["absorption_rate"].isna().all()
    assert not summary["evaluable"].any()
    assert set(summary["reason"]) == {"no evaluable label"}
    reasons = set(result.tables["letters"]["reason"]) - {"no probe true positives", "no held-out words"}
    assert reasons
    assert all(reason.endswith(" is below 1") for reason in reasons)
    drawn = [name for name in FIGURES if name != "absorption_fraction_vs_l0"]
    assert sorted(path.stem for path in (result.run_dir / "figures").glob("*.png")) == drawn
    assert list((result.run_dir / "saebench").iterdir()) == []


def test_a_corrupted_shard_stops_the_study(study, study_config, tmp_path):
    shutil.copytree(study[0].cache_dir, tmp_path / "cache")
    shard = next((tmp_path / "cache" / "activations").glob("*/00000.bin"))
    content = bytearray(shard.read_bytes())
    content[5] ^= 255
    shard.write_bytes(content)
    with pytest.raises(CacheCorruptedError, match=f"Delete {shard.parent}"):
        run_study(study_config(tmp_path))
    assert not (tmp_path / "run" / "tables").exists()


@pytest.mark.slow
def test_two_processes_give_the_tables_of_one(study, tmp_path):
    trainer = ["--trainer.devices=2", "--trainer.accelerator=cpu", "--trainer.strategy=ddp"]
    folders = [f"--run_dir={tmp_path / 'run'}", f"--cache_dir={tmp_path / 'cache'}"]
    command = [Path(sys.executable).with_name("absorb-pl"), "study", f"--config={CONFIG}", *folders, *trainer]
    done = subprocess.run(command, cwd=ROOT, env=subprocess_environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same(read_tables(tmp_path / "run"), read_tables(study[1].run_dir))
    assert made(tmp_path / "run") == (2, 3, 3, 3, 3)
    assert sorted(path.name for path in artifacts(tmp_path / "cache")) == sorted(
        path.name for path in artifacts(study[0].cache_dir)
    )


@pytest.mark.slow
def test_two_nodes_give_the_tables_of_one_process(study, tmp_path):
    """Two nodes of one process each, over gloo, as `torchrun` starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folders = [f"--run_dir={tmp_path / 'run'}", f"--cache_dir={tmp_path / 'cache'}"]
    trainer = ["--trainer.num_nodes=2", "--trainer.devices=1", "--trainer.strategy=ddp"]
    nodes = []
    for rank in range(2):
        torchrun = [Path(sys.executable).with_name("torchrun"), "--nnodes=2", "--nproc_per_node=1"]
        torchrun += [f"--node_rank={rank}", "--master_addr=127.0.0.1", f"--master_port={port}"]
        command = [*torchrun, "-m", "absorb_pl.cli", "study", f"--config={CONFIG}", *folders, *trainer]
        nodes.append(
            subprocess.Popen(command, cwd=ROOT, env=subprocess_environment(), stderr=subprocess.PIPE, text=True)
        )
    said = [node.communicate(timeout=300)[1] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said
    assert_same(read_tables(tmp_path / "run"), read_tables(study[1].run_dir))
    assert made(tmp_path / "run") == (2, 3, 3, 3, 3)


@pytest.mark.slow
def test_two_studies_that_begin_together_on_a_cold_cache_both_end_well(study, tmp_path):
    ways = ("one", "two")
    commands = [
        [
            Path(sys.executable).with_name("absorb-pl"),
            "study",
            f"--config={CONFIG}",
            f"--run_dir={tmp_path / way}",
            f"--cache_dir={tmp_path / 'cache'}",
        ]
        for way in ways
    ]
    environment = subprocess_environment()
    both = [subprocess.Popen(words, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) for words in commands]
    said = [study_of.communicate(timeout=300)[1] for study_of in both]
    assert [study_of.returncode for study_of in both] == [0, 0], said
    for way in ways:
        assert_same(read_tables(tmp_path / way), read_tables(study[1].run_dir))
    assert len(artifacts(tmp_path / "cache")) == len(artifacts(study[0].cache_dir))
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.slow
def test_two_processes_that_fit_build_the_cache_first(study, tmp_path):
    """Only one of them builds it, alone, while the other waits."""
    trainer = ["--trainer.devices=2", "--trainer.strategy=ddp_fork", f"--trainer.default_root_dir={tmp_path}"]
    settings = ["--config=tests/conf/fit_linear.yaml", f"--data.init_args.cache_dir={tmp_path / 'cache'}"]
    main(["fit", *settings, *trainer])
    built = next((tmp_path / "cache" / "activations").iterdir())
    known = Path(study[0].cache_dir) / "activations" / built.name
    assert (built / "00000.bin").read_bytes() == (known / "00000.bin").read_bytes()


@pytest.mark.parametrize("stage", REMADE)
def test_a_killed_study_is_carried_on(study, study_config, stage, monkeypatch, tmp_path):
    for done in STAGES[: next(place for place, name in enumerate(STAGES) if stage.startswith(name))]:
        shutil.copytree(Path(study[0].cache_dir) / done, tmp_path / "cache" / done)
    assert run_until_death(CONFIG, tmp_path, stage) == signal.SIGKILL
    if not stage.startswith("report"):
        monkeypatch.setattr(report, "draw_figures", lambda _: {})
    with pytest.raises(CacheCorruptedError, match=r"finished study"):
        rescore_run(tmp_path / "run")
    before = artifacts(tmp_path / "cache")
    expected = KEPT.get(stage, 16 - sum(REMADE[stage]))
    assert len(before) == expected
    result = run_study(study_config(tmp_path))
    assert made(result.run_dir) == REMADE[stage]
    assert_same(result.tables, study[1].tables)
    assert_same(read_tables(result.run_dir), read_tables(study[1].run_dir))
    after = artifacts(tmp_path / "cache")
    assert {path: after[path] for path in before} == before
    assert sorted(path.name for path in after) == sorted(path.name for path in artifacts(study[0].cache_dir))
    assert not list(tmp_path.rglob("*.part"))
