"""Tasks made of a table of labelled texts: any labels, one answer per label, and a hierarchy if there is one."""

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from absorb_pl.errors import LabelError, TaskTableError
from absorb_pl.ranges import Count, CountOrZero, Seed, check_ranges
from absorb_pl.words.answers import answer_token_ids
from absorb_pl.words.tables import LabelledTexts, read_labelled_texts
from absorb_pl.words.tasks import Task
from absorb_pl.words.word_lists import as_in_prompts, unknown_words


@dataclass(frozen=True)
class TableSettings:
    """Which table of labelled texts a task is made of, and what is answered.

    Attributes:
        path: A CSV or Parquet file, or the name of a bundled table (`city_country`, `part_of_speech`).
        text: Column of the texts asked about.
        label: Column of their labels.
        parent: Column of coarser labels. With it the parents are the classes that are asked for and probed, and
            the labels below them go with the words as the task's `children`.
        answers: Answer of each class; None for a space and the class's name. Answers must differ in their first
            token wherever a model's next-token logits are read.
        min_examples_per_label: Least number of texts of each class. With 5 a fifth of each can be held out.
    """

    path: str
    text: str = "text"
    label: str = "label"
    parent: str | None = None
    answers: dict[str, str] | None = None
    min_examples_per_label: Count = 5

    def __post_init__(self) -> None:
        check_ranges(TableSettings, vars(self))


def table_task(
    tokenizer: PreTrainedTokenizerBase,
    settings: TableSettings,
    template: str,
    *,
    max_words: Count | None = None,
    seed: Seed = 42,
    max_icl_examples: CountOrZero = 10,
    reads_answers: bool = True,
) -> Task:
    """Make the task that asks for the label of each text of a table.

    Texts are sorted and then shuffled by the seed, so neither the order of the file's rows nor that of its columns
    changes the task. A text at the very start of the template gets a leading space where the vocabulary marks
    spaces; elsewhere the template says what stands before it.

    Args:
        tokenizer: The model's tokenizer.
        settings: The table, its columns and the answers.
        template: Text before the answer, with the placeholder `{word}`.
        max_words: Keep no more texts than this, the first of the shuffled ones; None for all.
        seed: Seed of the shuffle.
        max_icl_examples: Number of ICL examples of a prompt.
        reads_answers: Whether the answers' tokens will be read from a model's next-token logits, and so must differ.

    Returns:
        The task, named `table`, with classes in alphabetical order.

    Raises:
        TaskTableError: As `read_labelled_texts`; or a text is unknown to the tokenizer, a label has no answer or
            too few texts, an answer is for no label, or answers share their first token.
        PromptError: If the template has no placeholder, or the tokenizer merges its end with an answer.

    Example:
        >>> from tokenizers import Tokenizer, models
        >>> from transformers import PreTrainedTokenizerFast
        >>> backend = Tokenizer(models.WordLevel({"▁Lyon": 0, "▁": 1}, unk_token="▁"))
        >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
        >>> settings = TableSettings("city_country", "city", "country", parent="continent")
        >>> task = table_task(tokenizer, settings, "{word} lies in", reads_answers=False)
        >>> place = task.words.index(" Lyon")
        >>> task.classes[task.labels[place]], task.children[place], task.answer_formatter(" Lyon")
        ('Europe', 'France', ' Europe')
    """
    check_ranges(table_task, locals())
    table = read_labelled_texts(settings.path, settings.text, settings.label, settings.parent)
    order = sorted(range(len(table.texts)), key=lambda row: table.texts[row])
    random.Random(seed).shuffle(order)
    if max_words is not None:
        order = order[:max_words]
    column = settings.label if settings.parent is None else settings.parent
    names = table.parents or table.labels
    classes = tuple(sorted({names[row] for row in order}))
    answers = _answers(table, column, classes, settings.answers)
    _check_counts(table, column, Counter(names[row] for row in order), settings.min_examples_per_label)
    words = [table.texts[row] for row in order]
    if template.startswith("{word}"):
        words = as_in_prompts(tokenizer, words)
    _check_known(table, settings.text, tokenizer, _with_space_before(template, words))
    labels = [classes.index(names[row]) for row in order]
    answer_of = {word: answers[label] for word, label in zip(words, labels, strict=True)}
    task = Task(
        name="table",
        words=tuple(words),
        labels=tuple(labels),
        classes=classes,
        answers=tuple(answers),
        template=template,
        answer_formatter=answer_of.__getitem__,
        max_icl_examples=max_icl_examples,
        children=tuple(table.labels[row] for row in order) if table.parents else (),
    )
    if reads_answers:
        _check_answer_tokens(task, tokenizer, table, column)
    return task


def _answers(table: LabelledTexts, column: str, classes: tuple[str, ...], given: Mapping[str, str] | None) -> list[str]:
    if given is None:
        return [f" {name}" for name in classes]
    for name, answer in given.items():
        if name not in (table.parents or table.labels) or not answer.strip():
            raise TaskTableError(
                "table.answers",
                {name: answer},
                expected=f"an answer for a label of {table.path}, column {column}: {', '.join(classes)}",
                remedy="Mind the spelling; an answer is not empty.",
            )
    for name in classes:
        if name not in given:
            raise _refusal(table, column, name, f"a label with an answer: {', '.join(given)}", "Add it to `answers`.")
    return [given[name] for name in classes]


def _with_space_before(template: str, words: list[str]) -> list[str]:
    before = template.partition("{word}")[0][-1:]
    return [before + word for word in words] if before.isspace() else words


def _check_known(
    table: LabelledTexts, column: str, tokenizer: PreTrainedTokenizerBase, words_in_prompts: list[str]
) -> None:
    unknown = unknown_words(tokenizer, words_in_prompts)
    if unknown:
        text = unknown[0].strip()
        raise TaskTableError(
            f"{table.path}, column {column}, {table.places[table.texts.index(text)]}",
            text,
            expected="texts that the tokenizer knows, at least by their parts",
            remedy=f"Leave out the {len(unknown)} rows of which the model would see an unknown token.",
        )


def _check_counts(table: LabelledTexts, column: str, counts: Counter[str], least: int) -> None:
    short = {name: count for name, count in sorted(counts.items()) if count < least}
    if short:
        raise TaskTableError(
            f"{table.path}, column {column}",
            short,
            expected=f"{least} texts or more of each label (`table.min_examples_per_label`)",
            remedy="Give more texts of these labels, drop their rows, or ask for fewer. `max_words` leaves texts out.",
        )


def _check_answer_tokens(task: Task, tokenizer: PreTrainedTokenizerBase, table: LabelledTexts, column: str) -> None:
    try:
        answer_token_ids(task, tokenizer)
    except LabelError as error:
        shared: Any = error.value
        name = task.classes[task.answers.index(shared[0])]
        raise _refusal(
            table,
            column,
            name,
            f"answers that differ in their first token; {', '.join(map(repr, shared))} do not, or are unknown",
            "Give other `table.answers`, such as single words that the tokenizer knows.",
        ) from error


def _refusal(table: LabelledTexts, column: str, name: str, expected: str, remedy: str) -> TaskTableError:
    place = table.places[(table.parents or table.labels).index(name)]
    return TaskTableError(f"{table.path}, column {column}, {place}", name, expected=expected, remedy=remedy)
