"""The latent and k-sparse tables against those of the published implementations."""

import json

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import f1_score, precision_recall_curve, precision_score, recall_score, roc_auc_score

from absorb_pl.errors import AbsorbError
from absorb_pl.evaluators import (
    EvaluationRows,
    SplitSettings,
    evaluate_sae,
    k_sparse_table,
    latent_table,
)
from absorb_pl.evaluators.k_sparse_table import main_latents_by_label
from absorb_pl.functional import DEFAULT_KS, SaeStatistics, k_sparse_logits
from absorb_pl.probes import SaeProbe
from absorb_pl.saes import load_sae
from absorb_pl.words import LETTERS

CASES = [(model, sae) for model in ("gpt2-micro", "gemma2-micro") for sae in ("standard_A", "jumprelu_A")]
METRICS = {"f1": "f1", "precision": "precision", "recall": "recall", "auroc": "auc"}


class Case:
    """Recorded inputs and tables of one micro model and SAE."""

    def __init__(self, golden, model, sae):
        self.folder, self.name = golden / model, sae
        inputs = load_file(self.folder / "probe_inputs.safetensors")
        self.x, self.weight, self.bias = inputs["activations_A"], inputs["weight"], inputs["bias"]
        self.sae = load_sae(str(self.folder / f"sae_{sae}"))
        words = json.loads((golden / "words.json").read_text())[8:]
        self.y = torch.tensor([[word[0].lower() == letter for letter in LETTERS] for word in words])
        self.logits = self.x @ self.weight.T + self.bias

    def expected(self, name):
        return pd.read_parquet(self.folder / f"expected_{name}_{self.name}.parquet")

    def k_sparse(self):
        """The recorded k-sparse probes: latents, weights padded with zeros, biases."""
        probes = load_file(self.folder / f"k_sparse_probes_{self.name}.safetensors")
        largest, classes = DEFAULT_KS[-1], len(LETTERS)
        ids = torch.zeros(classes, largest, dtype=torch.long)
        weight, bias = torch.zeros(len(DEFAULT_KS), classes, largest), torch.zeros(len(DEFAULT_KS), classes)
        for c in self.y.any(dim=0).nonzero().flatten().tolist():
            ids[c] = probes[f"{largest}/{c}/ids"]
            for i, k in enumerate(DEFAULT_KS):
                assert probes[f"{k}/{c}/ids"].tolist() == ids[c, :k].tolist()
                weight[i, c, :k], bias[i, c] = probes[f"{k}/{c}/weight"], probes[f"{k}/{c}/bias"].item()
        return ids, weight, bias


@pytest.fixture(params=CASES, ids="-".join)
def case(request, golden):
    return Case(golden, *request.param)


def test_latent_table_is_the_published_one(case):
    expected = case.expected("latent_metrics")
    found = latent_table(case.sae, case.x, case.y, case.weight, case.logits, tuple(LETTERS), top=3)
    assert found["label"].tolist() == [letter for letter in expected["letter"] for _ in range(3)]
    for rank in range(3):
        rows = found[found["rank"] == rank].reset_index(drop=True)
        assert rows["latent"].tolist() == expected[f"sae_top_{rank}_feat"].tolist()
        for ours, theirs in METRICS.items():
            assert rows[ours].tolist() == pytest.approx(expected[f"{theirs}_sae_top_{rank}"].tolist(), abs=1e-5)
            assert rows[f"probe_{ours}"].tolist() == pytest.approx(expected[f"{theirs}_probe"].tolist(), abs=1e-5)
        for row, letter in enumerate(expected["letter"]):
            for side in ("enc", "dec"):
                # The recorded tables lack the columns of the letter k.
                if letter != "k":
                    recorded = expected[f"cos_probe_sae_{side}_{letter}_top_{rank}"][row]
                    assert rows[f"cos_{side}oder"][row] == pytest.approx(recorded, abs=1e-5)


