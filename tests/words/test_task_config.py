import dataclasses

import pytest
from jsonargparse import ArgumentParser

from absorb_pl.errors import AbsorbError, PromptError
from absorb_pl.words import VERBOSE_FIRST_LETTER_TEMPLATE, TableSettings, TaskConfig, first_letter_task
from absorb_pl.words.letter_tasks import contains_task_of_words, letter_task_of_words

TABLE = TableSettings("city_country", "city", "country")
PLAIN = ("name", "words", "labels", "classes", "answers", "template", "children", "max_icl_examples")


def same(task, other):
    return all(getattr(task, field) == getattr(other, field) for field in PLAIN)


def test_the_default_asks_for_first_letters(any_tokenizer):
    task = TaskConfig().build(any_tokenizer)
    assert same(task, first_letter_task(any_tokenizer, only_start_of_word=True))
    assert task.template == VERBOSE_FIRST_LETTER_TEMPLATE == "{word} has the first letter:"


def test_settings_reach_the_task(byte_level):
    words = ["kitchen", "cat", "Dog"]
    spaced = [" kitchen", " cat", " Dog"]
    config = TaskConfig("nth_letter", letter=-2, words=words, template="{word}?", max_icl_examples=2)
    task = config.build(byte_level)
    assert same(task, letter_task_of_words(spaced, place=-2, template="{word}?", max_icl_examples=2))
    assert config.prompts(task)[0].base.count("?") == 3
    last = TaskConfig("last_letter", words=words, max_words=2).build(byte_level)
    assert same(last, letter_task_of_words(spaced, place=-1, max_words=2))
    assert [last.classes[label] for label in last.labels] == [word[-1] for word in last.words]
    contains = TaskConfig("contains", contains="c", words=words).build(byte_level)
    assert same(contains, contains_task_of_words(spaced, "c"))
    common = TaskConfig(vocabulary="words", max_tokens_per_word=2, max_words=5).build(byte_level)
    assert all(len(byte_level.tokenize(word)) <= 2 for word in common.words)
    assert len(common.words) == 5


def test_tables_are_built_with_their_settings(byte_level):
    config = TaskConfig("table", table=TABLE, template="{word} lies in", max_words=200, seed=3, max_icl_examples=4)
    task = config.build(byte_level, reads_answers=False)
    assert (task.name, len(task.words), task.max_icl_examples, task.template) == ("table", 200, 4, "{word} lies in")
    assert task.words != dataclasses.replace(config, seed=4).build(byte_level, reads_answers=False).words
    prompt = config.prompts(task)[0]
    assert prompt.base.endswith(f"{prompt.word} lies in")


def test_settings_are_read_from_plain_values(byte_level):
    parser = ArgumentParser()
    parser.add_argument("--task", type=TaskConfig)
    plain = {
        "name": "table",
        "template": "{word} lies in",
        "table": {"path": "city_country", "text": "city", "label": "country", "parent": "continent"},
    }
    config = parser.instantiate(parser.parse_object({"task": plain})).task
    assert config == TaskConfig(
        "table", template="{word} lies in", table=dataclasses.replace(TABLE, parent="continent")
    )
    assert set(config.build(byte_level, reads_answers=False).children) >= {"France", "Japan"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "nth_letter"}, "`task.letter` was None, expected a value"),
        ({"name": "contains"}, "`task.contains` was None, expected a value"),
        ({"name": "table", "template": "{word}"}, "`task.table` was None, expected a value"),
        ({"letter": 2}, "`task.letter` was 2, expected None for the task 'first_letter'"),
        ({"name": "last_letter", "contains": "a"}, "`task.contains` was 'a', expected None"),
        ({"table": TABLE}, "`task.table`"),
        ({"name": "table", "template": "{word}", "table": TABLE, "words": ["cat"]}, "`task.words`"),
        ({"name": "table", "template": "{word}", "table": TABLE, "max_tokens_per_word": 2}, "`task.max_tokens_per"),
    ],
)
def test_settings_of_another_task_and_missing_ones_are_refused(settings, message):
    with pytest.raises(AbsorbError, match=message):
        TaskConfig(**settings)


def test_a_table_needs_a_template():
    with pytest.raises(PromptError, match="template"):
        TaskConfig("table", table=TABLE)


@pytest.mark.parametrize(("name", "letter", "left_out"), [("first_letter", None, 2), ("nth_letter", 2, 1)])
def test_listed_words_without_the_letter_are_counted_and_shown(byte_level, name, letter, left_out):
    config = TaskConfig(name, letter=letter, words=["kitchen", "élan", "cat", "кот"])
    with pytest.warns(UserWarning, match=f"^{left_out} of 4 listed words are left out.*кот") as said:
        task = config.build(byte_level)
    assert (len(task.words), len(said)) == (4 - left_out, 1)
