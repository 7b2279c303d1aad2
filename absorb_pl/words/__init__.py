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
from absorb_pl.words.letter_tasks import first_letter_task
from absorb_pl.words.positions import TokenizedPrompts, tokenize_prompts
from absorb_pl.words.prompting import (
    VERBOSE_FIRST_LETTER_TEMPLATE,
    VERBOSE_FIRST_LETTER_TOKEN_POS,
    SpellingPrompt,
    create_icl_prompt,
    random_icl_prompt,
)
from absorb_pl.words.table_tasks import TableSettings
from absorb_pl.words.task_config import TaskConfig
from absorb_pl.words.tasks import Task
from absorb_pl.words.vocab import (
    ALL_ALPHA_LETTERS,
    LETTERS,
    LETTERS_UPPER,
    get_alpha_tokens,
    get_common_word_tokens,
    get_common_words,
    get_same_ending_word_pairs_of_len,
    get_tokens,
    group_words_by_ending_and_length,
)

__all__ = [
    "ALL_ALPHA_LETTERS",
    "LETTERS",
    "LETTERS_UPPER",
    "VERBOSE_FIRST_LETTER_TEMPLATE",
    "VERBOSE_FIRST_LETTER_TOKEN_POS",
    "AnswerTokens",
    "Formatter",
    "SpellingPrompt",
    "TableSettings",
    "Task",
    "TaskConfig",
    "TokenizedPrompts",
    "answer_token_ids",
    "create_icl_prompt",
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
    "random_icl_prompt",
    "spelling",
    "spelling_formatter",
    "tokenize_prompts",
]
