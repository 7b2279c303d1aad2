"""In-context-learning (ICL) prompts: examples with their answers, then the word asked about.

Names, arguments and defaults are those of `sae_spelling.prompting`, the released code of arXiv 2409.14507; seeds are
ours.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from string import Formatter as FormatString

from absorb_pl.errors import PromptError
from absorb_pl.ranges import Count, CountOrZero, Seed, check_ranges
from absorb_pl.words.formatters import Formatter, spelling_formatter

VERBOSE_FIRST_LETTER_TEMPLATE = "{word} has the first letter:"
"""The template of arXiv 2409.14507."""
VERBOSE_FIRST_LETTER_TOKEN_POS = -6
"""Where a word of one token ends in a prompt of that template, counted from the prompt's end."""
_SPELLED = spelling_formatter()


@dataclass(frozen=True)
class SpellingPrompt:
    r"""A prompt about one word (named as in `sae_spelling.prompting`).

    Attributes:
        base: All text before the answer, ICL examples included.
        answer: The expected continuation, such as `" C"`.
        word: The word asked about.
        word_end: Character offset in `base` just after that word, or None if unknown.

    Example:
        >>> prompt = create_icl_prompt(" cat", [" dog"], "{word}:", max_icl_examples=1, seed=0)
        >>> prompt.base
        ' dog: D-O-G\n cat:'
        >>> prompt.base[: prompt.word_end]
        ' dog: D-O-G\n cat'
    """

    base: str
    answer: str
    word: str
    word_end: int | None = None


def create_icl_prompt(
    word: str,
    examples: Sequence[str],
    base_template: str = "{word}:",
    example_separator: str = "\n",
    answer_formatter: Formatter = _SPELLED,
    max_icl_examples: CountOrZero | None = None,
    shuffle_examples: bool = True,
    check_contamination: bool = True,
    max_attempts: Count = 1000,
    seed: Seed | None = None,
) -> SpellingPrompt:
    r"""Build the ICL prompt of one word (arXiv 2409.14507, section 3; `sae_spelling.prompting`).

    Drawing a few examples takes time in proportion to their number, not to the length of `examples`.

    Args:
        word: The word asked about.
        examples: Words to draw ICL examples from.
        base_template: Text before an answer, with the placeholder `{word}`. If the placeholder stands more
            than once, `word_end` is after the last one.
        example_separator: What stands between two examples and before the word's own text.
        answer_formatter: Gives a word's answer.
        max_icl_examples: How many examples to use; None for all.
        shuffle_examples: Whether to draw at random; otherwise the first examples are taken in their order.
        check_contamination: Whether the word itself, compared without white space around it and without case,
            is kept out of its own examples.
        max_attempts: Accepted as the published function has it, which draws anew up to so many times until the word
            is not among its examples. Here the word is passed over while drawing, so one attempt always does.
        seed: With a seed the draw depends on the seed, the word and `examples` only; without one it follows
            the state of Python's `random`.

    Returns:
        The prompt. Without examples its base is the word's own text, with no separator before it.

    Raises:
        PromptError: If fewer usable examples exist than asked for, or the template has no `{word}`.
        RangeError: If `max_attempts` is below 1.

    Example:
        >>> create_icl_prompt("cat", ["cat", "dog", "emu"], shuffle_examples=False).base
        'dog: D-O-G\nemu: E-M-U\ncat:'
    """
    check_ranges(create_icl_prompt, locals())
    candidates = _shuffled(examples, word, seed) if shuffle_examples else iter(examples)
    if check_contamination:
        own = _bare(word)
        candidates = (example for example in candidates if _bare(example) != own)
    chosen = list(islice(candidates, max_icl_examples))
    if max_icl_examples is not None and len(chosen) < max_icl_examples:
        raise PromptError(
            "max_icl_examples",
            max_icl_examples,
            expected=f"at most {len(chosen)}, the number of ICL words usable for {word!r}",
            remedy="Give more examples or ask for fewer.",
        )
    template = _parse_template(base_template)
    texts = [template.fill(example) + answer_formatter(example) for example in chosen]
    head = example_separator.join([*texts, ""])
    base = head + template.fill(word)
    return SpellingPrompt(
        base=base, answer=answer_formatter(word), word=word, word_end=len(base) - len(template.after_last)
    )


def random_icl_prompt(
    vocab: Sequence[str],
    base_template: str = "{word}:",
    example_separator: str = "\n",
    answer_formatter: Formatter = _SPELLED,
    max_icl_examples: CountOrZero = 10,
    check_contamination: bool = True,
    max_attempts: Count = 1000,
    seed: Seed | None = None,
) -> SpellingPrompt:
    """Build the ICL prompt of a word drawn from `vocab`, with examples from `vocab`.

    Arguments are those of `create_icl_prompt`.

    Raises:
        PromptError: If `vocab` is empty or holds too few other words.

    Example:
        >>> prompt = random_icl_prompt(["cat", "dog", "emu"], max_icl_examples=2, seed=1)
        >>> prompt.base.count(":")
        3
    """
    check_ranges(random_icl_prompt, locals())
    if not vocab:
        raise PromptError("vocab", vocab, expected="at least one word", remedy="Give a longer word list.")
    word = _generator(seed, "").choice(vocab)
    return create_icl_prompt(
        word,
        vocab,
        base_template=base_template,
        example_separator=example_separator,
        answer_formatter=answer_formatter,
        max_icl_examples=max_icl_examples,
        check_contamination=check_contamination,
        max_attempts=max_attempts,
        seed=seed,
    )


@dataclass(frozen=True)
class _Template:
    pieces: tuple[str, ...]

    @property
    def after_last(self) -> str:
        return self.pieces[-1]

    def fill(self, word: str) -> str:
        return word.join(self.pieces)


@lru_cache(maxsize=64)
def _parse_template(base_template: str) -> _Template:
    pieces = [""]
    try:
        for literal, field, _, _ in FormatString().parse(base_template):
            pieces[-1] += literal
            if field is not None:
                if field != "word":
                    raise ValueError(f"unknown placeholder {field!r}")
                pieces.append("")
    except ValueError as error:
        pieces = [""]
        cause = f" ({error})"
    else:
        cause = ""
    if len(pieces) == 1:
        raise PromptError(
            "base_template",
            base_template,
            expected="a text with the placeholder {word}" + cause,
            remedy="Write {word} where the word goes, and double other braces.",
        )
    return _Template(tuple(pieces))


def _shuffled(examples: Sequence[str], word: str, seed: int | None) -> Iterator[str]:
    """Yield all examples in a random order, at a cost per example taken and none for the rest."""
    generator = _generator(seed, word)
    moved: dict[int, int] = {}
    for place in range(len(examples)):
        other = generator.randrange(place, len(examples))
        yield examples[moved.get(other, other)]
        moved[other] = moved.get(place, place)


def _generator(seed: int | None, key: str) -> random.Random:
    return random.Random(random.getrandbits(64) if seed is None else f"{seed}:{key}")


def _bare(word: str) -> str:
    return word.strip().casefold()
