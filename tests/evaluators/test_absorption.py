"""The absorption evaluator beside the calculator, rates beside sums by hand, and the prediction writer."""

from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from safetensors.torch import load_file

from absorb_pl.data import PromptDataModule
from absorb_pl.data.residuals import read_residuals
from absorb_pl.errors import AbsorbError, CacheCorruptedError, NonFiniteError, OutputFolderError
from absorb_pl.evaluators import (
    AbsorptionEvaluator,
    AbsorptionInputs,
    EvaluationRows,
    FeatureAbsorptionCalculator,
    PredictionTableWriter,
    VerdictWriter,
    crossfit,
    gradients,
)
from absorb_pl.evaluators.fold_mains import FoldMains
from absorb_pl.evaluators.gradients import GradientEvaluator
from absorb_pl.evaluators.writers import write_table
from absorb_pl.functional import letter_metric
from absorb_pl.rules import RateSettings
from absorb_pl.rules.evidence import Gradients
from absorb_pl.rules.rates import letters_table, summary_row
from absorb_pl.saes import load_sae
from absorb_pl.schema import SCORES, Column
from absorb_pl.words import LETTERS, TaskConfig, answer_token_ids

THRESHOLD = 0.0004
HOOKS = {"standard_A": "blocks.1.hook_resid_post", "topk_B": "blocks.3.hook_resid_pre"}
MAINS = {"standard_A": {"a": [87, 81], "o": [30]}, "topk_B": {"a": [5], "o": [7, 9]}}


@pytest.fixture(scope="module")
def words(gpt2):
    return PromptDataModule(gpt2, TaskConfig(max_icl_examples=3), batch_size=5)


@pytest.fixture(scope="module")
def saes(golden):
    return {name: load_sae(str(golden / "gpt2-micro" / f"sae_{name}")) for name in HOOKS}


@pytest.fixture(scope="module")
def probe(golden):
    return load_file(golden / "gpt2-micro" / "probe_inputs.safetensors")["weight"]


def rows_of(words, label, count):
    return (words.labels == LETTERS.index(label)).nonzero().flatten().tolist()[:count]


@pytest.fixture(scope="module")
def inputs(words, probe):
    """For each SAE the first words with a and o; the second SAE has fewer of them."""
    return AbsorptionInputs(
        letters=pd.DataFrame(
            [{"sae": sae, "label": label, "main_latents": m} for sae in HOOKS for label, m in MAINS[sae].items()]
        ),
        candidates=pd.DataFrame(
            [
                {"sae": sae, "row": row, "label": label}
                for sae, count in zip(HOOKS, (9, 6), strict=True)
                for label in "ao"
                for row in rows_of(words, label, count)
            ]
        ),
        probe_weights=dict.fromkeys(HOOKS.values(), probe),
    )


def predict(evaluator, words, path, **settings):
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        inference_mode=False,
        callbacks=[VerdictWriter(path, {"paper": {"delta_threshold": THRESHOLD}})],
        **settings,
    )
    trainer.predict(evaluator, datamodule=words, return_predictions=False)
    return pd.read_parquet(path)


@pytest.fixture(scope="module")
def table(gpt2, saes, inputs, words, tmp_path_factory):
    evaluator = AbsorptionEvaluator(gpt2, saes, inputs, batch_size=17)
    rows = sorted(set(inputs.candidates["row"]))
    return predict(evaluator, words.only(rows), tmp_path_factory.mktemp("words") / "words.parquet")


