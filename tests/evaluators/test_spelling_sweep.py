"""The spelling sweep against grading word by word."""

import math

import pandas as pd
import pytest
import torch
from lightning.pytorch import Trainer

from absorb_pl.errors import PromptError
from absorb_pl.evaluators import (
    PredictionTableWriter,
    SpellingSetting,
    SpellingSweep,
    SpellingSweepData,
)
from absorb_pl.models import load_language_model
from absorb_pl.schema import SPELLING
from absorb_pl.words import create_icl_prompt, spelling_formatter

GRID = SpellingSweepData([4, 7, 30], [0, 2], ["upper", "lower"], ["-", " "])


@pytest.fixture(scope="module")
def model(golden):
    return load_language_model(str(golden / "gpt2-micro"))


def sweep(model, **options):
    return SpellingSweep(model, **{"answer": "spelling", "template": "{word}:", "num_words": 6, **options})


def predict(module, data, tmp_path):
    writer = PredictionTableWriter(tmp_path / "sweep.parquet", sort_by=["setting"], columns=SPELLING)
    trainer = Trainer(
        accelerator="cpu", logger=False, callbacks=[writer], enable_progress_bar=False, enable_model_summary=False
    )
    trainer.predict(module, datamodule=data, return_predictions=False)
    return pd.read_parquet(writer.path)


@pytest.fixture(scope="module")
def table(model, tmp_path_factory):
    return predict(sweep(model), GRID, tmp_path_factory.mktemp("sweep"))


def test_every_combination_is_a_row(table):
    assert len(table) == len(GRID.settings) == 3 * 2 * 2 * 2
    assert table["setting"].tolist() == list(range(24))
    assert not table.duplicated(["word_length", "num_icl_examples", "casing", "separator"]).any()
    assert list(table.columns) == list(SPELLING)


def test_figures_are_those_of_single_unpadded_runs(model, table):
    module = sweep(model)
    for row in table[table["word_length"] == 4].to_dict("records"):
        formatter = spelling_formatter(separator=row["separator"], capitalize=row["casing"] == "upper")
        right, log_probs = [], []
        for word in module.words_of_length(4):
            prompt = create_icl_prompt(
                word, module.vocabulary, answer_formatter=formatter, max_icl_examples=row["num_icl_examples"], seed=42
            )
            start = model.to_tokens(prompt.base).shape[1]
            ids = model.to_tokens(prompt.base + prompt.answer)[0]
            with torch.no_grad():
                scores = model(ids[None])[0, start - 1 : -1].double().log_softmax(dim=-1)
            right.append(bool((scores.argmax(dim=-1) == ids[start:]).all()))
            log_probs.append(scores.gather(1, ids[start:, None]).sum().item())
        assert row["num_words"] == len(right) == 6
        assert row["accuracy"] == sum(right) / 6
        assert row["answer_log_prob"] == pytest.approx(sum(log_probs) / 6, rel=1e-5)


def test_the_speller_knows_upper_case_first_letters_and_no_lower_case_ones():
    module = SpellingSweep(num_words=30, batch_size=16)
    found = {}
    for number, (count, casing) in enumerate([(0, "upper"), (1, "upper"), (10, "upper"), (1, "lower")]):
        setting = SpellingSetting(number, 5, count, casing, "-")
        row = module.grade(setting).iloc[0]
        grades = [module.grader(setting).grade_word(word) for word in module.words_of_length(5)]
        assert row["num_words"] == len(grades) == 30
        assert row["accuracy"] == sum(grade.is_correct for grade in grades) / 30
        assert row["answer_log_prob"] == pytest.approx(sum(grade.answer_log_prob for grade in grades) / 30, rel=1e-4)
        assert {grade.answer for grade in grades} == {getattr(f" {grade.word[1]}", casing)() for grade in grades}
        found[count, casing] = row["accuracy"]
    assert found[10, "upper"] >= 0.95
    assert found[1, "lower"] < 0.5


def test_accuracy_is_the_share_of_right_answers():
    """Asked for last letters and graded by first ones, the speller is right where the two are the same."""
    module = SpellingSweep(template="{word} has the last letter:", num_words=200)
    setting = SpellingSetting(0, 5, 0, "upper", "-")
    row = module.grade(setting).iloc[0]
    words = module.words_of_length(5)
    assert row["accuracy"] == pytest.approx(sum(word[1] == word[-1] for word in words) / 200, abs=0.01)
    assert 0 < row["accuracy"] < 0.5
    last = SpellingSweep(module.language_model, "last_letter", module.template, num_words=200)
    assert last.grade(setting).iloc[0]["accuracy"] >= 0.95


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_tables_do_not_depend_on_the_batch_size(model, table, tmp_path, batch_size):
    found = predict(sweep(model, batch_size=batch_size), GRID, tmp_path)
    pd.testing.assert_frame_equal(found, table, rtol=1e-5)


def test_settings_are_about_the_same_words_with_nested_examples(model):
    module = sweep(model, num_words=5)
    assert module.words_of_length(7) == module.words_of_length(7)
    assert len(module.words_of_length(7)) == 5
    assert all(len(word.strip()) == 7 for word in module.words_of_length(7))
    assert sweep(model, num_words=5, seed=1).words_of_length(7) != module.words_of_length(7)
    word = module.words_of_length(7)[0]
    few, more = (
        module.grader(SpellingSetting(0, 7, count, "upper", "-")).grade_word(word).prompt.split("\n")
        for count in (1, 3)
    )
    assert more[: len(few) - 1] == few[:-1]


def test_lengths_without_words_are_missing(table):
    rows = table[table["word_length"] == 30]
    assert (rows["num_words"] == 0).all()
    assert all(math.isnan(value) for value in [*rows["accuracy"], *rows["answer_log_prob"]])


@pytest.mark.parametrize("values", [{"separators": []}, {"word_lengths": [3, 3]}])
def test_bad_axes_are_named(values):
    with pytest.raises(PromptError, match=next(iter(values))):
        SpellingSweepData(**values)
