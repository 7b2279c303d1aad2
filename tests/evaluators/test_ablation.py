"""The ablation evaluator against the public functions, word by word, and against recorded figures."""

import json
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from lightning.pytorch import Trainer
from sae_lens import SAE
from safetensors.torch import load_file
from scipy import stats

from absorb_pl.attribution import (
    calculate_feature_attribution,
    calculate_individual_feature_ablations,
)
from absorb_pl.data import ActivationDataModule, PromptDataModule
from absorb_pl.evaluators import (
    AblationEvaluation,
    AblationEvaluator,
    AblationSettings,
    PredictionTableWriter,
    agreement_table,
)
from absorb_pl.functional import letter_metric
from absorb_pl.models import load_language_model
from absorb_pl.probes import LinearProbe
from absorb_pl.schema import ABLATIONS
from absorb_pl.words import SpellingPrompt, TaskConfig, answer_token_ids

SAES = ("standard_A", "jumprelu_A", "topk_B")
TASK = TaskConfig(max_icl_examples=3)
NUMBERS = ["activation", "ig_score", "attribution", "ablation_effect", "probe_cos"]
ROWS = [3, 20, 41, 58, 77]


def load_micro(folder, dtype):
    saes = {name: SAE.load_from_disk(folder / f"sae_{name}", dtype=dtype) for name in SAES}
    model = load_language_model(str(folder), dtype=dtype)
    return SimpleNamespace(
        folder=folder,
        model=model,
        saes=saes,
        hooks={name: sae.cfg.metadata.hook_name for name, sae in saes.items()},
        probe=load_file(folder / "probe_inputs.safetensors")["weight"],
        data=PromptDataModule(model, TASK, batch_size=4),
        case=json.loads((folder / "case_attribution.json").read_text()),
    )


@pytest.fixture(scope="module")
def micro(golden):
    """In float64, where differences of metrics keep their digits."""
    return load_micro(golden / "gpt2-micro", "float64")


def predict(micro, tmp_path, names=SAES, rows=ROWS, probes=None, data_batch=4, **options):
    data = PromptDataModule(micro.model, TASK, batch_size=data_batch, rows=rows)
    evaluator = AblationEvaluator(micro.model, {name: micro.saes[name] for name in names}, probes, **options)
    writer = PredictionTableWriter(tmp_path / "ablations.parquet", sort_by=("sae", "row", "latent"), columns=ABLATIONS)
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        inference_mode=False,
        callbacks=[writer],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.predict(evaluator, datamodule=data, return_predictions=False)
    return pd.read_parquet(writer.path)


@pytest.fixture(scope="module")
def table(micro, tmp_path_factory):
    probes = {micro.hooks["standard_A"]: micro.probe}
    return predict(micro, tmp_path_factory.mktemp("ablation"), probes=probes)


def word_metric(micro, row):
    answers = answer_token_ids(micro.data.task, micro.model.tokenizer)
    label = micro.data.labels[row : row + 1]
    return lambda logits: letter_metric(logits[:, -1], label.expand(len(logits)), answers.answers)


@pytest.mark.parametrize("name", SAES)
def test_effects_and_attributions_are_those_of_the_public_functions_word_by_word(micro, tmp_path, name):
    table = predict(micro, tmp_path, names=[name])
    for row in ROWS:
        length, position = int(micro.data.prompts.lengths[row]), int(micro.data.prompts.word_positions[row])
        tokens = micro.data.prompts.input_ids[row : row + 1, :length]
        metric = word_metric(micro, row)
        ablated = calculate_individual_feature_ablations(
            micro.model, tokens, metric, micro.saes[name], position, engine="whole"
        )
        attributed = calculate_feature_attribution(
            micro.model, tokens, metric, include_saes={micro.hooks[name]: micro.saes[name]}
        )
        found = table[(table["sae"] == name) & (table["row"] == row)]
        assert len(found) > 1
        assert found["latent"].tolist() == list(ablated.ablation_scores)
        latents = found["latent"].tolist()
        activations = ablated.sae_cache.feature_acts[0, position, latents]
        attributions = attributed.sae_feature_attributions[micro.hooks[name]][0, position, latents]
        for column, expected in (
            ("ablation_effect", list(ablated.ablation_scores.values())),
            ("activation", activations.tolist()),
            ("attribution", attributions.tolist()),
        ):
            assert found[column].tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12), column
        assert set(found["word"]) == {micro.data.task.words[row]}
        assert set(found["label"]) == {micro.data.task.classes[int(micro.data.labels[row])]}