def test_evidence_of_folds_is_that_of_the_evaluator(gpt2, saes, inputs, words, probe):
    """Scores alone, with the probe and the main latents put beside them afterwards, are what the other evaluator says.

    Activations come from two runs of the model: they differ by rounding, in units of the norms that are multiplied.
    """
    hooks = list(HOOKS.values())
    index = torch.tensor(sorted(set(inputs.candidates["row"])))
    prompts = words.prompts
    read = read_residuals(
        gpt2, prompts.input_ids[index], prompts.attention_mask[index], prompts.word_positions[index], hooks
    )
    whole = AbsorptionEvaluator(gpt2, saes, inputs).tabulate_words(words, index)
    alone = GradientEvaluator(gpt2, saes, inputs.candidates, Gradients()).tabulate_words(words, index)
    pd.testing.assert_frame_equal(alone, whole[list(SCORES)], check_exact=True)
    for name, sae in saes.items():
        y = torch.nn.functional.one_hot(words.labels[index], 26)
        rows = EvaluationRows.of(read[HOOKS[name]], y, index, probe, torch.zeros(26), LETTERS)
        tables = (table[table["sae"] == name] for table in (inputs.letters, inputs.candidates, alone, whole))
        letters, candidates, scores, expected = tables
        found = crossfit._gradients(sae, rows, FoldMains(letters, candidates), scores)
        both = found.merge(expected, on=["row", "label"], suffixes=("", "_expected"))
        assert len(both) == len(candidates) == len(expected)
        for column in ("top_latent", "second_latent", "top_score", "second_score"):
            assert (both[column] == both[f"{column}_expected"]).all()
        unit = float(torch.finfo().eps * rows.x.norm(dim=1).max() * sae.W_enc.norm(dim=0).max())
        for column, atol in (("top_probe_cos", 1e-6), ("main_activation", 64 * unit), ("main_max", 64 * unit)):
            np.testing.assert_allclose(both[column], both[f"{column}_expected"], rtol=0, atol=atol)


def test_words_that_stand_twice_or_have_no_scores_are_refused(gpt2, saes, inputs, words, monkeypatch):
    twice = pd.concat([inputs.candidates, inputs.candidates[:1]])
    with pytest.raises(AbsorbError, match="every word once"):
        GradientEvaluator(gpt2, saes, twice, Gradients())
    scored = gradients.word_integrated_gradients

    def not_a_number(*args, **how):
        found = scored(*args, **how)
        found.scores[0, 5] = float("nan")
        return found

    monkeypatch.setattr(gradients, "word_integrated_gradients", not_a_number)
    evaluator = GradientEvaluator(gpt2, saes, inputs.candidates, Gradients())
    with pytest.raises(NonFiniteError, match="scores"):
        evaluator.tabulate_words(words, torch.tensor(sorted(set(inputs.candidates["row"]))))


def short_of_memory(evaluator, monkeypatch, most):
    """Lets an evaluator's runs fail when they have more sequences than `most`; returns the sizes tried."""
    tabulate, tried = evaluator.tabulate, []

    def limited(batch):
        tried.append(evaluator.sequences(batch))
        if tried[-1] > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return tabulate(batch)

    monkeypatch.setattr(evaluator, "tabulate", limited)
    return tried


def test_runs_become_smaller_where_memory_is_short(gpt2, saes, inputs, words, table, tmp_path, monkeypatch, caplog):
    evaluator = AbsorptionEvaluator(gpt2, saes, inputs)
    tried = short_of_memory(evaluator, monkeypatch, most=70)
    rows = sorted(set(inputs.candidates["row"]))
    found = predict(evaluator, words.only(rows), tmp_path / "words.parquet")
    assert tried[:4] == [256, 128, 64, 64]
    assert "64 sequences run together from here on" in caplog.text
    numbers = list(table.select_dtypes("number"))
    pd.testing.assert_frame_equal(found[numbers], table[numbers], rtol=1e-4, atol=1e-5)
    pd.testing.assert_frame_equal(found[["sae", "row", "latents"]], table[["sae", "row", "latents"]])


def test_a_number_of_sequences_that_does_not_fit_is_named(gpt2, saes, inputs, words, tmp_path, monkeypatch):
    evaluator = AbsorptionEvaluator(gpt2, saes, inputs, batch_size=100)
    tried = short_of_memory(evaluator, monkeypatch, most=70)
    few = words.only(inputs.candidates["row"].tolist()[:3])
    with pytest.raises(AbsorbError, match=r"`batch_size` was 100, expected runs that fit .* or `auto`"):
        predict(evaluator, few, tmp_path / "words.parquet")
    assert tried == [100]
    evaluator = AbsorptionEvaluator(gpt2, saes, inputs)
    tried = short_of_memory(evaluator, monkeypatch, most=0)
    with pytest.raises(
        AbsorbError, match=r"`batch_size` was 'auto', .* even a single sequence does not.* smaller dtype"
    ):
        predict(evaluator, few, tmp_path / "words.parquet")
    assert tried == [256, 128, 64, 32, 16, 8, 4, 2, 1]


