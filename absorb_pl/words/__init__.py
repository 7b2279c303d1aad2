"""Words, the prompts that ask a language model about them, and the tasks made of both."""

from absorb_pl.words.answers import AnswerTokens, answer_token_ids
from absorb_pl.words.formatters import (
    Formatter,
    first_letter,
    first_letter_formatter,
    is_present,
    is_present_formatter,
    last_letter,
    last_letter_formatter,
    letter_from_end,
    letter_from_end_formatter,
    letter_from_start,
    letter_from_start_formatter,
    spelling,
    spelling_formatter,
)
from absorb_pl.words.grading import SpellingGrade, SpellingGrader
from absorb_pl.words.letter_tasks import (
    FIRST_LETTER_TEMPLATE,
    YES_NO,
    contains_task_of_words,
    first_letter_task,
    letter_task_of_words,
    letter_template,
)
from absorb_pl.words.positions import (
    TokenizedPrompts,
    bos_token_id,
    closes_with_sep,
    prepends_bos,
    tokenize_prompts,
)
from absorb_pl.words.prompting import SpellingPrompt, create_icl_prompt, random_icl_prompt
from absorb_pl.words.table_tasks import TableSettings, table_task
from absorb_pl.words.tables import LabelledTexts, find_table, read_labelled_texts
from absorb_pl.words.task_config import TaskConfig, TaskName
from absorb_pl.words.tasks import Task
from absorb_pl.words.vocab import (
    LETTERS,
    get_alpha_tokens,
    get_common_word_tokens,
    get_common_words,
    get_same_ending_word_pairs_of_len,
    get_tokens,
    group_words_by_ending_and_length,
    marks_leading_spaces,
    most_common,
)
from absorb_pl.words.word_lists import Vocabulary, as_in_prompts, listed_words, token_counts, vocabulary_words

__all__ = [
    "FIRST_LETTER_TEMPLATE",
    "LETTERS",
    "YES_NO",
    "AnswerTokens",
    "Formatter",
    "LabelledTexts",
    "SpellingGrade",
    "SpellingGrader",
    "SpellingPrompt",
    "TableSettings",
    "Task",
    "TaskConfig",
    "TaskName",
    "TokenizedPrompts",
    "Vocabulary",
    "answer_token_ids",
    "as_in_prompts",
    "bos_token_id",
    "closes_with_sep",
    "contains_task_of_words",
    "create_icl_prompt",
    "find_table",
    "first_letter",
    "first_letter_formatter",
    "first_letter_task",
    "get_alpha_tokens",
    "get_common_word_tokens",
    "get_common_words",
    "get_same_ending_word_pairs_of_len",
    "get_tokens",
    "group_words_by_ending_and_length",
    "is_present",
    "is_present_formatter",
    "last_letter",
    "last_letter_formatter",
    "letter_from_end",
    "letter_from_end_formatter",
    "letter_from_start",
    "letter_from_start_formatter",
    "letter_task_of_words",
    "letter_template",
    "listed_words",
    "marks_leading_spaces",
    "most_common",
    "prepends_bos",
    "random_icl_prompt",
    "read_labelled_texts",
    "spelling",
    "spelling_formatter",
    "table_task",
    "token_counts",
    "tokenize_prompts",
    "vocabulary_words",
]
