"""Comparisons of a study's SAEs, from tables written by hand and by a study."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from absorb_pl.cli import main
from absorb_pl.data.publication import publishing
from absorb_pl.errors import AbsorbError, CacheCorruptedError, RuleError, SaeNotFoundError
from absorb_pl.functional.paired import holm, sign_flip_test, smallest_difference
from absorb_pl.schema import COMPARISON, POWER
from absorb_pl.study.compare import compare_saes, print_resolution

RULES = {"absorb-pl-1": {"least_share": 0.5}, "paper": {"steps": 6}}
LETTERS = list("abcdef")
SIZE = 30


def verdicts(seed: int, rate: float) -> np.ndarray:
    return np.random.default_rng(seed).random((len(LETTERS), SIZE)) < rate


def write_run(folder: Path, saes: dict[str, np.ndarray], **changed: Any) -> Path:
    """The run folder of a study of `saes`: ours judged all words, the paper's rule a part of them."""
    words, letters, summary = [], [], []
    for sae, absorbed in saes.items():
        for rule in RULES:
            for c, label in enumerate(LETTERS):
                kept = range(SIZE) if rule == "absorb-pl-1" else range(SIZE // 2)
                words += [
                    {
                        "sae": sae,
                        "rule": rule,
                        "row": c * SIZE + n,
                        "label": label,
                        "is_absorption": absorbed[c, n],
                        "top_latent": n,
                    }
                    for n in kept
                ]
                letters.append(
                    {
                        "sae": sae,
                        "rule": rule,
                        "label": label,
                        "evaluable": True,
                        "num_probe_true_positives": SIZE,
                        "sample_portion": 1.0,
                    }
                )
            summary.append(
                {
                    "sae": sae,
                    "rule": rule,
                    "evaluable": True,
                    "pooled_rate": 0.2,
                    "num_words": 180,
                    "se_words": 0.03,
                    "se_absorbers": 0.04,
                }
            )
    folder.mkdir(parents=True, exist_ok=True)
    with publishing(folder) as part:
        (part / "tables").mkdir()
        for name, rows in (("words", words), ("letters", letters), ("summary", summary)):
            pd.DataFrame(rows).to_parquet(part / "tables" / f"{name}.parquet")
    config = {"model": "speller", "seed": 42, "rules": RULES, "rates": {}, **changed}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    saes = {"a": verdicts(0, 0.1), "b": verdicts(1, 0.4), "c": verdicts(2, 0.12)}
    return write_run(tmp_path / "run", saes)


def test_differences_are_those_of_the_rates_letter_by_letter(run: Path):
    table = compare_saes(run, rule="absorb-pl-1")
    assert list(table) == list(COMPARISON)
    whole = table[table["label"] == ""].set_index(["a", "b"])
    assert list(whole.index) == [("a", "b"), ("a", "c"), ("b", "c")]
    rates = {
        name: verdicts(seed, rate).mean(axis=1) for name, seed, rate in (("a", 0, 0.1), ("b", 1, 0.4), ("c", 2, 0.12))
    }
    p_values = []
    for (a, b), row in whole.iterrows():
        differences = rates[a] - rates[b]
        assert row["difference"] == pytest.approx(differences.mean())
        assert (row["rate_a"], row["rate_b"]) == pytest.approx((rates[a].mean(), rates[b].mean()))
        p_values.append(sign_flip_test(differences.tolist()))
        assert row["p_value"] == p_values[-1]
    assert whole["p_holm"].tolist() == pytest.approx(holm(p_values))
    one = table[(table["a"] == "a") & (table["b"] == "b") & (table["label"] == "c")].iloc[0]
    words = verdicts(0, 0.1)[2].astype(float) - verdicts(1, 0.4)[2]
    assert one["difference"] == pytest.approx(words.mean())
    assert one["ci_high"] - one["difference"] == pytest.approx(1.959964 * (words.var(ddof=1) / SIZE) ** 0.5, rel=1e-5)


def test_words_that_a_rule_did_not_judge_count_as_not_absorbed(run: Path):
    table = compare_saes(run, rule="paper", saes=["a", "b"])
    half = {seed: verdicts(seed, rate)[:, : SIZE // 2].sum(axis=1) / SIZE for seed, rate in ((0, 0.1), (1, 0.4))}
    assert table.iloc[0]["difference"] == pytest.approx((half[0] - half[1]).mean())


def test_an_sae_against_its_own_copy_differs_in_nothing(tmp_path: Path):
    same = verdicts(5, 0.3)
    table = compare_saes(write_run(tmp_path / "run", {"one": same, "two": same}))
    assert (table["difference"] == 0).all()
    assert (table["ci_low"] == 0).all()
    assert table["p_value"].dropna().tolist() == [1.0, 1.0]


def test_two_studies_of_the_same_words_are_compared_sae_by_sae(run: Path, tmp_path: Path):
    other = write_run(tmp_path / "other", {"d": verdicts(7, 0.2)})
    table = compare_saes(run, other, rule="absorb-pl-1")
    whole = table[table["label"] == ""]
    assert list(zip(whole["a"], whole["b"], strict=True)) == [("a", "d"), ("b", "d"), ("c", "d")]


@pytest.mark.parametrize(
    ("changed", "error", "named"),
    [
        ({"seed": 43}, AbsorbError, "seed"),
        ({"model": "gpt2"}, AbsorbError, "model"),
        ({"crossfit": {"folds": 5, "repeats": 3}}, AbsorbError, "crossfit"),
        ({"rules": {"absorb-pl-1": {"least_share": 0.9}}}, RuleError, "same settings|judged both"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    run: Path, tmp_path: Path, changed: Any, error: type[Exception], named: str
):
    other = write_run(tmp_path / "other", {"d": verdicts(7, 0.2)}, **changed)
    with pytest.raises(error, match=named):
        compare_saes(run, other)


def test_bad_names_and_folders_are_named(run: Path, tmp_path: Path):
    with pytest.raises(SaeNotFoundError, match="saes"):
        compare_saes(run, saes=["a", "z"])
    with pytest.raises(SaeNotFoundError, match="two SAEs"):
        compare_saes(run, saes=["a"])
    with pytest.raises(RuleError, match="absorb-pl-1"):
        compare_saes(run, rule="saebench-0.6.0")
    with pytest.raises(CacheCorruptedError, match="run_dir"):
        compare_saes(tmp_path / "nowhere")
    shutil.rmtree(run / "tables")
    with pytest.raises(CacheCorruptedError):
        compare_saes(run)


def test_the_commands_print_and_write(run: Path, capsys: pytest.CaptureFixture[str]):
    main(["compare", f"--run_dir={run}", "--rule=absorb-pl-1"])
    said = capsys.readouterr().out
    assert "p (Holm)" in said
    assert len(pd.read_parquet(run / "comparison.parquet")) == 3 * (1 + len(LETTERS))
    main(["power", f"--run_dir={run}"])
    said = capsys.readouterr().out
    effect = 1 + 0.04**2 / 0.03**2
    expected = 100 * smallest_difference(180, 0.2, effect=effect)
    assert f"{expected:.1f}" in said
    assert list(print_resolution(run)) == list(POWER)