@pytest.mark.parametrize(("sae", "count"), [("standard_A", 9), ("topk_B", 6)])
def test_verdicts_are_those_of_the_calculator(gpt2, saes, words, probe, table, sae, count):
    task = words.task
    answers = answer_token_ids(task, gpt2.tokenizer).answers
    calculator = FeatureAbsorptionCalculator(
        gpt2,
        list(task.words),
        max_icl_examples=3,
        base_template=task.template,
        answer_formatter=task.answer_formatter,
        ablation_delta_threshold=THRESHOLD,
    )
    for label in "ao":
        number = torch.tensor([LETTERS.index(label)])
        expected = calculator.calculate_absorption_sampled(
            saes[sae],
            [task.words[row] for row in rows_of(words, label, count)],
            probe[number[0]],
            lambda logits, number=number: letter_metric(logits[:, -1], number.expand(len(logits)), answers),
            MAINS[sae][label],
            filter_prompts=False,
            show_progress=False,
        ).sample_results
        found = table[(table["sae"] == sae) & (table["label"] == label)].to_dict("records")
        assert [row["word"] for row in found] == [result.word for result in expected]
        for ours, theirs in zip(found, expected, strict=True):
            assert ours["prompt"] == theirs.prompt
            assert ours["is_absorption"] == theirs.is_absorption
            top = theirs.top_ablation_feature_scores
            assert list(ours["latents"]) == [score.feature_id for score in top]
            assert ours["top_latent"] == top[0].feature_id
            assert ours["second_latent"] == top[1].feature_id
            # Float32 sums cancel in small scores: 1e-5 is of the word's largest.
            for column, field in (("scores", "ablation_score"), ("activations", "activation")):
                recorded = [getattr(score, field) for score in top]
                largest = max(map(abs, recorded))
                assert list(ours[column]) == pytest.approx(recorded, rel=1e-5, abs=1e-5 * largest)
            assert ours["top_score"] == ours["scores"][0]
            assert ours["second_score"] == ours["scores"][1]
            mains = theirs.main_feature_scores
            assert ours["main_activation"] == pytest.approx(sum(score.activation for score in mains), abs=1e-6)
            assert ours["top_probe_cos"] == pytest.approx(top[0].probe_cos_sim, abs=1e-6)


def test_verdicts_of_both_kinds_occur(table):
    assert len(table) == 30
    assert table["is_absorption"].nunique() == 2
    assert (table["main_activation"] > 0).nunique() == 2
    assert not table[table["main_activation"] > 1e-8]["is_absorption"].any()


def test_tables_hold_each_word_once_in_order(table):
    assert not table.duplicated(["sae", "row"]).any()
    assert table[["sae", "row"]].to_dict("list") == table.sort_values(["sae", "row"])[["sae", "row"]].to_dict("list")


def test_words_that_are_no_candidates_are_not_judged(gpt2, saes, inputs, words, table, tmp_path):
    evaluator = AbsorptionEvaluator(gpt2, {"topk_B": saes["topk_B"]}, inputs)
    found = predict(evaluator, words, tmp_path / "words.parquet")
    expected = table[table["sae"] == "topk_B"].reset_index(drop=True)
    assert found["row"].tolist() == expected["row"].tolist()
    assert found["is_absorption"].tolist() == expected["is_absorption"].tolist()
    assert found["top_latent"].tolist() == expected["top_latent"].tolist()


def test_an_sae_without_inputs_is_named(gpt2, saes, inputs):
    with pytest.raises(AbsorbError, match=r"`saes` was 'other', expected.*standard_A, topk_B"):
        AbsorptionEvaluator(gpt2, {"other": saes["topk_B"]}, inputs)


def test_a_folder_without_a_study_is_named(gpt2, saes, tmp_path):
    with pytest.raises(AbsorbError, match=rf"`inputs` was '{tmp_path}'.*absorb-pl study"):
        AbsorptionEvaluator(gpt2, saes, tmp_path)


