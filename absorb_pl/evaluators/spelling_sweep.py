"""The spelling sweep: how well a model spells, by word length, in-context examples and way of writing."""

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import pandas as pd
from lightning.pytorch import LightningDataModule, LightningModule
from torch.utils.data import DataLoader
from typing_extensions import override

from absorb_pl.data.shares import Share
from absorb_pl.errors import PromptError
from absorb_pl.evaluators.grading import SpellingGrader
from absorb_pl.models.language_model import resolve_model
from absorb_pl.models.next_token import require_next_token_logits
from absorb_pl.ranges import Count, CountOrZero, Seed, check_ranges
from absorb_pl.schema import SPELLING, dtypes, empty_table
from absorb_pl.words.formatters import Formatter, first_letter_formatter, last_letter_formatter, spelling_formatter
from absorb_pl.words.letter_tasks import first_letter_task
from absorb_pl.words.prompting import VERBOSE_FIRST_LETTER_TEMPLATE

Casing = Literal["upper", "lower"]
Answer = Literal["spelling", "first_letter", "last_letter"]


@dataclass(frozen=True)
class SpellingSetting:
    r"""One way of asking.

    Attributes:
        setting: Its number in the sweep.
        word_length: Number of characters of the words asked about.
        num_icl_examples: In-context examples of a prompt.
        casing: Whether answers are written in upper or lower case.
        separator: What stands between two letters of a spelling.
    """

    setting: int
    word_length: int
    num_icl_examples: int
    casing: Casing
    separator: str


class SpellingSweepData(LightningDataModule):
    """Serves every combination of the values of a sweep, one a predict step, shared out over the devices.

    Args:
        word_lengths: Numbers of characters.
        num_icl_examples: Numbers of in-context examples.
        casings: Ways of writing the answer.
        separators: What stands between two letters of a spelling; leave a single one for one-letter answers.

    Attributes:
        settings: The combinations, numbered in order.

    Raises:
        PromptError: A list is empty or holds a value twice.

    Example:
        >>> data = SpellingSweepData([3, 4], [5], ["upper"], ["-", " "])
        >>> [(setting.word_length, setting.separator) for setting in data.settings]
        [(3, '-'), (3, ' '), (4, '-'), (4, ' ')]
    """

    def __init__(
        self,
        word_lengths: Sequence[Count] = (3, 4, 5, 6, 7, 8),
        num_icl_examples: Sequence[CountOrZero] = (1, 2, 5, 10),
        casings: Sequence[Casing] = ("upper", "lower"),
        separators: Sequence[str] = ("-",),
    ) -> None:
        check_ranges(SpellingSweepData.__init__, locals())
        super().__init__()
        axes: dict[str, Sequence[Any]] = {
            "word_lengths": word_lengths,
            "num_icl_examples": num_icl_examples,
            "casings": casings,
            "separators": separators,
        }
        for name, values in axes.items():
            if not values or len(set(values)) < len(values):
                raise PromptError(name, list(values), expected="one or more values, each once", remedy="List them.")
        self.settings = [
            SpellingSetting(number, *values) for number, values in enumerate(itertools.product(*axes.values()))
        ]

    @override
    def predict_dataloader(self) -> DataLoader[dict[str, Any]]:
        return Share([asdict(setting) for setting in self.settings], nothing={}, trainer=self.trainer).loader()


class SpellingSweep(LightningModule):
    """Grades a seeded sample of words in each setting of a `SpellingSweepData` and predicts one row per setting.

    All settings of a word length are about the same words, and a word's in-context examples are those of its shorter
    prompts and more, so that differences between settings are not those of the draw. Examples are of all lengths.

    Args:
        model: A `TransformerBridge`, or a name for `load_language_model`.
        answer: What is asked for: all letters, the first or the last.
        template: Text before the answer, with the placeholder `{word}`.
        vocabulary: `alpha` takes all tokens made of letters, `common` common words only.
        max_words: Keep no more words than this, the most frequent in English; None for all.
        num_words: Most words graded a setting; more are sampled.
        batch_size: Prompts in one run of the model.
        seed: Seed of the sample and of the in-context draws.
        model_dtype: Dtype of a model loaded by name.

    Raises:
        NotCausalError: The model gives no next-token logits.

    Example:
        >>> sweep_of_a_model = lambda: SpellingSweep("speller", answer="first_letter", num_words=50)
    """

    def __init__(
        self,
        model: Any = "speller",
        answer: Answer = "first_letter",
        template: str = VERBOSE_FIRST_LETTER_TEMPLATE,
        vocabulary: Literal["alpha", "common"] = "alpha",
        max_words: Count | None = None,
        num_words: Count = 100,
        batch_size: Count = 32,
        seed: Seed = 42,
        model_dtype: str = "float32",
    ) -> None:
        check_ranges(SpellingSweep.__init__, locals())
        super().__init__()
        self.language_model = resolve_model(model, dtype=model_dtype)
        require_next_token_logits(self.language_model, type(self).__name__)
        self.answer: Answer = answer
        self.template, self.num_words, self.batch_size, self.seed = template, num_words, batch_size, seed
        tokenizer = self.language_model.tokenizer
        self.vocabulary = first_letter_task(
            tokenizer, vocabulary=vocabulary, max_words=max_words, only_start_of_word=True
        ).words

    def words_of_length(self, length: int) -> list[str]:
        """The words graded, in the vocabulary's order.

        Args:
            length: Number of characters, white space around the word not counted.
        """
        words = [word for word in self.vocabulary if len(word.strip()) == length]
        if len(words) <= self.num_words:
            return words
        chosen = random.Random(f"{self.seed}:{length}").sample(range(len(words)), self.num_words)
        return [words[number] for number in sorted(chosen)]

    def grader(self, setting: SpellingSetting) -> SpellingGrader:
        """The grader of a setting."""
        return SpellingGrader(
            self.language_model,
            self.vocabulary,
            max_icl_examples=setting.num_icl_examples,
            base_template=self.template,
            answer_formatter=_formatter(self.answer, setting),
            seed=self.seed,
        )

    @override
    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> pd.DataFrame:
        return self.grade(SpellingSetting(**batch)) if batch else empty_table(SPELLING)

    def grade(self, setting: SpellingSetting) -> pd.DataFrame:
        """Grade the words of a setting.

        Args:
            setting: The setting.

        Returns:
            One row with the columns of `absorb_pl.schema.SPELLING`. Accuracy and log-probability (of all tokens of the
            right answer) are missing if the vocabulary has no word of the length.

        Raises:
            PromptError: The vocabulary holds too few words for the examples.
            ContextLengthError: A prompt is longer than the model's context.
        """
        words = self.words_of_length(setting.word_length)
        grades = self.grader(setting).grade_words(words, batch_size=self.batch_size, show_progress=False)
        row = {
            **asdict(setting),
            "accuracy": pd.Series([grade.is_correct for grade in grades], dtype=float).mean(),
            "answer_log_prob": pd.Series([grade.answer_log_prob for grade in grades], dtype=float).mean(),
            "num_words": len(grades),
        }
        return pd.DataFrame([row]).astype(dtypes(SPELLING))


def _formatter(answer: Answer, setting: SpellingSetting) -> Formatter:
    capitalize = setting.casing == "upper"
    makers: dict[Answer, Callable[[], Formatter]] = {
        "spelling": lambda: spelling_formatter(separator=setting.separator, capitalize=capitalize),
        "first_letter": lambda: first_letter_formatter(capitalize=capitalize),
        "last_letter": lambda: last_letter_formatter(capitalize=capitalize),
    }
    return makers[answer]()
