"""Tasks about the letters of words: which stands first, last or n-th, and whether some letters occur."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from absorb_pl.errors import LabelError, PromptError
from absorb_pl.ranges import Count, CountOrZero, NotNegative, Place, check_ranges
from absorb_pl.words.formatters import Formatter, letter_from_end_formatter, letter_from_start_formatter
from absorb_pl.words.prompting import VERBOSE_FIRST_LETTER_TEMPLATE
from absorb_pl.words.tasks import Task
from absorb_pl.words.vocab import LETTERS, most_common
from absorb_pl.words.word_lists import Vocabulary, vocabulary_words

YES_NO = ("yes", "no")
"""Classes of the task that asks whether some letters occur."""


def first_letter_task(
    tokenizer: PreTrainedTokenizerBase,
    *,
    vocabulary: Vocabulary = "alpha",
    max_words: Count | None = None,
    only_start_of_word: bool = False,
    threshold: NotNegative = 10,
    template: str = VERBOSE_FIRST_LETTER_TEMPLATE,
    example_separator: str = "\n",
    max_icl_examples: CountOrZero = 10,
) -> Task:
    """Make the task of arXiv 2409.14507: which letter does a word that is one token begin with?

    Args:
        tokenizer: The model's tokenizer.
        vocabulary: As in `vocabulary_words`.
        max_words: Keep no more words than this, the most frequent in English; None for all.
        only_start_of_word: Whether to leave out words without a leading space, where the vocabulary marks
            spaces. The paper keeps them.
        threshold: For `common` and `words`, least number of occurrences in a million words.
        template: Text before the answer.
        example_separator: What stands between two ICL examples.
        max_icl_examples: Number of ICL examples of a prompt.

    Returns:
        The task with classes `"a"` to `"z"` and answers `" A"` to `" Z"`, words in the order of their token
        ids.

    Raises:
        VocabularyError: If the tokenizer knows no such words, or `vocabulary` is another word.

    Example:
        >>> from tokenizers import Tokenizer, models
        >>> from transformers import PreTrainedTokenizerFast
        >>> backend = Tokenizer(models.WordLevel({"▁cat": 0, "▁Dog": 1, "▁7": 2}))
        >>> task = first_letter_task(PreTrainedTokenizerFast(tokenizer_object=backend))
        >>> task.words, task.labels
        ((' cat', ' Dog'), (2, 3))
    """
    check_ranges(first_letter_task, locals())
    return letter_task_of_words(
        vocabulary_words(tokenizer, vocabulary, only_start_of_word=only_start_of_word, threshold=threshold),
        max_words=max_words,
        template=template,
        example_separator=example_separator,
        max_icl_examples=max_icl_examples,
    )


def letter_task_of_words(
    words: Sequence[str],
    *,
    place: Place = 1,
    max_words: Count | None = None,
    template: str | None = None,
    example_separator: str = "\n",
    max_icl_examples: CountOrZero = 10,
) -> Task:
    """Make the task that asks for one letter of each word of a given list.

    A word's label is the letter at `place` among its alphabetic characters; words that are too short, or in
    which that letter is none of a to z, are left out.

    Args:
        words: The words as they stand in a prompt.
        place: Which letter: 1 is the first, 2 the second; −1 is the last, −2 the one before it.
        max_words: Keep no more words than this, the most frequent in English; None for all.
        template: Text before the answer; None for `letter_template(place)`.
        example_separator: What stands between two ICL examples.
        max_icl_examples: Number of ICL examples of a prompt.

    Returns:
        The task `first_letter`, `last_letter` or `nth_letter`, words in the order given, with classes `"a"` to
        `"z"` and answers `" A"` to `" Z"`.

    Raises:
        VocabularyError: If no word has a label.
        RangeError: If `place` is 0.

    Example:
        >>> letter_task_of_words([" 2nd", " élan", " cat"]).words
        (' 2nd', ' cat')
        >>> task = letter_task_of_words([" do", " cats"], place=-3)
        >>> task.words, task.classes[task.labels[0]], task.answer_formatter(" cats")
        ((' cats',), 'a', ' A')
    """
    check_ranges(letter_task_of_words, locals())
    template = letter_template(place) if template is None else template
    without = set(words_without_letter(words, place))
    labelled = _most_common([word for word in dict.fromkeys(words) if word not in without], max_words)
    return Task(
        name={1: "first_letter", -1: "last_letter"}.get(place, "nth_letter"),
        words=tuple(labelled),
        labels=tuple(LETTERS.index(_letter(word, place)) for word in labelled),
        classes=tuple(LETTERS),
        answers=tuple(f" {letter.upper()}" for letter in LETTERS),
        template=template,
        answer_formatter=_letter_formatter(place),
        example_separator=example_separator,
        max_icl_examples=max_icl_examples,
    )


def words_without_letter(words: Sequence[str], place: int) -> list[str]:
    """The words that `letter_task_of_words` leaves out: too short, or with a letter there that is none of a to z.

    Args:
        words: The words.
        place: As in `letter_task_of_words`.

    Example:
        >>> words_without_letter([" élan", " cat", " кот"], 1)
        [' élan', ' кот']
    """
    return [word for word in words if _letter(word, place) not in LETTERS]


def letter_template(place: Place) -> str:
    """Give the text that asks for one letter of a word.

    Args:
        place: As in `letter_task_of_words`.

    Raises:
        RangeError: If `place` is 0.

    Example:
        >>> letter_template(1), letter_template(-1), letter_template(2), letter_template(-3)
        ('{word} has the first letter:', '{word} has the last letter:',
         '{word} has the letter number 2:', '{word} has the letter number 3 from the end:')
    """
    check_ranges(letter_template, locals())
    named = {1: VERBOSE_FIRST_LETTER_TEMPLATE, -1: "{word} has the last letter:"}
    counted = f"{{word}} has the letter number {abs(place)}{' from the end' if place < 0 else ''}:"
    return named.get(place, counted)


def contains_task_of_words(
    words: Sequence[str],
    letters: str,
    *,
    max_words: Count | None = None,
    template: str | None = None,
    example_separator: str = "\n",
    max_icl_examples: CountOrZero = 10,
) -> Task:
    """Make the task that asks whether some letters stand, side by side, anywhere in a word.

    Every word has one label, `yes` or `no`, so one task asks for one run of letters; ask for several by several
    tasks. Case does not count.

    Args:
        words: The words as they stand in a prompt.
        letters: One letter or several in a row (`"e"`, `"ing"`).
        max_words: Keep no more words than this, the most frequent in English; None for all.
        template: Text before the answer; None for `'{word} contains "ing":'` with the letters asked for.
        example_separator: What stands between two ICL examples.
        max_icl_examples: Number of ICL examples of a prompt.

    Returns:
        The task `contains` with the classes and answers of `YES_NO`, words in the order given.

    Raises:
        PromptError: If there are no letters, or white space or braces among them.
        LabelError: If all words have the same label.
        VocabularyError: If there are no words.

    Example:
        >>> task = contains_task_of_words([" cat", " dog"], "a")
        >>> task.labels, task.classes, task.template, task.answer_formatter(" dog")
        ((0, 1), ('yes', 'no'), '{word} contains "a":', ' no')
    """
    check_ranges(contains_task_of_words, locals())
    if not letters or any(character.isspace() or character in "{}" for character in letters):
        raise PromptError(
            "contains", letters, expected="one letter or several in a row", remedy="Say for example contains: ing."
        )
    kept = _most_common(list(dict.fromkeys(words)), max_words)
    wanted = letters.lower()
    labels = tuple(int(wanted not in word.lower()) for word in kept)
    if kept and len(set(labels)) < 2:
        raise LabelError(
            "contains",
            letters,
            expected=f"letters that some of the {len(kept)} words have and others lack",
            remedy="Ask for other letters, or take more words.",
        )
    return Task(
        name="contains",
        words=tuple(kept),
        labels=labels,
        classes=YES_NO,
        answers=tuple(f" {name}" for name in YES_NO),
        template=f'{{word}} contains "{letters}":' if template is None else template,
        answer_formatter=lambda word: f" {YES_NO[wanted not in word.lower()]}",
        example_separator=example_separator,
        max_icl_examples=max_icl_examples,
    )


def _most_common(words: list[str], max_words: int | None) -> list[str]:
    if max_words is None:
        return words
    return most_common(words, max_words)


def _letter(word: str, place: int) -> str:
    """The letter at a place in lower case; a hyphen, which is no letter, where the word has none there."""
    letters = [character for character in word if character.isalpha()]
    return letters[place - (place > 0)].lower() if abs(place) <= len(letters) else "-"


def _letter_formatter(place: int) -> Formatter:
    if place > 0:
        return letter_from_start_formatter(place - 1, capitalize=True)
    return letter_from_end_formatter(-place, capitalize=True)