def test_k_sparse_table_is_the_published_one(case):
    expected = case.expected("k_sparse_metrics")
    ids, weight, bias = case.k_sparse()
    latents = case.sae.encode(case.x)[:, ids]
    found = k_sparse_table(k_sparse_logits(latents, weight, bias), case.y, DEFAULT_KS, ids, tuple(LETTERS))
    for k in DEFAULT_KS:
        rows = found[found["k"] == k].reset_index(drop=True)
        assert rows["label"].tolist() == expected["letter"].tolist()
        assert [list(latents) for latents in rows["latents"]] == [
            [latents] if k == 1 and not hasattr(latents, "__len__") else list(latents)
            for latents in expected[f"sparse_sae_k_{k}_feats"]
        ]
        for ours, theirs in METRICS.items():
            assert rows[ours].tolist() == pytest.approx(expected[f"{theirs}_sparse_sae_{k}"].tolist(), abs=1e-5)
    mains = main_latents_by_label(found)
    assert mains == {row["letter"]: list(row["split_feats"]) for row in expected.to_dict("records")}
    assert [len(mains[letter]) - 1 for letter in expected["letter"]] == expected["num_split_features"].tolist()


def test_best_f1_and_its_threshold_are_those_of_scikit_learn(golden):
    case = Case(golden, *CASES[0])
    ids, weight, bias = case.k_sparse()
    logits = k_sparse_logits(case.sae.encode(case.x)[:, ids], weight, bias)
    found = k_sparse_table(logits, case.y, DEFAULT_KS, ids, tuple(LETTERS))
    for row in found[found["k"].isin([1, 5])].to_dict("records"):
        c, i = LETTERS.index(row["label"]), DEFAULT_KS.index(row["k"])
        scores, targets = logits[:, i, c].numpy(), case.y[:, c].numpy()
        precision, recall, _ = precision_recall_curve(targets, scores)
        best = (2 * precision * recall / (precision + recall).clip(1e-12)).max()
        assert row["best_f1"] == pytest.approx(best, abs=1e-6)
        assert f1_score(targets, scores >= row["best_f1_threshold"]) == pytest.approx(best, abs=1e-6)


