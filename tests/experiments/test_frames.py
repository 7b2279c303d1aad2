"""The data frames of the experiments against those of the published implementations."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from absorb_pl.evaluators import FeatureAbsorptionCalculator
from absorb_pl.experiments.common import SaeInfo
from absorb_pl.experiments.feature_absorption import (
    COLUMNS,
    StatsAndLikelyFalseNegativeResults,
    absorption_rate,
    calculate_ig_ablation_and_cos_sims,
    get_stats_and_likely_false_negative_tokens,
    letter_delta_metric,
)
from absorb_pl.experiments.k_sparse_probing import (
    add_feature_splits_to_auroc_f1_df,
    build_f1_and_auroc_df,
    eval_probe_and_sae_k_sparse_raw_scores,
    get_sparse_probing_raw_results_filename,
    sae_k_sparse_metadata,
)
from absorb_pl.experiments.latent_evaluation import build_evaluation_df, eval_probe_and_top_sae_raw_scores
from absorb_pl.probes import KSparseProbe, LinearProbe
from absorb_pl.saes import load_sae
from absorb_pl.words import LETTERS, first_letter_formatter

CASES = [(model, sae) for model in ("gpt2-micro", "gemma2-micro") for sae in ("standard_A", "jumprelu_A")]
RECORDED_KS = (1, 2, 5, 10)
EPS = torch.finfo(torch.float32).eps


class Case:
    """Recorded inputs and frames of one micro model and SAE."""

    def __init__(self, golden, model, sae):
        self.folder, self.name = golden / model, sae
        inputs = load_file(self.folder / "probe_inputs.safetensors")
        self.x = inputs["activations_A"].double()
        self.probe = LinearProbe.from_weights(inputs["weight"], inputs["bias"]).double()
        self.sae = load_sae(str(self.folder / f"sae_{sae}"), dtype="float64")
        words = json.loads((golden / "words.json").read_text())[8:]
        self.labels = [(f" {word}", LETTERS.index(word[0].lower())) for word in words]
        row = self.expected("k_sparse_metrics").iloc[0]
        self.info = SaeInfo(int(row["sae_l0"]), int(row["layer"]), int(row["sae_width"]), sae)

    def expected(self, name):
        return pd.read_parquet(self.folder / f"expected_{name}_{self.name}.parquet")

    def k_sparse(self):
        probes = {}
        for name, tensor in load_file(self.folder / f"k_sparse_probes_{self.name}.safetensors").items():
            k, c, part = name.split("/")
            probes.setdefault(int(k), {}).setdefault(int(c), {})[part] = tensor
        return {
            k: {
                c: KSparseProbe(p["weight"].double(), p["bias"].double().squeeze(), p["ids"].long())
                for c, p in of_k.items()
            }
            for k, of_k in sorted(probes.items())
        }


@pytest.fixture(params=CASES, ids="-".join)
def case(request, golden):
    return Case(golden, *request.param)


def assert_scores(found, recorded, terms):
    """Recorded float32 sums are within their rounding of ours in float64.

    A sum of n products is off by at most n + 1 roundings of the sum of their sizes; `terms` is that sum.
    """
    for column in recorded:
        if column.startswith(("score_", "sum_")):
            bound = terms * EPS + 1e-12
            assert (found[column] - recorded[column]).abs().max() <= bound, column
        else:
            assert found[column].tolist() == recorded[column].tolist(), column


def assert_metrics(found, expected, leave_out=()):
    """Metrics of the same scores are equal; cosines are within the rounding of recorded ones."""
    assert list(found.columns) == list(expected.columns)
    for column in expected.columns.difference(leave_out, sort=False):
        ours, theirs = found[column].tolist(), expected[column].tolist()
        if column == "letter":
            assert ours == theirs
        elif column.startswith("cos_") or column.endswith(("_feats", "_weights", "_bias")):
            for one, other in zip(ours, theirs, strict=True):
                assert np.ravel(one) == pytest.approx(np.ravel(other), abs=200 * EPS, nan_ok=True), column
        else:
            assert ours == pytest.approx(theirs, rel=2 * EPS, abs=1e-12), column


def test_the_latent_evaluation_is_the_published_one(case):
    found = eval_probe_and_top_sae_raw_scores(case.sae, case.probe, case.labels, case.x, topk=3)
    recorded, expected = case.expected("latent_raw"), case.expected("latent_metrics")
    sizes = max(
        float((case.x.abs() @ weight.abs()).max())
        for weight in (case.sae.W_enc.detach(), case.probe.weights.detach().T)
    )
    assert_scores(found, recorded, (case.x.shape[1] + 2) * (sizes + 10))
    whole = found.assign(**{column: recorded[column] for column in recorded})
    metrics = build_evaluation_df(
        whole, SaeInfo(int(expected["sae_l0"][0]), 1, int(expected["sae_width"][0]), ""), topk=3
    )
    # the record holds no cosines of the letter k
    of_k = [column for column in metrics if "_k_top_" in column]
    assert len(of_k) == 6
    assert_metrics(metrics.drop(columns=of_k), expected.drop(columns=of_k, errors="ignore"))


def test_metrics_are_of_as_many_latents_as_asked_for(golden):
    case = Case(golden, *CASES[0])
    raw = eval_probe_and_top_sae_raw_scores(case.sae, case.probe, case.labels, case.x, 2, {"layer": 4, "sae_l0": 7})
    assert list(raw.columns[:8]) == [
        *("token", "answer_letter", "layer", "sae_l0", "score_probe_a"),
        *("score_sae_a_top_0", "sae_a_top_0_feat", "cos_probe_sae_enc_a_top_0"),
    ]
    assert (raw["layer"] == 4).all()
    five, one = build_evaluation_df(raw, case.info), build_evaluation_df(raw, case.info, topk=1)
    assert [column for column in five if column.startswith("auc_sae")] == ["auc_sae_top_0", "auc_sae_top_1"]
    pd.testing.assert_frame_equal(five[[c for c in five if "_top_1" not in c]], one)


def test_k_sparse_probing_is_the_published_one(case):
    probes, expected = case.k_sparse(), case.expected("k_sparse_metrics")
    found = eval_probe_and_sae_k_sparse_raw_scores(case.sae, case.probe, probes, case.labels, case.x)
    recorded = case.expected("k_sparse_raw")
    latents = case.sae.encode(case.x).detach()
    largest = max(float(one.weight.abs().sum()) for of_k in probes.values() for one in of_k.values())
    sizes = float((case.x.abs() @ case.sae.W_enc.detach().abs()).max())
    assert_scores(found, recorded, (case.x.shape[1] + 12) * (sizes + float(latents.max())) * max(1.0, largest))
    metadata = sae_k_sparse_metadata(case.sae, case.probe, probes, case.info)
    assert len(metadata) == sum(len(of_k) for of_k in probes.values())
    metrics = build_f1_and_auroc_df(found.assign(**{column: recorded[column] for column in recorded}), metadata)
    add_feature_splits_to_auroc_f1_df(metrics)
    assert [list(latents) for latents in metrics.pop("split_feats")] == [list(x) for x in expected.pop("split_feats")]
    # scores are recorded of four ks; an AUROC of the others may differ by a pair of words within rounding
    unrecorded = [c for c in expected if "_sparse_sae_" in c and int(c.split("_")[-1]) not in RECORDED_KS]
    assert len(unrecorded) == 8 * (17 - len(RECORDED_KS))
    assert_metrics(metrics, expected, leave_out=unrecorded)


def test_acts_are_those_of_the_latents_of_each_probe(golden):
    case = Case(golden, *CASES[1])
    probes = case.k_sparse()
    found = eval_probe_and_sae_k_sparse_raw_scores(case.sae, case.probe, probes, case.labels, case.x)
    latents = case.sae.encode(case.x).detach()
    for k, letter in ((1, "a"), (10, "s")):
        one = probes[k][LETTERS.index(letter)]
        stacked = np.stack(found[f"sparse_sae_{letter}_k_{k}_acts"].tolist())
        assert stacked == pytest.approx(latents[:, one.feature_ids].numpy(), rel=1e-6)
        by_hand = stacked @ one.weight.numpy() + one.bias.item()
        assert found[f"score_sparse_sae_{letter}_k_{k}"].tolist() == pytest.approx(by_hand.tolist())


def test_a_larger_jump_splits_less_and_other_ks_walk_less(golden):
    expected = Case(golden, *CASES[0]).expected("k_sparse_metrics")
    few, short = expected.copy(), expected.copy()
    add_feature_splits_to_auroc_f1_df(few, f1_jump_threshold=1.0)
    assert few["num_split_features"].eq(0).all()
    add_feature_splits_to_auroc_f1_df(short, ks=(1, 2))
    assert short["num_split_features"].tolist() == expected["num_split_features"].clip(upper=1).tolist()
    assert expected["num_split_features"].max() >= 1


def test_words_that_the_main_latents_miss(golden, tmp_path):
    case = Case(golden, *CASES[0])
    raw, metrics = case.expected("k_sparse_raw"), case.expected("k_sparse_metrics")
    small = metrics[metrics["split_feats"].map(len).isin([1, 2, 5, 10])]
    raw.to_parquet(tmp_path / get_sparse_probing_raw_results_filename(case.info))
    found = get_stats_and_likely_false_negative_tokens(small, case.info, tmp_path)
    assert list(found) == small["letter"].tolist()
    missed = 0
    for letter, latents in zip(small["letter"], small["split_feats"], strict=True):
        counts = [0, 0, []]
        for row in raw.to_dict("records"):
            if row["answer_letter"] == letter and row[f"score_probe_{letter}"] > 0:
                counts[0] += 1
                if row[f"score_sparse_sae_{letter}_k_{len(latents)}"] > 0:
                    counts[1] += 1
                else:
                    counts[2].append(row["token"])
        stats = found[letter]
        assert [stats.probe_true_positives, stats.split_feats_true_positives] == counts[:2]
        assert (stats.potential_false_negatives, stats.split_feats) == (counts[2], list(latents))
        missed += len(counts[2])
    assert missed >= 5


def test_the_metric_of_a_letter(gpt2):
    tokenizer, generator = gpt2.tokenizer, torch.Generator().manual_seed(0)
    logits = torch.randn(3, 2, len(tokenizer), generator=generator)
    capitals = [tokenizer.encode(f" {letter}")[-1] for letter in LETTERS.upper()]
    for letter in ("b", " B"):
        others = logits[:, -1, [token for c, token in enumerate(capitals) if c != 1]]
        by_hand = logits[:, -1, tokenizer.encode(letter)[-1]] - others.mean(dim=1)
        torch.testing.assert_close(letter_delta_metric(tokenizer, letter)(logits).float(), by_hand)


@pytest.fixture(scope="module")
def judged(golden, gpt2):
    """The recorded absorption case: as recorded, and the frame of two of its letters with the published metric."""
    case = Case(golden, *CASES[0])
    sae = load_sae(str(case.folder / "sae_standard_A"))
    recorded = json.loads((case.folder / "expected_absorption_paper_standard_A.json").read_text())
    calculator = FeatureAbsorptionCalculator(
        gpt2,
        recorded["icl_words"],
        base_template=recorded["template"],
        answer_formatter=first_letter_formatter(capitalize=True),
        shuffle_examples=False,
        probe_cos_sim_threshold=recorded["probe_cos_sim_threshold"],
        ablation_delta_threshold=recorded["ablation_delta_threshold"],
    )
    stats = {
        letter: StatsAndLikelyFalseNegativeResults(40, 0, recorded["main_latents"][letter], recorded["words"][letter])
        for letter in ("a", "d")
    }
    probe = case.probe.float()
    return calculator, sae, probe, stats, recorded, calculate_ig_ablation_and_cos_sims(calculator, sae, probe, stats)


def test_the_frame_of_absorption_is_what_the_calculator_finds(judged):
    calculator, sae, probe, stats, _, frame = judged
    assert tuple(frame.columns) == COLUMNS
    assert len(frame) >= 5
    for letter, rows in frame.groupby("letter"):
        found = calculator.calculate_absorption_sampled(
            sae,
            stats[letter].potential_false_negatives,
            probe.weights.detach()[LETTERS.index(letter)],
            letter_delta_metric(calculator.model.tokenizer, letter),
            stats[letter].split_feats,
            show_progress=False,
        )
        assert rows["token"].tolist() == [result.word for result in found.sample_results]
        for row, result in zip(rows.to_dict("records"), found.sample_results, strict=True):
            top, second = result.top_ablation_feature_scores[:2]
            assert (row["is_absorption"], row["prompt"]) == (result.is_absorption, result.prompt)
            assert (row["top_ablation_feat"], row["second_ablation_feat"]) == (top.feature_id, second.feature_id)
            assert row["top_ablation_score"] == row["ablation_scores"][0] == top.ablation_score
            assert row["second_ablation_feat_probe_cos"] == row["ablation_feat_probe_cos"][1] == second.probe_cos_sim
            assert row["ablation_feat_acts"][1] == second.activation
            assert row["split_feats"] == stats[letter].split_feats
            assert row["split_feat_acts"] == [main.activation for main in result.main_feature_scores]
            assert row["num_probe_true_positives"] == 40


def test_with_the_answer_as_prompts_have_it_verdicts_are_the_recorded_ones(judged):
    calculator, sae, probe, stats, recorded, _ = judged
    for letter in stats:
        found = calculator.calculate_absorption_sampled(
            sae,
            recorded["words"][letter],
            probe.weights.detach()[LETTERS.index(letter)],
            letter_delta_metric(calculator.model.tokenizer, f" {letter.upper()}"),
            recorded["main_latents"][letter],
            show_progress=False,
        )
        expected = [result for result in recorded["results"] if result["letter"] == letter]
        assert [(r.word, r.is_absorption) for r in found.sample_results] == [
            (r["word"], r["is_absorption"]) for r in expected
        ]
        tops = [result.top_ablation_feature_scores[0].ablation_score for result in found.sample_results]
        assert tops == pytest.approx([result["top"][0]["ablation_score"] for result in expected], rel=1e-3)


def test_a_sample_of_words_is_scaled_up(judged):
    calculator, sae, probe, stats, _, frame = judged
    some = calculate_ig_ablation_and_cos_sims(calculator, sae, probe, {"a": stats["a"]}, max_prompts_per_letter=2)
    whole = frame[frame["letter"] == "a"]
    assert len(some) == 2
    assert some["sample_portion"].tolist() == [2 / len(whole)] * 2
    expected = some["is_absorption"].sum() / (2 / len(whole)) / 40
    assert absorption_rate(some) == pytest.approx(expected)
    assert np.isnan(absorption_rate(frame.iloc[:0]))
    both = [rows["is_absorption"].sum() / 40 for _, rows in frame.groupby("letter")]
    assert absorption_rate(frame) == pytest.approx(sum(both) / 2)
