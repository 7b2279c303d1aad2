"""Studies of several models with controls, a few SAEs at a time: what is shown, when, and where it lies."""

from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from absorb_pl.cli import main
from absorb_pl.errors import AbsorbError
from absorb_pl.saes import control_sae, load_sae, sae_identity
from absorb_pl.study import StudyConfig, run_study

pytestmark = pytest.mark.usefixtures("at_root")

GPT2, GEMMA2 = "tests/golden/gpt2-micro", "tests/golden/gemma2-micro"
SAE, OTHER = f"{GPT2}/sae_standard_A", f"{GEMMA2}/sae_jumprelu_A"
NAMES = [f"{sae}{control}" for sae in (SAE, OTHER) for control in ("", "#random", "#shuffled_decoder")]
RULES = ["paper", "saebench-0.6.0"]


@pytest.fixture(scope="module")
def sweep(study_config, _one_thread, _without_figures, tmp_path_factory):
    config = study_config(tmp_path_factory.mktemp("sweep"))
    config = replace(
        config,
        saes=[],
        models={GPT2: [SAE], GEMMA2: [OTHER]},
        controls=["random", "shuffled_decoder"],
        rules={name: config.rules[name] for name in RULES},
        saes_per_pass=2,
    )
    printed = StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed):
        patch.chdir(Path(__file__).parents[2])
        result = run_study(config)
    return SimpleNamespace(config=config, result=result, printed=printed.getvalue())


def test_tables_of_all_models_stand_together_and_apart(sweep):
    summary = sweep.result.tables["summary"]
    assert summary[["sae", "rule"]].to_numpy().tolist() == [[sae, rule] for sae in NAMES for rule in RULES]
    assert summary["model"].tolist() == [GPT2] * 6 + [GEMMA2] * 6
    assert summary["control"].tolist() == [kind for kind in ("", "random", "shuffled_decoder") for _ in RULES] * 2
    folders = {GPT2: "tests-golden-gpt2-micro", GEMMA2: "tests-golden-gemma2-micro"}
    for model, folder in folders.items():
        for table in ("summary", "letters", "words", "latents", "k_sparse", "training"):
            together = sweep.result.tables[table]
            alone = pd.read_parquet(sweep.result.run_dir / folder / "tables" / f"{table}.parquet")
            own = together[together["model"] == model].drop(columns="model").reset_index(drop=True)
            pd.testing.assert_frame_equal(own[own.columns.intersection(alone.columns)], own, check_exact=True)
            assert len(own) == len(alone)
        assert (sweep.result.run_dir / folder / "manifest.json").is_file()
        assert not (sweep.result.run_dir / folder / "summary_so_far.parquet").exists()
    assert (sweep.result.run_dir / "tables" / "summary.parquet").is_file()


def test_rates_are_shown_as_saes_finish(sweep):
    shown = [line.split(":")[0] for line in sweep.printed.splitlines() if ": paper " in line]
    assert shown == NAMES
    first_table = sweep.printed.index("Feature absorption")
    assert sweep.printed.index(f"{SAE}: paper") < first_table
    assert "control: shuffled decoder" in sweep.printed[first_table:]


def test_an_sae_is_measured_as_in_a_study_by_itself(sweep, study):
    """Another batch of words, other company: the same verdicts, and scores but for rounding."""
    alone, together = (tables["words"] for tables in (study[1].tables, sweep.result.tables))
    for rule in RULES:
        ours, theirs = (
            words[(words["sae"] == SAE) & (words["rule"] == rule)].set_index("row").sort_index()
            for words in (together, alone)
        )
        assert len(ours)
        assert ours.index.tolist() == theirs.index.tolist()
        for column in ("label", "is_absorption", "top_latent"):
            assert ours[column].tolist() == theirs[column].tolist()
    columns = ["num_splits", "probe_f1", "l0", "explained_variance", "dead_fraction", "main_latent_recall"]
    row = sweep.result.tables["summary"].iloc[0][columns]
    assert row.tolist() == pytest.approx(study[1].tables["summary"].set_index("sae").loc[SAE].iloc[0][columns].tolist())


def test_controls_are_the_controls_of_the_sae(sweep):
    for kind in ("random", "shuffled_decoder"):
        assert sae_identity(load_sae(f"{SAE}#{kind}")) == sae_identity(control_sae(load_sae(SAE), kind))
    summary = sweep.result.tables["summary"].drop_duplicates("sae").set_index("sae")
    # behind a shuffled decoder every latent fires as it did and tells classes apart as it did
    kept, own = summary.loc[f"{SAE}#shuffled_decoder"], summary.loc[SAE]
    assert (
        kept[["l0", "num_splits", "main_latent_recall"]].tolist()
        == own[["l0", "num_splits", "main_latent_recall"]].tolist()
    )
    assert kept["explained_variance"] != pytest.approx(own["explained_variance"], rel=0.01)
    assert summary.loc[f"{SAE}#random", "l0"] != own["l0"]
    assert not list((sweep.result.run_dir / "tests-golden-gpt2-micro" / "saebench").glob("*random*"))


def test_list_shows_what_a_pattern_selects(capsys):
    main(["list", "speller/l1-jumprelu-*", f"{GPT2}/sae_topk_B", "gemma-scope-2b-pt-res/layer_12/width_16k/*"])
    shown = capsys.readouterr().out
    lines = [line for line in shown.splitlines() if line.startswith("│")]
    assert "9 SAEs" in shown
    assert len(lines) == 9
    assert sum("jumprelu" in line for line in lines) == 8
    assert "blocks.3.hook_resid_pre" in lines[3]
    assert "16384" in lines[4]
    assert "176.0" in lines[4]
    with pytest.raises(SystemExit, match="1"):
        main(["list", "speller/no-such-*"])
    assert "a pattern that selects SAEs" in capsys.readouterr().err


@pytest.mark.parametrize("saes", [{}, {"saes": [SAE], "models": {GPT2: [SAE]}}], ids=["neither", "both"])
def test_saes_are_given_once(saes):
    with pytest.raises(AbsorbError, match="`saes` was"):
        StudyConfig(**saes)