class TestEvaluateSae:
    """`evaluate_sae` step by step, on the recorded rows and probes."""

    @pytest.fixture(scope="class")
    def case(self, golden):
        return Case(golden, *CASES[0])

    @pytest.fixture(scope="class")
    def probe(self, case):
        probe = SaeProbe(case.sae, len(LETTERS), class_names=LETTERS)
        probe.latent_ids, probe.weight, probe.bias = case.k_sparse()
        return probe

    @pytest.fixture(scope="class")
    def rows(self, case):
        names = tuple(LETTERS)
        return EvaluationRows(case.x, case.y, torch.arange(1000, 1000 + len(case.x)), case.weight, case.logits, names)

    @pytest.fixture(scope="class")
    def found(self, case, probe, rows):
        return evaluate_sae(case.sae, probe, rows)

    def test_candidates_follow_the_rule(self, case, probe, found):
        latents = case.sae.encode(case.x)
        for row in found.letters.to_dict("records"):
            c, mains = LETTERS.index(row["label"]), list(row["main_latents"])
            k = DEFAULT_KS.index(len(mains))
            own = case.y[:, c]
            right = own & (case.logits[:, c] > 0)
            score = latents[:, mains] @ probe.weight[k, c, : len(mains)] + probe.bias[k, c]
            active = latents[:, mains].sum(dim=1)
            eligible = right & (score <= 0) & (active < 1e-8)
            chosen = found.candidates[found.candidates["label"] == row["label"]]
            assert sorted(chosen["row"]) == (eligible.nonzero().flatten() + 1000).tolist()
            assert (row["num_words"], row["num_probe_true_positives"]) == (own.sum(), right.sum())
            assert (row["num_candidates"], row["sample_portion"]) == (len(chosen), 1.0)
            assert row["main_latent_recall"] == pytest.approx((active[own] >= 1e-8).double().mean().item())
        assert len(found.candidates) >= 5

    def test_probe_figures_are_those_of_scikit_learn(self, case, found):
        for row in found.letters.to_dict("records"):
            c = LETTERS.index(row["label"])
            truth, said = case.y[:, c].numpy(), (case.logits[:, c] > 0).numpy()
            assert row["probe_f1"] == pytest.approx(f1_score(truth, said))
            assert row["probe_precision"] == pytest.approx(precision_score(truth, said, zero_division=0))
            assert row["probe_recall"] == pytest.approx(recall_score(truth, said))

    def test_statistics(self, case, found):
        latents = case.sae.encode(case.x)
        residual = case.x - case.sae.decode(latents)
        variance = (case.x - case.x.mean(dim=0)).square().sum()
        assert found.statistics == pytest.approx(
            {
                "d_sae": 160,
                "l0": (latents > 0).sum(dim=1).double().mean().item(),
                "explained_variance": 1 - (residual.square().sum() / variance).item(),
                "dead_fraction": (latents == 0).all(dim=0).double().mean().item(),
            },
            rel=1e-5,
        )

    def test_more_candidates_than_asked_for_are_sampled_by_the_seed(self, case, probe, rows, found):
        first, again = (
            evaluate_sae(case.sae, probe, rows, SplitSettings(max_words_per_letter=1, seed=3)) for _ in range(2)
        )
        pd.testing.assert_frame_equal(first.candidates, again.candidates)
        many = found.letters["num_candidates"] > 1
        assert many.any()
        assert first.letters["num_candidates"].tolist() == found.letters["num_candidates"].tolist()
        portions = 1 / found.letters["num_candidates"].clip(lower=1)
        assert first.letters["sample_portion"].tolist() == pytest.approx(portions.tolist())
        assert first.candidates.groupby("label").size().max() == 1
        assert set(first.candidates["row"]) < set(found.candidates["row"])

    def test_main_latents_may_be_chosen_on_the_training_words(self, case, probe, rows):
        half = torch.arange(len(case.x)) % 2 == 0
        parts = [
            EvaluationRows(case.x[kept], case.y[kept], rows.index[kept], case.weight, case.logits[kept], tuple(LETTERS))
            for kept in (half, ~half)
        ]
        judged, training = parts
        chosen = evaluate_sae(
            case.sae, probe, judged, SplitSettings(selection="train", f1_jump=0.0), (training.x, training.y)
        )
        there, here = (
            evaluate_sae(case.sae, probe, part, SplitSettings(f1_jump=0.0)).letters.set_index("label")["main_latents"]
            for part in (training, judged)
        )
        mains = chosen.letters.set_index("label")["main_latents"]
        assert len(mains) > 5
        assert all(latents == there[label] for label, latents in mains.items())
        assert any(latents != here[label] for label, latents in mains.items())
        with pytest.raises(AbsorbError, match="training words"):
            evaluate_sae(case.sae, probe, judged, SplitSettings(selection="train"))

    def test_letters_without_words_are_left_out_and_nothing_is_missing(self, case, found):
        absent = [letter for letter, occurs in zip(LETTERS, case.y.any(dim=0).tolist(), strict=True) if not occurs]
        assert absent
        for table in (found.letters, found.k_sparse, found.latents):
            assert not set(table["label"]) & set(absent)
            assert not table.isna().any().any()


def test_latent_scores_of_a_class_are_separable_figures(golden):
    case = Case(golden, *CASES[1])
    table = latent_table(case.sae, case.x, case.y, case.weight, case.logits, tuple(LETTERS))
    assert table.groupby("label").size().unique().tolist() == [5]
    weights = load_file(case.folder / "sae_jumprelu_A" / "sae_weights.safetensors")
    for row in table[table["rank"] == 4].to_dict("records"):
        c = LETTERS.index(row["label"])
        scores = case.x @ weights["W_enc"][:, row["latent"]] + weights["b_enc"][row["latent"]]
        scores = scores - weights["threshold"][row["latent"]]
        assert row["auroc"] == pytest.approx(roc_auc_score(case.y[:, c], scores), abs=1e-6)


def test_statistics_do_not_depend_on_chunks(golden):
    case = Case(golden, *CASES[0])
    whole, parts = (SaeStatistics.empty(48, 160) for _ in range(2))
    for statistics, chunks in ((whole, [case.x]), (parts, case.x.split(7))):
        for chunk in chunks:
            latents = case.sae.encode(chunk)
            statistics.update(chunk, latents, case.sae.decode(latents))
    assert (parts.l0, parts.dead_fraction) == (whole.l0, whole.dead_fraction)
    assert parts.explained_variance == pytest.approx(whole.explained_variance, rel=1e-9)
