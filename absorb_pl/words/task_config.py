"""The plain settings of a task, as they stand in a configuration file."""

from dataclasses import dataclass
from typing import Literal

from transformers import PreTrainedTokenizerBase

from absorb_pl.words.prompting import SpellingPrompt
from absorb_pl.words.tasks import FIRST_LETTER_TEMPLATE, Task, first_letter_task


@dataclass(frozen=True)
class TaskConfig:
    """What to ask about which words.

    Attributes:
        vocabulary: `alpha` takes all tokens made of letters (the paper's choice), `common` common words only.
        max_words: Keep no more words than this, the most frequent in English; None for all.
        only_start_of_word: Whether to leave out words without a leading space.
        template: Text before the answer, with the placeholder `{word}`.
        max_icl_examples: In-context examples of a prompt.
        shared_context: Whether all words have the same in-context examples.
        seed: Seed of the in-context draws.
    """

    vocabulary: Literal["alpha", "common"] = "alpha"
    max_words: int | None = None
    only_start_of_word: bool = True
    template: str = FIRST_LETTER_TEMPLATE
    max_icl_examples: int = 10
    shared_context: bool = False
    seed: int = 42

    def build(self, tokenizer: PreTrainedTokenizerBase) -> Task:
        """Make the task from a tokenizer's vocabulary.

        Args:
            tokenizer: The model's tokenizer.

        Raises:
            VocabularyError: The vocabulary holds no such words.
        """
        return first_letter_task(
            tokenizer,
            vocabulary=self.vocabulary,
            max_words=self.max_words,
            only_start_of_word=self.only_start_of_word,
            template=self.template,
            max_icl_examples=self.max_icl_examples,
        )

    def prompts(self, task: Task) -> list[SpellingPrompt]:
        """One prompt a word of the task, drawn as these settings say.

        Raises:
            PromptError: The task has fewer words than the in-context examples need.
        """
        return task.prompts(seed=self.seed, shared_context=self.shared_context)
