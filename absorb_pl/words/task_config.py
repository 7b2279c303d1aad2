"""The plain settings of a task, as they stand in a configuration file."""

from dataclasses import dataclass
from typing import Literal

from lightning.pytorch.utilities import rank_zero_warn
from transformers import PreTrainedTokenizerBase

from absorb_pl.errors import AbsorbError, PromptError
from absorb_pl.ranges import Count, CountOrZero, Place, Seed, check_ranges
from absorb_pl.words.letter_tasks import contains_task_of_words, letter_task_of_words, words_without_letter
from absorb_pl.words.prompting import SpellingPrompt
from absorb_pl.words.table_tasks import TableSettings, table_task
from absorb_pl.words.tasks import Task
from absorb_pl.words.word_lists import Vocabulary, listed_words, vocabulary_words

TaskName = Literal["first_letter", "last_letter", "nth_letter", "contains", "table"]

_OWN_SETTING = {"letter": "nth_letter", "contains": "contains", "table": "table"}
_ABOUT_WORD_LISTS = ("words", "max_tokens_per_word")
_SHOWN = 5


@dataclass(frozen=True)
class TaskConfig:
    """What to ask about which words.

    Attributes:
        name: What is asked for: a letter, whether some letters occur, or the label of a table's texts.
        vocabulary: `alpha` takes all tokens made of letters (the paper's choice), `common` the tokens that are
            common words, `words` all common English words, also those of several tokens, read at their last.
        words: Take these words instead of a vocabulary's; not for tables.
        max_tokens_per_word: Most tokens of a word: longer ones of a vocabulary are left out, longer ones among
            `words` refused. None for no limit.
        max_words: Keep no more words than this, the most frequent in English (of a table, a seeded draw); None for
            all.
        only_start_of_word: Whether to leave out tokens without a leading space.
        letter: For `nth_letter`: 1 is the first, 2 the second; -1 the last, -2 the one before it.
        contains: For `contains`: the letters looked for, such as `e` or `ing`. The classes are yes and no.
        table: For `table`: which file, columns and answers.
        template: Text before the answer, with the placeholder `{word}`; None for the task's own. Tables have none.
        max_icl_examples: In-context examples of a prompt.
        shared_context: Whether all words have the same in-context examples.
        seed: Seed of the in-context draws, and of the order of a table's texts.

    Raises:
        AbsorbError: A setting of another task is given, or one that the task needs is not.

    Example:
        >>> TaskConfig(name="contains")
        Traceback (most recent call last):
            ...
        absorb_pl.errors.AbsorbError: `task.contains` was None, expected a value for the task 'contains'. ...
    """

    name: TaskName = "first_letter"
    vocabulary: Vocabulary = "alpha"
    words: list[str] | None = None
    max_tokens_per_word: Count | None = None
    max_words: Count | None = None
    only_start_of_word: bool = True
    letter: Place | None = None
    contains: str | None = None
    table: TableSettings | None = None
    template: str | None = None
    max_icl_examples: CountOrZero = 10
    shared_context: bool = False
    seed: Seed = 42

    def __post_init__(self) -> None:
        """Check that the settings are in their ranges and belong together."""
        check_ranges(TaskConfig, vars(self))
        for setting, owner in _OWN_SETTING.items():
            value = getattr(self, setting)
            if (value is None) == (self.name == owner):
                needed = "a value" if value is None else "None"
                raise AbsorbError(
                    f"task.{setting}",
                    value,
                    expected=f"{needed} for the task {self.name!r}",
                    remedy=f"It says what `name: {owner}` asks for.",
                )
        for setting in _ABOUT_WORD_LISTS if self.name == "table" else ():
            if getattr(self, setting) is not None:
                raise AbsorbError(
                    f"task.{setting}",
                    getattr(self, setting),
                    expected="None for the task 'table'",
                    remedy="Put the words into the table.",
                )
        if self.name == "table" and self.template is None:
            raise PromptError(
                "task.template",
                None,
                expected="a text with the placeholder {word}",
                remedy="Say how a prompt asks for the label, as in '{word} is a city in the country of'.",
            )

    def build(self, tokenizer: PreTrainedTokenizerBase, *, reads_answers: bool = True) -> Task:
        """Make the task for a tokenizer.

        Args:
            tokenizer: The model's tokenizer.
            reads_answers: Whether the model gives next-token logits, so that the answers of a table must differ in
                their first token.

        Raises:
            VocabularyError: The vocabulary holds no such words, or a listed word cannot be taken.
            LabelError: All words have the same label.
            TaskTableError: The table does not fit.
        """
        if self.table is not None and self.template is not None:
            return table_task(
                tokenizer,
                self.table,
                self.template,
                max_words=self.max_words,
                seed=self.seed,
                max_icl_examples=self.max_icl_examples,
                reads_answers=reads_answers,
            )
        words = self._words(tokenizer)
        if self.contains is not None:
            return contains_task_of_words(
                words,
                self.contains,
                max_words=self.max_words,
                template=self.template,
                max_icl_examples=self.max_icl_examples,
            )
        place = {"first_letter": 1, "last_letter": -1}.get(self.name, self.letter or 0)
        if self.words is not None and (without := words_without_letter(words, place)):
            shown = ", ".join(word.strip() for word in without[:_SHOWN]) + (", …" if len(without) > _SHOWN else "")
            rank_zero_warn(
                f"{len(without)} of {len(words)} listed words are left out, as the letter asked for is none of a to z "
                f"there: {shown}."
            )
        return letter_task_of_words(
            words,
            place=place,
            max_words=self.max_words,
            template=self.template,
            max_icl_examples=self.max_icl_examples,
        )

    def prompts(self, task: Task) -> list[SpellingPrompt]:
        """One prompt per word of the task, drawn as these settings say.

        Raises:
            PromptError: The task has fewer words than the in-context examples need.
        """
        return task.prompts(seed=self.seed, shared_context=self.shared_context)

    def _words(self, tokenizer: PreTrainedTokenizerBase) -> list[str]:
        if self.words is not None:
            return listed_words(tokenizer, self.words, max_tokens_per_word=self.max_tokens_per_word)
        return vocabulary_words(
            tokenizer,
            self.vocabulary,
            only_start_of_word=self.only_start_of_word,
            max_tokens_per_word=self.max_tokens_per_word,
        )
