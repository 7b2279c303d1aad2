"""A task: labelled words, the prompt that asks for the label, and the answer expected for each class."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from absorb_pl.errors import LabelError, PromptError, VocabularyError
from absorb_pl.words.formatters import Formatter, first_letter_formatter
from absorb_pl.words.prompting import SpellingPrompt, create_icl_prompt
from absorb_pl.words.vocab import (
    LETTERS,
    get_alpha_tokens,
    get_common_word_tokens,
    marks_leading_spaces,
    most_common,
)

FIRST_LETTER_TEMPLATE = "{word} has the first letter:"


@dataclass(frozen=True)
class Task:
    """Labelled words with the prompts that ask a model for their labels.

    Attributes:
        name: What the task is called in tables and folders.
        words: The words, each once, as they stand in a prompt (`" cat"`).
        labels: Index into `classes` of each word.
        classes: Names of the classes (`"a"` to `"z"`).
        answers: The answer that each class has (`" A"`).
        template: Text before the answer, with the placeholder `{word}`.
        answer_formatter: Gives the answer written behind a word among the ICL examples.
        example_separator: What stands between two ICL examples.
        max_icl_examples: Number of ICL examples of a prompt.

    Raises:
        LabelError: If words and labels, or classes and answers, differ in number, or a label names no class.
        VocabularyError: If there are no words or one stands twice.

    Example:
        >>> task = Task("parity", (" two", " ten", " one"), (0, 0, 1), ("even", "odd"), (" even", " odd"),
        ...             "{word} is", {" two": " even", " ten": " even", " one": " odd"}.__getitem__,
        ...             max_icl_examples=1)
        >>> task.prompts([" one"], seed=0)[0].answer
        ' odd'
    """

    name: str
    words: tuple[str, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]
    answers: tuple[str, ...]
    template: str
    answer_formatter: Formatter
    example_separator: str = "\n"
    max_icl_examples: int = 10

    def __post_init__(self) -> None:
        """Check that the fields fit together."""
        if not self.words:
            raise VocabularyError("words", (), expected="at least one word", remedy="Give a longer word list.")
        word, times = Counter(self.words).most_common(1)[0]
        if times > 1:
            raise VocabularyError(
                "words", word, expected="each word once", remedy=f"Drop {times - 1} of its {times} entries."
            )
        if len(self.labels) != len(self.words):
            raise LabelError(
                "labels",
                f"{len(self.labels)} labels",
                expected=f"one for each of the {len(self.words)} words",
                remedy="Label every word, or leave out words without a label.",
            )
        if len(self.answers) != len(self.classes):
            raise LabelError(
                "answers",
                self.answers,
                expected=f"one for each of the {len(self.classes)} classes",
                remedy="Give each class its answer.",
            )
        strays = sorted({label for label in self.labels if not 0 <= label < len(self.classes)})
        if strays:
            raise LabelError(
                "labels",
                strays[0],
                expected=f"0 to {len(self.classes) - 1}",
                remedy="Labels are indices into the classes.",
            )

    def prompts(
        self, words: Sequence[str] | None = None, *, seed: int, shared_context: bool = False
    ) -> list[SpellingPrompt]:
        """Build a prompt for each word, with ICL examples drawn from the task's words.

        Args:
            words: The words asked about, in order; None for all of the task's.
            seed: Settles every draw. A word's prompt depends on the seed and the task, not on the other
                words asked about.
            shared_context: Whether one draw of ICL examples serves all words. A word that is itself among
                those examples gets the next word of the same draw in its own place.

        Returns:
            One prompt a word, in the order of `words`.

        Raises:
            PromptError: If the task has too few words for the ICL examples.
        """
        examples = list(self.words)
        if shared_context:
            random.Random(seed).shuffle(examples)
        return [
            create_icl_prompt(
                word,
                examples,
                base_template=self.template,
                example_separator=self.example_separator,
                answer_formatter=self.answer_formatter,
                max_icl_examples=self.max_icl_examples,
                shuffle_examples=not shared_context,
                seed=seed,
            )
            for word in (self.words if words is None else words)
        ]


@dataclass(frozen=True)
class AnswerTokens:
    """Token ids that the letter metric of a task reads.

    For a word of class c the metric is logit(`positives[c]`) minus the mean of logit(`answers[d]`) over d ≠
    c.

    Attributes:
        answers: Id of each class's answer.
        positives: Id of each class's positive token.
    """

    answers: Int[Tensor, " classes"]
    positives: Int[Tensor, " classes"]


def first_letter_task(
    tokenizer: PreTrainedTokenizerBase,
    *,
    vocabulary: Literal["alpha", "common"] = "alpha",
    max_words: int | None = None,
    only_start_of_word: bool = False,
    threshold: float | int = 10,
    template: str = FIRST_LETTER_TEMPLATE,
    example_separator: str = "\n",
    max_icl_examples: int = 10,
) -> Task:
    """Make the task of arXiv 2409.14507: which letter does a word that is one token begin with?

    Args:
        tokenizer: The model's tokenizer.
        vocabulary: `alpha` takes all tokens made of letters (the paper's choice), `common` common words only.
        max_words: Keep no more words than this, the most frequent in English; None for all.
        only_start_of_word: Whether to leave out words without a leading space, where the vocabulary marks
            spaces. The paper keeps them.
        threshold: For `common`, least number of occurrences in a million words.
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
    if vocabulary not in ("alpha", "common"):
        raise VocabularyError("vocabulary", vocabulary, expected="'alpha' or 'common'", remedy="Name one of the two.")
    if vocabulary == "common":
        words = get_common_word_tokens(tokenizer, only_start_of_word=only_start_of_word, threshold=threshold)
    else:
        words = get_alpha_tokens(tokenizer)
        if only_start_of_word and marks_leading_spaces(tokenizer):
            words = [word for word in words if word.startswith(" ")]
    return letter_task_of_words(
        words,
        max_words=max_words,
        template=template,
        example_separator=example_separator,
        max_icl_examples=max_icl_examples,
    )


def letter_task_of_words(
    words: Sequence[str],
    *,
    max_words: int | None = None,
    template: str = FIRST_LETTER_TEMPLATE,
    example_separator: str = "\n",
    max_icl_examples: int = 10,
) -> Task:
    """Make the first-letter task of a given word list.

    A word's label is its first alphabetic character; words in which that is none of a to z are left out.
    Other arguments are those of `first_letter_task`.

    Args:
        words: The words as they stand in a prompt.
        max_words: Keep no more words than this, the most frequent in English; None for all.
        template: Text before the answer.
        example_separator: What stands between two ICL examples.
        max_icl_examples: Number of ICL examples of a prompt.

    Returns:
        The task, words in the order given.

    Raises:
        VocabularyError: If no word has a label or `max_words` is below 1.

    Example:
        >>> letter_task_of_words([" 2nd", " élan", " cat"]).words
        (' 2nd', ' cat')
    """
    if max_words is not None and max_words < 1:
        raise VocabularyError("max_words", max_words, expected="1 or more", remedy="Use None for all words.")
    labelled = [word for word in dict.fromkeys(words) if _first_letter(word) in LETTERS]
    if max_words is not None:
        labelled = most_common(labelled, max_words)
    return Task(
        name="first_letter",
        words=tuple(labelled),
        labels=tuple(LETTERS.index(_first_letter(word)) for word in labelled),
        classes=tuple(LETTERS),
        answers=tuple(f" {letter.upper()}" for letter in LETTERS),
        template=template,
        answer_formatter=first_letter_formatter(capitalize=True),
        example_separator=example_separator,
        max_icl_examples=max_icl_examples,
    )


def answer_token_ids(
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    positive_token: Literal["answer", "published"] = "answer",
) -> AnswerTokens:
    """Find the tokens whose logits the letter metric compares.

    An answer's token is the first that follows the task's template when the answer is written behind it.

    Args:
        task: The task.
        tokenizer: The model's tokenizer.
        positive_token: `answer` takes a class's answer (`" X"`) as its positive token, as arXiv 2409.14507
            says; `published` takes the last token of the class's bare name (`"x"`), as `sae_spelling`'s
            `FeatureAbsorptionCalculator` does.

    Returns:
        One answer and one positive token a class.

    Raises:
        LabelError: If two classes share a token, a class's token is the unknown token, or `positive_token` is
            another word.
        PromptError: If the tokenizer merges the template's end with an answer.

    Example:
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> from transformers import PreTrainedTokenizerFast
        >>> backend = Tokenizer(models.WordLevel({"cat": 0, ":": 1, "A": 2, "C": 3, "a": 4, "c": 5}))
        >>> backend.pre_tokenizer = pre_tokenizers.Whitespace()
        >>> task = Task("letter", ("cat",), (1,), ("a", "c"), (" A", " C"), "{word}:", str)
        >>> answer_token_ids(task, PreTrainedTokenizerFast(tokenizer_object=backend), "published")
        AnswerTokens(answers=tensor([2, 3]), positives=tensor([4, 5]))
    """
    if positive_token not in ("answer", "published"):
        raise LabelError(
            "positive_token", positive_token, expected="'answer' or 'published'", remedy="Name one of the two."
        )
    answers = _tokens_behind_template(task, tokenizer)
    _check_distinct(task.answers, answers, tokenizer)
    positives = answers
    if positive_token == "published":
        encoded = tokenizer(list(task.classes), add_special_tokens=False)["input_ids"]
        positives = [ids[-1] for ids in encoded]
        _check_distinct(task.classes, positives, tokenizer)
    return AnswerTokens(torch.tensor(answers), torch.tensor(positives))


def _first_letter(word: str) -> str:
    letters = (character for character in word if character.isalpha())
    return next(letters, "-").lower()


def _tokens_behind_template(task: Task, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    base = create_icl_prompt(
        task.words[0], [], base_template=task.template, answer_formatter=task.answer_formatter
    ).base
    encoded = tokenizer([base, *(base + answer for answer in task.answers)], add_special_tokens=False)["input_ids"]
    head = encoded[0]
    for answer, ids in zip(task.answers, encoded[1:], strict=True):
        if ids[: len(head)] != head or len(ids) == len(head):
            raise PromptError(
                "template",
                task.template,
                expected=f"a text whose tokens stay the same when {answer!r} follows",
                remedy="End the template differently, for example with a colon.",
            )
    return [ids[len(head)] for ids in encoded[1:]]


def _check_distinct(names: Sequence[str], tokens: list[int], tokenizer: PreTrainedTokenizerBase) -> None:
    times = Counter(tokens)
    shared = [
        name for name, token in zip(names, tokens, strict=True) if times[token] > 1 or token == tokenizer.unk_token_id
    ]
    if shared:
        raise LabelError(
            "answers",
            shared,
            expected="answers that differ in their first token",
            remedy="Choose other answers, or a tokenizer that knows these.",
        )