@pytest.mark.parametrize("name", SAES)
def test_recorded_figures_of_the_published_code(micro, name):
    """On the golden prompt, whose in-context words no seeded draw gives."""
    expected = load_file(micro.folder / "expected_attribution.safetensors")
    tokens = micro.model.to_tokens(micro.case["clean"])
    batch = {
        "input_ids": tokens,
        "attention_mask": torch.ones_like(tokens, dtype=torch.bool),
        "lengths": torch.tensor([tokens.shape[1]]),
        "word_positions": torch.tensor([tokens.shape[1] + micro.case["position"]]),
        "labels": torch.tensor([micro.data.task.classes.index(micro.case["metric_letter"].lower())]),
        "index": torch.tensor([0]),
    }
    evaluator = AblationEvaluator(micro.model, {name: micro.saes[name]})
    evaluator.prepare(micro.data.task, [SpellingPrompt(micro.case["clean"], " O", " opikeka")])
    found = evaluator.tabulate(batch)
    latents = expected[f"{name}/ablation/ids"].long()
    assert found["latent"].tolist() == latents.tolist()
    for column, scores in (
        ("ablation_effect", expected[f"{name}/ablation/scores"]),
        ("ig_score", expected[f"{name}/ig/word_s6/sae"][0, micro.case["position"], latents]),
        ("attribution", expected[f"{name}/attribution/error_True/sae"][0, micro.case["position"], latents]),
    ):
        # the recorded ablation effects were written as float32
        stored = torch.finfo(torch.float32).eps / 2 if column == "ablation_effect" else 0
        near = pytest.approx(scores.tolist(), rel=stored, abs=1e-9 * float(scores.abs().max()))
        assert found[column].tolist() == near, column


@pytest.mark.parametrize(("data_batch", "batch_size"), [(1, 256), (64, 256), (3, 7)])
def test_tables_do_not_depend_on_batch_sizes(micro, table, tmp_path, data_batch, batch_size):
    probes = {micro.hooks["standard_A"]: micro.probe}
    found = predict(micro, tmp_path, probes=probes, data_batch=data_batch, batch_size=batch_size)
    pd.testing.assert_frame_equal(found.drop(columns=NUMBERS), table.drop(columns=NUMBERS))
    pd.testing.assert_frame_equal(found[NUMBERS], table[NUMBERS], rtol=1e-9, atol=1e-12)


def test_saes_of_one_hook_do_not_disturb_each_other(micro, table, tmp_path):
    assert micro.hooks["standard_A"] == micro.hooks["jumprelu_A"] != micro.hooks["topk_B"]
    together = table.drop(columns="probe_cos")
    for name in SAES:
        alone = predict(micro, tmp_path, [name]).drop(columns="probe_cos")
        expected = together[together["sae"] == name].reset_index(drop=True)
        pd.testing.assert_frame_equal(alone, expected, rtol=1e-6, atol=1e-7)


def test_cosines_are_with_the_probe_of_the_words_class_and_missing_without_one(micro, table):
    assert table.loc[table["sae"] == "topk_B", "probe_cos"].isna().all()
    rows = table[table["sae"] == "jumprelu_A"]
    decoder = micro.saes["jumprelu_A"].W_dec[rows["latent"].tolist()]
    probe = micro.probe[[micro.data.task.classes.index(label) for label in rows["label"]]]
    expected = torch.nn.functional.cosine_similarity(decoder, probe, dim=1)
    assert rows["probe_cos"].tolist() == pytest.approx(expected.tolist(), abs=1e-6)


