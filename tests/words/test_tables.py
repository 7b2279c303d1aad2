"""Tables of labelled texts, good and bad, and the tasks made of them; pandas reads the same files."""

from collections import Counter

import pandas as pd
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from absorb_pl.errors import AbsorbError, PromptError, TaskTableError
from absorb_pl.words import TableSettings, answer_token_ids
from absorb_pl.words.table_tasks import table_task
from absorb_pl.words.tables import find_table, read_labelled_texts

GOOD = 'word,kind,group\ncat,pet,animal\ndog,pet,animal\nkitchen,room,place\nthe,"small, word",grammar\n'
LETTERS = "abcdefghijklmnopqrstuvwxyz"


@pytest.fixture
def file(tmp_path):
    """Writes a table and gives its path."""

    def write(content, name="t.csv"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


@pytest.fixture
def letters_table(file):
    """26 texts of one letter, in two groups of 13 with two kinds each; labels are such that `yes` is never read as
    anything else than text."""
    rows = [
        f"{letter},{'NA' if n % 2 else 'null'} {n // 13},{'A' if n < 13 else 'B'}" for n, letter in enumerate(LETTERS)
    ]
    return file("\n".join(["text,label,parent", *rows]) + "\n")


@pytest.mark.parametrize(
    ("name", "columns"),
    [("city_country", ["city", "country", "continent"]), ("part_of_speech", ["word", "kind", "part_of_speech"])],
)
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_bundled_tables_read_as_pandas_reads_them(name, columns, kind, tmp_path):
    frame = pd.read_csv(find_table(name), keep_default_na=False)
    path = find_table(name)
    if kind == "parquet":
        path = tmp_path / "t.parquet"
        frame.to_parquet(path)
    table = read_labelled_texts(path, *columns)
    assert [table.texts, table.labels, table.parents] == [tuple(frame[column]) for column in columns]
    assert table.places[:2] == (("line 2", "line 3") if kind == "csv" else ("row 1", "row 2"))
    assert read_labelled_texts(path, columns[0], columns[2]).parents == ()


def test_the_bundled_tables_are_as_large_as_they_say():
    cities = pd.read_csv(find_table("city_country"), keep_default_na=False)
    assert cities["city"].is_unique
    assert cities.groupby("country").size().min() >= 12
    assert cities["country"].nunique() >= 12
    words = pd.read_csv(find_table("part_of_speech"), keep_default_na=False)
    assert words["word"].is_unique
    assert words.groupby("part_of_speech").size().min() >= 100
    for table, label, parent in ((cities, "country", "continent"), (words, "kind", "part_of_speech")):
        assert (table.groupby(label)[parent].nunique() == 1).all()
        assert (table == table.apply(lambda column: column.str.strip())).all(axis=None)


def test_quotes_line_ends_byte_order_marks_and_blank_lines(file):
    content = "\ufeff" + GOOD.replace("\n", "\r\n") + '\r\n"two\r\nlines",x,y\r\n'
    table = read_labelled_texts(file(content), "word", "kind")
    assert table.texts == ("cat", "dog", "kitchen", "the", "two\r\nlines")
    assert table.labels[3] == "small, word"
    assert table.places == ("line 2", "line 3", "line 4", "line 5", "line 8")


def test_numbers_and_missing_cells_of_parquet(tmp_path):
    pd.DataFrame({"word": ["cat", "dog"], "legs": [4, 5]}).to_parquet(tmp_path / "t.parquet")
    assert read_labelled_texts(tmp_path / "t.parquet", "word", "legs").labels == ("4", "5")
    pd.DataFrame({"word": ["cat", "dog"], "kind": ["pet", None]}).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(TaskTableError, match=r"t.parquet, column kind, row 2` was ''"):
        read_labelled_texts(tmp_path / "t.parquet", "word", "kind")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (GOOD + "emu,,animal\n", r"t.csv, column kind, line 6` was ''"),
        (GOOD + "  ,pet,animal\n", r"t.csv, column word, line 6` was ''"),
        (GOOD + " cat,pet,animal\n", r"column word, line 6` was 'cat', expected each text once. It stands in line 2"),
        (GOOD + "emu,pet,bird\n", r"column kind, line 6` was 'pet'.*'animal' as in line 2, not 'bird'"),
        (GOOD + "emu,pet\n", r"t.csv` was '2 cells in line 6', expected the 3 columns"),
        (GOOD + "emu,pet,animal,x\n", "was '4 cells in line 6'"),
        (
            GOOD.replace("kind", "sort"),
            r"`table` was 'kind', expected one of the columns of .*t.csv: word, sort, group",
        ),
        (GOOD.replace("group", "kind"), "`table` was 'kind'.*It stands there 2 times"),
        ("word,kind,group\n", "expected rows below the header"),
        ("", "it has none"),
        (GOOD.encode() + b"\xff\xfe,pet,animal\n", "expected a CSV file in UTF-8.*It does not read: 'utf-8'"),
        (GOOD + 'emu,"pet,animal\n', "It does not read"),
    ],
)
def test_files_that_do_not_fit_are_refused_by_file_column_and_row(file, content, message):
    with pytest.raises(TaskTableError, match=message) as caught:
        read_labelled_texts(file(content), "word", "kind", "group")
    assert "t.csv" in str(caught.value)


