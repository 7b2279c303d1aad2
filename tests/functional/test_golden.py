"""Figures of the published implementations on two micro models."""

import json
import string
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from transformer_lens.model_bridge import TransformerBridge

from absorb_pl.functional import (
    LATENT_DECISION_THRESHOLD,
    binary_metrics,
    cosine_similarity_matrix,
    gradient_scores,
    latent_scores,
    main_latents,
    most_negative_latents,
    paper_decisions,
    probe_projection,
    projection_scores,
    top_latents_by_encoder,
)
from absorb_pl.rules import rule_named

GOLDEN = Path(__file__).parents[1] / "golden"
LETTERS = string.ascii_lowercase
FLOAT32_UNIT = torch.finfo(torch.float32).eps / 2
# The evaluations of latents and of k-sparse probes were recorded in float32: sums of 48 products, and of up to 50
# latents that are such sums, round by at most a unit a term.
FLOAT32 = (48 + 50) * FLOAT32_UNIT
# SAEBench's were recorded on SAEs whose norms were folded in float32: a norm, a division and two products.
FOLDED_IN_FLOAT32 = 4 * FLOAT32_UNIT
CASES = [(model, sae) for model in ("gpt2-micro", "gemma2-micro") for sae in ("standard_A", "jumprelu_A")]


def in_float64(file):
    """Tensors of a file; numbers of latents become floating point too, and are made whole again where they index."""
    return {name: tensor.double() for name, tensor in load_file(file).items()}


class Case:
    """Inputs of one micro model and SAE, in float64."""

    def __init__(self, model, sae):
        self.folder, self.sae = GOLDEN / model, sae
        inputs = in_float64(self.folder / "probe_inputs.safetensors")
        self.x, self.weight, self.bias = inputs["activations_A"], inputs["weight"], inputs["bias"]
        self.params = in_float64(self.folder / f"sae_{sae}" / "sae_weights.safetensors")
        self.words = [" " + word for word in json.loads((GOLDEN / "words.json").read_text())[8:]]

    def encode(self, x):
        """Latents of the golden SAEs: standard subtracts its decoder bias, JumpReLU has thresholds."""
        if "threshold" in self.params:
            before = x @ self.params["W_enc"] + self.params["b_enc"]
            return before * (before > self.params["threshold"])
        return torch.relu((x - self.params["b_dec"]) @ self.params["W_enc"] + self.params["b_enc"])

    def table(self, name):
        return pd.read_parquet(self.folder / f"{name}_{self.sae}.parquet")

    def rows(self, name):
        return json.loads((self.folder / f"{name}_{self.sae}.json").read_text())


@pytest.fixture(params=CASES, ids="-".join)
def case(request):
    return Case(*request.param)


def close(found, expected, terms=FLOAT32):
    """To a part of the largest expected figure, and at least of 1: to that of float32 where that recorded them."""
    expected = torch.as_tensor(list(expected), dtype=torch.float64)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=terms * max(1.0, expected.abs().max().item()))


def targets_of(table):
    labels = torch.tensor([LETTERS.index(letter) for letter in table["answer_letter"]])
    return torch.nn.functional.one_hot(labels, 26).bool()


def check_metrics(scores, targets, threshold, columns, expected, suffix):
    """Metrics as recorded, but where the rounding of the record may turn a pair of scores round."""
    found = binary_metrics(scores, targets, threshold)
    rounding = FLOAT32 * max(1.0, scores.abs().max().item())
    silent = scores == 0  # exactly, in any precision
    clear = (silent | ((scores - threshold).abs() > rounding)).all(dim=0)[columns]
    assert clear.float().mean() > 0.5
    for name in ("f1", "precision", "recall"):
        recorded = torch.tensor(expected[f"{name}_{suffix}"].to_numpy(), dtype=torch.float64)
        close(getattr(found, name)[columns][clear], recorded[clear])
    for column, recorded in zip(columns, expected[f"auc_{suffix}"], strict=True):
        positive, negative = scores[targets[:, column], column], scores[~targets[:, column], column]
        lead = positive[:, None] - negative[None]
        low, high = (lead > rounding).double().mean(), (lead >= -rounding).double().mean()
        assert low - FLOAT32 <= recorded <= high + FLOAT32
        assert low - FLOAT32 <= found.auroc[column] <= high + FLOAT32
    return found


def test_latent_evaluation(case):
    raw, expected = case.table("expected_latent_raw"), case.table("expected_latent_metrics")
    assert raw["token"].tolist() == case.words
    targets, letters = targets_of(raw), [LETTERS.index(letter) for letter in expected["letter"]]
    ids, encoder_cos = top_latents_by_encoder(case.weight, case.params["W_enc"], 3)
    decoder_cos = cosine_similarity_matrix(case.weight, case.params["W_dec"]).gather(1, ids)
    scores = latent_scores(case.x, case.params["W_enc"], case.params["b_enc"], ids, case.params.get("threshold"))
    assert letters == targets.any(dim=0).nonzero().flatten().tolist()
    check_metrics(case.x @ case.weight.T + case.bias, targets, 0.0, letters, expected, "probe")
    for rank in range(3):
        check_metrics(scores[:, :, rank], targets, LATENT_DECISION_THRESHOLD, letters, expected, f"sae_top_{rank}")
        assert ids[letters, rank].tolist() == expected[f"sae_top_{rank}_feat"].tolist()
        for row, c in enumerate(letters):
            # The recorded tables lack the raw columns of the letter k.
            if LETTERS[c] != "k":
                name = f"{LETTERS[c]}_top_{rank}"
                close(scores[:, c, rank], raw[f"score_sae_{name}"])
                close(encoder_cos[c, rank, None], [expected[f"cos_probe_sae_enc_{name}"][row]])
                close(decoder_cos[c, rank, None], [expected[f"cos_probe_sae_dec_{name}"][row]])