LETTER_ROWS = pd.DataFrame(
    {
        "label": ["a", "b", "c", "d"],
        "main_latents": [[1, 2], [3], [4], [5]],
        "num_splits": [1, 0, 0, 0],
        "num_words": [30, 30, 30, 10],
        "num_probe_true_positives": [20, 10, 25, 0],
        "num_candidates": [8, 0, 2, 0],
        "sample_portion": [0.5, 1.0, 1.0, 1.0],
        "probe_f1": [0.9, 0.8, 0.5, 0.0],
        "probe_precision": [0.9, 0.8, 0.5, 0.0],
        "probe_recall": [0.9, 0.8, 0.5, 0.0],
        "main_latent_recall": [0.6, 1.0, 0.9, 0.1],
    }
)
VERDICTS = pd.DataFrame(
    {"label": ["a"] * 4 + ["c"] * 2, "is_absorption": [True, True, True, False, True, True]},
)
LATENTS = pd.DataFrame(
    {"rank": [0, 1, 0, 1], "f1": [0.5, 9, 0.7, 9], "precision": [0.2, 9, 0.4, 9], "recall": [1.0, 9, 0.5, 9]}
)


def test_letter_rates_by_hand():
    found = letters_table(LETTER_ROWS, VERDICTS, "paper", RateSettings()).to_dict("records")
    assert [row["rule"] for row in found] == ["paper"] * 4
    assert [row["num_judged"] for row in found] == [4, 0, 2, 0]
    assert [row["num_absorbed"] for row in found] == [3, 0, 2, 0]
    assert [row["evaluable"] for row in found] == [True, True, False, False]
    assert [row["reason"] for row in found] == ["", "", "probe F1 0.500 is below 0.6", "no probe true positives"]
    assert found[0]["absorption_rate"] == pytest.approx(3 / 0.5 / 20)
    assert found[1]["absorption_rate"] == 0
    assert pd.isna([found[2]["absorption_rate"], found[3]["absorption_rate"], found[2]["ci_low"]]).all()
    assert found[0]["ci_low"] < 0.3 < found[0]["ci_high"]


@pytest.mark.parametrize(("letters", "rate", "words"), [("counted", (0.3 + 0) / 2, 30), ("published", 0.3, 20)])
def test_sae_rates_by_hand(letters, rate, words):
    found = summary_row(LETTER_ROWS, VERDICTS, LATENTS, RateSettings(letters=letters))
    assert found["absorption_rate"] == pytest.approx(rate)
    assert (found["num_words"], found["evaluable"], found["reason"]) == (words, True, "")
    assert found["ci_low"] < rate < found["ci_high"]
    assert found["probe_f1"] == pytest.approx((0.9 + 0.8 + 0.5) / 4)
    assert found["num_splits"] == pytest.approx(1 / 4)
    assert found["main_latent_recall"] == pytest.approx(2.6 / 4)
    assert [found[f"top_latent_{name}"] for name in ("f1", "precision", "recall")] == pytest.approx([0.6, 0.3, 0.75])


def test_a_lower_bar_lets_more_letters_in():
    found = summary_row(LETTER_ROWS, VERDICTS, LATENTS, RateSettings(min_probe_f1=0.0))
    assert found["absorption_rate"] == pytest.approx((0.3 + 0 + 2 / 25) / 3)
    assert found["num_words"] == 55


def test_no_letter_is_evaluable_by_a_higher_bar():
    found = summary_row(LETTER_ROWS, VERDICTS, LATENTS, RateSettings(min_probe_f1=0.99))
    assert (found["absorption_rate"], found["ci_low"], found["evaluable"]) == (None, None, False)
    assert found["reason"] == "no evaluable label"


MODULE = Mock(spec=LightningModule)


class Together:
    """A strategy of several processes that come one after the other, rank zero last to a sum."""

    root_device = torch.device("cpu")

    def __init__(self):
        self.said, self.total = None, 0

    def barrier(self):
        pass

    def broadcast(self, value):
        self.said = self.said or value
        return self.said

    def reduce(self, value, reduce_op):
        assert reduce_op == "sum"
        self.total += value
        return self.total


