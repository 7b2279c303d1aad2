"""The tokens of a task's answers, whose logits the letter metric compares."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from absorb_pl.errors import LabelError, PromptError
from absorb_pl.words.prompting import create_icl_prompt
from absorb_pl.words.tasks import Task

PositiveToken = Literal["answer", "published"]
"""Token of the right answer: `answer` is `" X"`, `published` the bare lower-case letter."""


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


def answer_token_ids(
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    positive_token: PositiveToken = "answer",
) -> AnswerTokens:
    """Find the tokens whose logits the letter metric compares.

    An answer's token is the first that follows the task's template when the answer is written after it.

    Args:
        task: The task.
        tokenizer: The model's tokenizer.
        positive_token: `answer` takes a class's answer (`" X"`) as its positive token, as arXiv 2409.14507
            says; `published` takes the last token of the class's bare name (`"x"`), as `sae_spelling`'s
            `FeatureAbsorptionCalculator` does.

    Returns:
        One answer and one positive token per class.

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
    answers = _tokens_after_template(task, tokenizer)
    _check_distinct(task.answers, answers, tokenizer)
    positives = answers
    if positive_token == "published":
        encoded = tokenizer(list(task.classes), add_special_tokens=False)["input_ids"]
        positives = [ids[-1] for ids in encoded]
        _check_distinct(task.classes, positives, tokenizer)
    return AnswerTokens(torch.tensor(answers), torch.tensor(positives))


def _tokens_after_template(task: Task, tokenizer: PreTrainedTokenizerBase) -> list[int]:
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