def test_k_sparse_scores_metrics_and_splits(case):
    raw, expected = case.table("expected_k_sparse_raw"), case.table("expected_k_sparse_metrics")
    probes = in_float64(case.folder / f"k_sparse_probes_{case.sae}.safetensors")
    targets, letters = targets_of(raw), [LETTERS.index(letter) for letter in expected["letter"]]
    latents, ks = case.encode(case.x), [*range(1, 16), 20, 50]
    f1 = {}
    for k in ks:
        ids = torch.stack([probes[f"{k}/{c}/ids"].long() for c in letters])
        weight = torch.stack([probes[f"{k}/{c}/weight"] for c in letters])
        bias = torch.cat([probes[f"{k}/{c}/bias"].flatten() for c in letters])
        chosen = latents[:, ids]
        scores, sums = (chosen * weight).sum(dim=2) + bias, chosen.sum(dim=2)
        every, present = list(range(len(letters))), targets[:, letters]
        f1[k] = check_metrics(scores, present, 0.0, every, expected, f"sparse_sae_{k}").f1
        check_metrics(sums, present, 1e-6, every, expected, f"sum_sparse_sae_{k}")
        if f"score_sparse_sae_{LETTERS[letters[0]]}_k_{k}" in raw:
            for i, c in enumerate(letters):
                close(scores[:, i], raw[f"score_sparse_sae_{LETTERS[c]}_k_{k}"])
                close(sums[:, i], raw[f"sum_sparse_sae_{LETTERS[c]}_k_{k}"])
    for i, row in expected.iterrows():
        ranked = probes[f"50/{letters[i]}/ids"].long().tolist()
        mains = main_latents([f1[k][i].item() for k in ks], ks, ranked)
        assert mains == list(row["split_feats"])
        assert len(mains) - 1 == row["num_split_features"]


def test_paper_verdicts(case):
    golden = case.rows("expected_absorption_paper")
    assert len(golden["results"]) >= 20
    width = case.params["W_dec"].shape[0]
    cosines = cosine_similarity_matrix(case.weight, case.params["W_dec"])
    for row in golden["results"]:
        scores, activations = torch.zeros(2, 1, width, dtype=torch.float64)
        for latent in row["main"] + row["top"]:
            scores[0, latent["feature_id"]] = latent["ablation_score"]
            activations[0, latent["feature_id"]] = latent["activation"]
        cos = cosines[LETTERS.index(row["letter"])]
        found = gradient_scores(scores, activations, cos, golden["main_latents"][row["letter"]])
        is_absorption = paper_decisions(
            found.top_score,
            found.second_score,
            found.top_probe_cos,
            found.main_max,
            delta_threshold=golden["ablation_delta_threshold"],
            cos_threshold=golden["probe_cos_sim_threshold"],
        )
        assert is_absorption.tolist() == [row["is_absorption"]]
        top = [latent for latent in row["top"] if latent["ablation_score"] < 0]
        ids, values = most_negative_latents(scores, len(top))
        assert ids[0].tolist() == [latent["feature_id"] for latent in top]
        assert values[0].tolist() == [latent["ablation_score"] for latent in top]
        assert found.top_latent.item() == top[0]["feature_id"]
        close(found.top_probe_cos, [top[0]["probe_cos_sim"]], 1e-9)
        close(cos[[latent["feature_id"] for latent in row["main"]]], [m["probe_cos_sim"] for m in row["main"]], 1e-9)


@pytest.fixture(scope="module")
def residuals():
    """Residual activations at the word (position −6) of prompts, by model name."""
    models = {}

    def read(name, prompts):
        if name not in models:
            models[name] = TransformerBridge.boot_transformers(
                str(GOLDEN / name), device="cpu", dtype=torch.float64
            ).eval()
        rows = []
        with torch.inference_mode():
            for prompt in prompts:
                _, cache = models[name].run_with_cache(prompt, names_filter="blocks.1.hook_resid_post")
                rows.append(cache["blocks.1.hook_resid_post"][0, -6])
        return torch.stack(rows)

    return read


@pytest.mark.parametrize("version", ["0.6.0", "0.3.2"])
def test_saebench_verdicts(case, version, residuals, recorded_to):
    within = recorded_to(case.folder.name)
    rows = case.rows(f"expected_absorption_saebench_{version}")
    mains = case.rows("expected_absorption_paper")["main_latents"]
    x = residuals(case.folder.name, [row["prompt"] for row in rows])
    latents = case.encode(x) * case.params["W_dec"].norm(dim=1)  # as with decoder rows of length one
    cosines = cosine_similarity_matrix(case.weight, case.params["W_dec"])
    for i, row in enumerate(rows):
        c = LETTERS.index(row["letter"])
        projection = probe_projection(x[i, None], case.weight[c])
        scores = projection_scores(latents[i, None], projection, cosines[c], mains[row["letter"]])
        stored = {**vars(scores), "top_score": scores.top_projection}
        found = rule_named(f"saebench-{version}")().decide(stored)
        close(projection, [row["probe_projection"]], within)
        close(found.fraction, [row["absorption_fraction"]], within + FOLDED_IN_FLOAT32)
        assert found.is_absorption.tolist() == [row["is_full_absorption"]]
        projections = latents[i] * cosines[c]
        assert scores.top_latent.item() == row["top"][0]
        close(projections[row["top"]], projections.topk(10).values, within)