def test_files_that_are_no_tables_are_refused(file, tmp_path):
    with pytest.raises(TaskTableError, match=r"ends in .csv or .parquet"):
        read_labelled_texts(file(GOOD, "t.txt"), "word", "kind")
    with pytest.raises(TaskTableError, match="It does not read"):
        read_labelled_texts(file("no parquet", "t.parquet"), "word", "kind")
    for missing in (str(tmp_path / "none.csv"), "no_such_table", "../city_country"):
        with pytest.raises(TaskTableError, match="The bundled ones are city_country, part_of_speech"):
            find_table(missing)
    pd.DataFrame({"word": ["cat"]}).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(TaskTableError, match=r"columns of .*t.parquet: word"):
        read_labelled_texts(tmp_path / "t.parquet", "word", "kind")


def test_a_column_cannot_be_two_things(file):
    with pytest.raises(TaskTableError, match="Name each column once"):
        read_labelled_texts(file(GOOD), "word", "kind", "kind")


def test_a_task_has_the_table_s_labels_whatever_the_order_of_rows(letters_table, sentencepiece, tmp_path):
    frame = pd.read_csv(letters_table, keep_default_na=False)
    task = table_task(sentencepiece, TableSettings(str(letters_table)), "{word} is", reads_answers=False)
    labels = {word.strip(): task.classes[label] for word, label in zip(task.words, task.labels, strict=True)}
    assert labels == dict(zip(frame["text"], frame["label"], strict=True))
    assert task.classes == tuple(sorted(set(frame["label"])))
    assert task.children == ()
    assert [task.answer_formatter(word) for word in task.words] == [f" {labels[word.strip()]}" for word in task.words]
    assert sorted(task.words) != list(task.words)
    frame.sample(frac=1, random_state=1)[["parent", "label", "text"]].to_csv(tmp_path / "u.csv", index=False)
    again = table_task(sentencepiece, TableSettings(str(tmp_path / "u.csv")), "{word} is", reads_answers=False)
    assert (again.words, again.labels) == (task.words, task.labels)


def test_a_hierarchy_asks_for_parents_and_carries_children(letters_table, sentencepiece):
    frame = pd.read_csv(letters_table, keep_default_na=False).set_index("text")
    settings = TableSettings(str(letters_table), parent="parent")
    task = table_task(sentencepiece, settings, "{word} is")
    assert task.classes == ("A", "B")
    for word, label, child in zip(task.words, task.labels, task.children, strict=True):
        row = frame.loc[word.strip()]
        assert (task.classes[label], child) == (row["parent"], row["label"])
        assert task.answer_formatter(word) == f" {row['parent']}"
    tokens = answer_token_ids(task, sentencepiece).answers.tolist()
    assert sentencepiece.convert_ids_to_tokens(tokens) == ["▁A", "▁B"]


def test_the_first_texts_of_the_seeded_order_are_kept(letters_table, sentencepiece):
    settings = TableSettings(str(letters_table), parent="parent", min_examples_per_label=1)
    every = table_task(sentencepiece, settings, "{word} is", seed=5)
    assert table_task(sentencepiece, settings, "{word} is", seed=5, max_words=7).words == every.words[:7]
    assert table_task(sentencepiece, settings, "{word} is", seed=6).words != every.words


