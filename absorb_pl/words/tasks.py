"""A task: labelled words, the prompt that asks for the label, and the answer expected for each class."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from absorb_pl.errors import LabelError, VocabularyError
from absorb_pl.ranges import CountOrZero, Seed, check_ranges
from absorb_pl.words.formatters import Formatter
from absorb_pl.words.prompting import SpellingPrompt, create_icl_prompt


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
        answer_formatter: Gives the answer written after a word among the ICL examples.
        example_separator: What stands between two ICL examples.
        max_icl_examples: Number of ICL examples of a prompt.
        children: In a hierarchy, the finer label below each word's class (`"animal"` below `"noun"`): what an
            absorbing latent may have specialised in. Empty where the task has none.

    Raises:
        LabelError: If words and labels, words and children, or classes and answers differ in number, or a label
            names no class.
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
    max_icl_examples: CountOrZero = 10
    children: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check that the fields fit together."""
        check_ranges(Task, vars(self))
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
        if self.children and len(self.children) != len(self.words):
            raise LabelError(
                "children",
                f"{len(self.children)} children",
                expected=f"one for each of the {len(self.words)} words, or none at all",
                remedy="Give every word its finer label.",
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
        self, words: Sequence[str] | None = None, *, seed: Seed, shared_context: bool = False
    ) -> list[SpellingPrompt]:
        """Build a prompt for each word, with ICL examples drawn from the task's words.

        Args:
            words: The words asked about, in order; None for all of the task's.
            seed: Settles every draw. A word's prompt depends on the seed and the task, not on the other
                words asked about.
            shared_context: Whether one draw of ICL examples serves all words. A word that is itself among
                those examples gets the next word of the same draw in its own place.

        Returns:
            One prompt per word, in the order of `words`.

        Raises:
            PromptError: If the task has too few words for the ICL examples.
        """
        check_ranges(Task.prompts, locals())
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
