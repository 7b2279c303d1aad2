"""How far rules are from the truth, against sums written out."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from absorb_pl.schema import CALIBRATION, CALIBRATION_SUMMARY
from absorb_pl.truth.scoring import ALL_WORLDS, score_against_truth, score_progress, summarise_scores

DRAWN = ("true_rate", "absorption_rate", "all_rate", "true_share", "absorption_fraction", "word_auroc")


def tables(rng: np.random.Generator) -> tuple[dict[str, pd.DataFrame], pd.DataFrame]:
    labels = np.repeat(list("abc"), 20)
    truth = pd.DataFrame(
        {"row": range(60), "label": labels, "is_absorbed": rng.random(60) > 0.6, "share": rng.random(60)}
    )
    rows = rng.permutation(60)[:40]
    words = pd.DataFrame(
        {
            "row": rows,
            "label": labels[rows],
            "rule": "mine",
            "is_absorption": rng.random(40) > 0.5,
            "absorption_fraction": rng.random(40),
        }
    )
    letters = pd.DataFrame({"rule": "mine", "label": list("abc"), "evaluable": [True, True, False]})
    summary = pd.DataFrame(
        {"rule": ["mine"], "absorption_rate": [0.4], "ci_low": [0.3], "ci_high": [0.5], "absorption_fraction": [0.2]}
    )
    return {"summary": summary, "letters": letters, "words": words}, truth


def test_the_truth_is_taken_over_the_words_that_were_judged():
    found, truth = tables(np.random.default_rng(0))
    (row,) = score_against_truth(found, truth).to_dict("records")
    words = found["words"][found["words"]["label"] != "c"]
    rates, shares, all_rates = [], [], []
    for label in "ab":
        rows = words.loc[words["label"] == label, "row"]
        rates.append(np.mean([truth["is_absorbed"][r] for r in rows]))
        shares.append(np.mean([truth["share"][r] for r in rows]))
        all_rates.append(truth.loc[truth["label"] == label, "is_absorbed"].mean())
    assert row["true_rate"] == pytest.approx(np.mean(rates))
    assert row["true_share"] == pytest.approx(np.mean(shares))
    assert row["all_rate"] == pytest.approx(np.mean(all_rates))
    score = words["is_absorption"].astype(float) + words["absorption_fraction"]
    assert row["word_auroc"] == pytest.approx(roc_auc_score([truth["is_absorbed"][r] for r in words["row"]], score))
    assert (row["num_words"], row["num_classes"], row["absorption_rate"]) == (len(words), 2, 0.4)
    assert row["num_absorbed"] == sum(truth["is_absorbed"][r] for r in words["row"])


def test_summaries_are_means_over_evaluations_and_ranks_over_saes():
    rng = np.random.default_rng(1)
    rows = []
    for family, settings in (("planted", "pq"), ("one", "abcd"), ("two", "efgh")):
        for setting in settings:
            for seed in range(2):
                about = {"family": family, "setting": setting, "seed": seed, "rule": "mine"}
                figures = dict.fromkeys(set(CALIBRATION) - set(about), 0.0)
                figures |= {name: rng.random() for name in DRAWN}
                figures["num_absorbed"] = int(rng.integers(1, 30))
                rows.append({**about, **figures, "ci_low": 0.2, "ci_high": 0.6})
    rows[0]["absorption_rate"] = None
    scores = pd.DataFrame(rows)[list(CALIBRATION)]
    found = summarise_scores(scores)
    assert list(found) == list(CALIBRATION_SUMMARY)
    assert list(zip(found["family"], found["setting"], strict=True)) == [
        ("planted", "p"),
        ("planted", "q"),
        ("one", ""),
        ("two", ""),
        (ALL_WORLDS, ""),
    ]
    first = found.iloc[0]
    assert (first["evaluations"], first["not_evaluable"]) == (1, 1)
    assert first["rate_bias"] == pytest.approx(rows[1]["absorption_rate"] - rows[1]["true_rate"])
    assert math.isnan(first["rate_spearman"])
    last = found.iloc[-1]
    trained = scores[scores["family"] != "planted"].astype({"absorption_rate": float})
    errors = trained["absorption_fraction"] - trained["true_share"]
    assert last["share_rmse"] == pytest.approx(math.sqrt(np.mean(errors**2)))
    means = trained.groupby("setting")[["absorption_rate", "true_rate"]].mean()
    assert last["rate_spearman"] == pytest.approx(spearmanr(means["absorption_rate"], means["true_rate"]).statistic)
    assert last["coverage"] == pytest.approx(np.mean([0.2 <= rate <= 0.6 for rate in trained["all_rate"]]))
    assert last["word_auroc"] == pytest.approx(trained["word_auroc"].mean())
    by_word = np.average(trained["word_auroc"], weights=trained["num_absorbed"])
    assert last["absorbed_word_auroc"] == pytest.approx(by_word)


def test_progress_is_the_rank_correlation_with_steps():
    generator = np.random.default_rng(0)
    checks = pd.DataFrame(
        {
            "sae": ["a"] * 8 + ["b"] * 8,
            "rule": "mine",
            "step": [*range(8), *range(8)],
            "absorption_rate": generator.random(16),
            "absorption_fraction": generator.random(16),
        }
    )
    checks.loc[3, "absorption_rate"] = np.nan
    found = score_progress(checks).set_index("setting")
    assert found[["evaluations", "not_evaluable"]].to_dict("list") == {"evaluations": [7, 8], "not_evaluable": [1, 0]}
    for sae, looks in checks.dropna().groupby("sae"):
        for amount, column in {"rate": "absorption_rate", "share": "absorption_fraction"}.items():
            expected = spearmanr(looks[column], looks["step"]).statistic
            assert found[f"{amount}_spearman"][sae] == pytest.approx(expected)
    assert found["rate_bias"].isna().all()