@pytest.mark.parametrize(("template", "word"), [("{word} is", " a"), ("Of {word}:", "a"), ('"{word}" is', "a")])
def test_only_a_template_that_begins_with_the_word_gives_it_a_space(letters_table, sentencepiece, template, word):
    settings = TableSettings(str(letters_table), parent="parent")
    task = table_task(sentencepiece, settings, template, max_icl_examples=0)
    assert word in task.words
    prompt = task.prompts([word], seed=0)[0]
    assert prompt.base == template.replace("{word}", word)
    assert prompt.base[: prompt.word_end].endswith(word)


def test_wordpiece_texts_stand_bare(letters_table, wordpiece):
    task = table_task(wordpiece, TableSettings(str(letters_table), parent="parent"), "{word} is")
    assert set(task.words) == set(LETTERS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answers": {"A": " A"}}, r"column parent, line 15` was 'B', expected a label with an answer: A. Add it"),
        ({"answers": {"A": " A", "B": " B", "C": " C"}}, r"`table.answers` was {'C': ' C'}.*column parent: A, B"),
        ({"answers": {"A": " ", "B": " B"}}, r"`table.answers` was {'A': ' '}"),
        ({"answers": {"A": " cat", "B": " cat"}}, r"line 2` was 'A', .*' cat', ' cat' do not"),
        ({"answers": {"A": " cats", "B": " cat"}}, r"column parent, line 2` was 'A', .*differ in their first token"),
        ({"min_examples_per_label": 14}, r"column parent` was {'A': 13, 'B': 13}, expected 14 texts or more"),
        ({"parent": None, "min_examples_per_label": 7}, r"column label` was {'NA 0': 6, 'null 1': 6}, expected 7"),
    ],
)
def test_answers_and_labels_that_do_not_fit_are_refused(letters_table, sentencepiece, changes, message):
    settings = TableSettings(**{"path": str(letters_table), "parent": "parent"} | changes)
    with pytest.raises(TaskTableError, match=message) as caught:
        table_task(sentencepiece, settings, "{word} is")
    assert "t.csv" in str(caught.value)


def test_answers_may_share_a_token_where_none_is_read(letters_table, sentencepiece):
    settings = TableSettings(str(letters_table), parent="parent", answers={"A": " cats", "B": " cat"})
    task = table_task(sentencepiece, settings, "{word} is", reads_answers=False)
    assert Counter(map(task.answer_formatter, task.words)) == {" cats": 13, " cat": 13}


def test_a_text_that_the_tokenizer_does_not_know_is_refused(file, wordpiece):
    path = file("text,label\n" + "".join(f"{word},x\n" for word in ("cat", "猫", "kit", "犬")))
    with pytest.raises(TaskTableError, match=r"t.csv, column text, line [35]` was '[猫犬]'.*Leave out the 2 rows"):
        table_task(wordpiece, TableSettings(str(path), min_examples_per_label=1), "{word} is")


def test_texts_are_known_as_they_stand_in_the_prompt(file):
    backend = Tokenizer(models.WordLevel({t: i for i, t in enumerate(["▁cat", "▁dog", "?"])}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("\n", "removed"), pre_tokenizers.Metaspace(prepend_scheme="never")]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="?")
    settings = TableSettings(str(file("text,label\ncat,x\ndog,y\n")), min_examples_per_label=1)
    for template in ("{word} is", "A {word} is"):
        task = table_task(tokenizer, settings, template, reads_answers=False)
        assert {word.strip() for word in task.words} == {"cat", "dog"}
    with pytest.raises(TaskTableError, match="at least by their parts"):
        table_task(tokenizer, settings, "({word}) is", reads_answers=False)


def test_limits_below_one_and_templates_without_the_word_are_refused(letters_table, sentencepiece):
    settings = TableSettings(str(letters_table), parent="parent")
    with pytest.raises(AbsorbError, match="min_examples_per_label"):
        TableSettings(str(letters_table), min_examples_per_label=0)
    with pytest.raises(AbsorbError, match="max_words"):
        table_task(sentencepiece, settings, "{word} is", max_words=0)
    with pytest.raises(PromptError, match="placeholder"):
        table_task(sentencepiece, settings, "a city in")