def as_rank(rank, strategy):
    return Mock(spec=Trainer, is_global_zero=rank == 0, global_rank=rank, strategy=strategy)


def frame(*rows):
    return pd.DataFrame({"sae": ["s"] * len(rows), "row": list(rows), "value": [row * 0.1 for row in rows]})


def write(writer, trainer, batch, table):
    writer.write_on_batch_end(trainer, MODULE, table, None, None, batch, 0)


def test_the_writer_merges_what_several_processes_wrote(tmp_path):
    together = Together()
    ranks = [as_rank(rank, together) for rank in range(2)]
    writers = [PredictionTableWriter(tmp_path / "deep" / "words.parquet") for _ in range(2)]
    for rank, writer in zip(ranks, writers, strict=True):
        writer.on_predict_start(rank, MODULE)
    write(writers[0], ranks[0], 0, frame(7, 3))
    write(writers[1], ranks[1], 0, frame(5))
    write(writers[1], ranks[1], 1, frame(1, 9))
    write(writers[0], ranks[0], 1, frame())
    for rank in (1, 0):
        writers[rank].on_predict_end(ranks[rank], MODULE)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "deep" / "words.parquet"), frame(1, 3, 5, 7, 9))
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["words.parquet"]


def test_what_another_run_has_under_way_is_not_merged(tmp_path):
    first, second = (PredictionTableWriter(tmp_path / "words.parquet") for _ in range(2))
    own, other = as_rank(0, Together()), as_rank(0, Together())
    first.on_predict_start(other, MODULE)
    write(first, other, 5, frame(77))
    second.on_predict_start(own, MODULE)
    write(second, own, 0, frame(2))
    second.on_predict_end(own, MODULE)
    assert pd.read_parquet(second.path)["row"].tolist() == [2]
    first.on_predict_end(other, MODULE)
    assert pd.read_parquet(first.path)["row"].tolist() == [77]


def test_a_shard_that_is_gone_is_missed(tmp_path):
    writer, rank = PredictionTableWriter(tmp_path / "words.parquet"), as_rank(0, Together())
    writer.on_predict_start(rank, MODULE)
    write(writer, rank, 0, frame(2))
    write(writer, rank, 1, frame(3, 4))
    next(tmp_path.rglob("00000-00000001.parquet")).unlink()
    with pytest.raises(CacheCorruptedError, match="1 rows', expected the 3 that were predicted"):
        writer.on_predict_end(rank, MODULE)
    assert not writer.path.exists()
    writer.on_exception(rank, MODULE, KeyboardInterrupt())
    assert list(tmp_path.iterdir()) == []


def test_without_predictions_there_is_an_empty_table(tmp_path):
    writer = PredictionTableWriter(
        tmp_path / "words.parquet", columns={"sae": Column("str", ""), "row": Column("int64", "")}
    )
    rank = as_rank(0, Together())
    writer.on_predict_start(rank, MODULE)
    writer.on_predict_end(rank, MODULE)
    table = pd.read_parquet(writer.path)
    assert (len(table), list(table.columns), str(table["row"].dtype)) == (0, ["sae", "row"], "int64")


def test_a_table_that_cannot_be_written_raises_and_leaves_the_old_one(tmp_path, monkeypatch):
    write_table(frame(1), tmp_path / "t.parquet")

    def full(_, path, **__):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pd.DataFrame, "to_parquet", full)
    with pytest.raises(OutputFolderError, match="No space left on device"):
        write_table(frame(2), tmp_path / "t.parquet")
    assert [file.name for file in tmp_path.iterdir()] == ["t.parquet"]
    monkeypatch.undo()
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "t.parquet"), frame(1))


def test_a_failed_write_ends_the_pass(gpt2, saes, inputs, words, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pd.DataFrame, "to_parquet", full)
    evaluator = AbsorptionEvaluator(gpt2, saes, inputs)
    with pytest.raises(OutputFolderError, match="No space left on device"):
        predict(evaluator, words, tmp_path / "words.parquet")
    assert list(tmp_path.iterdir()) == []