def test_attribution_asks_how_important_and_ablation_what_is_lost(table):
    """The signs differ, and at most words the largest estimate is of the latent whose loss costs most."""
    assert stats.pearsonr(table["attribution"], table["ablation_effect"]).statistic < -0.5
    assert stats.pearsonr(table["ig_score"], table["ablation_effect"]).statistic > 0.5


def test_no_words_give_an_empty_table(micro, tmp_path):
    found = predict(micro, tmp_path, ["standard_A"], rows=[])
    assert len(found) == 0
    assert list(found.columns) == list(ABLATIONS)
    assert len(agreement_table(found)) == 0


def test_weakly_firing_latents_can_be_left_out(micro, table, tmp_path):
    strong = table[table["sae"] == "standard_A"]
    threshold = float(strong["activation"].median())
    found = predict(micro, tmp_path, ["standard_A"], settings=AblationSettings(firing_threshold=threshold))
    assert found["latent"].tolist() == strong.loc[strong["activation"] > threshold, "latent"].tolist()


def test_agreement_is_scipys_for_each_sae_alone(table):
    found = agreement_table(table).set_index("sae")
    assert sorted(found.index) == sorted(SAES)
    for name, pairs in table.groupby("sae"):
        row = found.loc[name]
        assert (row["num_pairs"], row["num_words"]) == (len(pairs), len(ROWS))
        for column, estimate in (("ig_score", pairs["ig_score"]), ("attribution", -pairs["attribution"])):
            effect = pairs["ablation_effect"]
            assert row[f"{column}_pearson"] == pytest.approx(stats.pearsonr(estimate, effect).statistic)
            assert row[f"{column}_spearman"] == pytest.approx(stats.spearmanr(estimate, effect).statistic)
            assert row[f"{column}_sign"] == pytest.approx(((estimate < 0) == (effect < 0)).mean())
            best = [
                estimate[rows.index].idxmin() == rows["ablation_effect"].idxmin() for _, rows in pairs.groupby("row")
            ]
            assert row[f"{column}_top"] == pytest.approx(sum(best) / len(best))


def test_evaluation_runs_on_the_test_of_a_linear_probe(micro, tmp_path):
    data = ActivationDataModule(
        micro.model, hook_name=micro.hooks["standard_A"], task=TASK, cache_dir=tmp_path / "cache"
    )
    evaluations = [AblationEvaluation(micro.saes["standard_A"], num_words=6, seed=seed) for seed in (1, 1, 2)]
    found = []
    for evaluation in evaluations:
        trainer = Trainer(
            accelerator="cpu",
            logger=False,
            default_root_dir=tmp_path,
            inference_mode=False,
            callbacks=[evaluation],
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        probe = LinearProbe(micro.probe.shape[1], len(micro.probe))
        trainer.test(probe, datamodule=data, verbose=False)
        found.append((evaluation.tables["ablations"], trainer.callback_metrics))
    rows = [sorted(set(pairs["row"])) for pairs, _ in found]
    assert len(rows[0]) == 6
    assert set(rows[0]) <= set(data.splits["test"].tolist())
    assert rows[0] == rows[1] != rows[2]
    pairs, logged = found[0]
    assert pairs["probe_cos"].notna().all()
    summary = agreement_table(pairs).iloc[0]
    for name in ("num_pairs", "ig_score_pearson", "attribution_top"):
        assert float(logged[f"test/ablation/{name}"]) == pytest.approx(summary[name])
    written = pd.read_parquet(tmp_path / "tables" / "ablations.parquet")
    assert written["row"].isin(rows[2]).all()
