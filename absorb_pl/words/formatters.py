"""Answers about a word's letters: its spelling, a single letter, or whether a letter occurs.

Names, arguments and defaults are those of `sae_spelling.prompting`, the released code of arXiv 2409.14507.
"""

from collections.abc import Callable
from functools import partial

from absorb_pl.errors import PromptError
from absorb_pl.ranges import CountOrZero, check_ranges

Formatter = Callable[[str], str]
"""Turns a word into the answer expected for it."""


def spelling(
    word: str,
    separator: str = "-",
    prefix: str = " ",
    capitalize: bool = True,
    ignore_leading_space: bool = True,
    ignore_non_alpha_chars: bool = True,
) -> str:
    """Spell a word letter by letter.

    Args:
        word: The word, with or without a leading space.
        separator: What stands between two letters.
        prefix: What the answer begins with.
        capitalize: Whether letters are written in upper case.
        ignore_leading_space: Whether white space around the word is dropped first.
        ignore_non_alpha_chars: Whether only letters are spelt.

    Returns:
        The prefix and the joined letters.

    Raises:
        PromptError: If nothing is left to spell.

    Example:
        >>> spelling(" cat")
        ' C-A-T'
        >>> spelling("don't", capitalize=False)
        ' d-o-n-t'
    """
    return prefix + separator.join(_letters(word, capitalize, ignore_leading_space, ignore_non_alpha_chars))


def first_letter(
    word: str,
    prefix: str = " ",
    capitalize: bool = True,
    ignore_leading_space: bool = True,
    ignore_non_alpha_chars: bool = True,
) -> str:
    """Give the word's first letter.

    Arguments and errors are those of `spelling`.

    Example:
        >>> first_letter(" cat")
        ' C'
    """
    return letter_from_start(word, 0, prefix, capitalize, ignore_leading_space, ignore_non_alpha_chars)


def last_letter(
    word: str,
    prefix: str = " ",
    capitalize: bool = True,
    ignore_leading_space: bool = True,
    ignore_non_alpha_chars: bool = True,
) -> str:
    """Give the word's last letter.

    Arguments and errors are those of `spelling`.

    Example:
        >>> last_letter(" cat.")
        ' T'
    """
    return letter_from_end(word, 1, prefix, capitalize, ignore_leading_space, ignore_non_alpha_chars)


def is_present(word: str, char_to_check: str, prefix: str = " ", return_binary: bool = False) -> str:
    """Say whether a character occurs in the word; case counts.

    Args:
        word: The word.
        char_to_check: The character looked for.
        prefix: What the answer begins with.
        return_binary: Whether to answer `1` or `0` in place of `True` or `False`.

    Returns:
        The prefix and the verdict.

    Raises:
        PromptError: If `char_to_check` is empty, which would be present in every word.

    Example:
        >>> is_present("cat", "t"), is_present("cat", "b", return_binary=True)
        (' True', ' 0')
    """
    if not char_to_check:
        raise PromptError("char_to_check", char_to_check, expected="a character", remedy="Name the letter to look for.")
    found = char_to_check in word
    return prefix + str(int(found) if return_binary else found)


def letter_from_start(
    word: str,
    index: int,
    prefix: str = " ",
    capitalize: bool = True,
    ignore_leading_space: bool = True,
    ignore_non_alpha_chars: bool = True,
) -> str:
    """Give the letter `index` places after the first, so that 0 is the first letter.

    Other arguments are those of `spelling`.

    Raises:
        PromptError: If the word has no such letter.

    Example:
        >>> letter_from_start("mobile", 2)
        ' B'
    """
    letters = _letters(word, capitalize, ignore_leading_space, ignore_non_alpha_chars)
    if not 0 <= index < len(letters):
        raise PromptError(
            "index",
            index,
            expected=f"0 to {len(letters) - 1} for {word!r}",
            remedy="Leave out words that are too short.",
        )
    return prefix + letters[index]


def letter_from_end(
    word: str,
    index: int,
    prefix: str = " ",
    capitalize: bool = True,
    ignore_leading_space: bool = True,
    ignore_non_alpha_chars: bool = True,
) -> str:
    """Give the letter `index` places from the end, so that 1 is the last letter.

    Other arguments are those of `spelling`.

    Raises:
        PromptError: If the word has no such letter.

    Example:
        >>> letter_from_end("mobile", 2)
        ' L'
    """
    letters = _letters(word, capitalize, ignore_leading_space, ignore_non_alpha_chars)
    if not 1 <= index <= len(letters):
        raise PromptError(
            "index",
            index,
            expected=f"1 to {len(letters)} for {word!r}",
            remedy="Leave out words that are too short.",
        )
    return prefix + letters[-index]


def spelling_formatter(
    separator: str = "-",
    prefix: str = " ",
    capitalize: bool = True,
    ignore_leading_space: bool = True,
    ignore_non_alpha_chars: bool = True,
) -> Formatter:
    """Make a formatter of `spelling` with these arguments fixed.

    Example:
        >>> spelling_formatter(separator=".")("cat")
        ' C.A.T'
    """
    return partial(
        spelling,
        separator=separator,
        prefix=prefix,
        capitalize=capitalize,
        ignore_leading_space=ignore_leading_space,
        ignore_non_alpha_chars=ignore_non_alpha_chars,
    )


def first_letter_formatter(
    prefix: str = " ",
    capitalize: bool = True,
    ignore_leading_space: bool = True,
    ignore_non_alpha_chars: bool = True,
) -> Formatter:
    """Make a formatter of `first_letter` with these arguments fixed.

    Example:
        >>> first_letter_formatter(capitalize=False)(" cat")
        ' c'
    """
    return partial(
        first_letter,
        prefix=prefix,
        capitalize=capitalize,
        ignore_leading_space=ignore_leading_space,
        ignore_non_alpha_chars=ignore_non_alpha_chars,
    )


def last_letter_formatter(
    prefix: str = " ",
    capitalize: bool = True,
    ignore_leading_space: bool = True,
    ignore_non_alpha_chars: bool = True,
) -> Formatter:
    """Make a formatter of `last_letter` with these arguments fixed.

    Example:
        >>> last_letter_formatter(prefix="")(" cat")
        'T'
    """
    return partial(
        last_letter,
        prefix=prefix,
        capitalize=capitalize,
        ignore_leading_space=ignore_leading_space,
        ignore_non_alpha_chars=ignore_non_alpha_chars,
    )


def is_present_formatter(char_to_check: str, return_binary: bool = False, prefix: str = " ") -> Formatter:
    """Make a formatter of `is_present` with these arguments fixed.

    Example:
        >>> is_present_formatter("a")("cat")
        ' True'
    """
    return partial(is_present, char_to_check=char_to_check, return_binary=return_binary, prefix=prefix)


def letter_from_start_formatter(
    index: CountOrZero,
    prefix: str = " ",
    capitalize: bool = True,
    ignore_leading_space: bool = True,
    ignore_non_alpha_chars: bool = True,
) -> Formatter:
    """Make a formatter of `letter_from_start` with these arguments fixed.

    Example:
        >>> letter_from_start_formatter(1)("cat")
        ' A'
    """
    check_ranges(letter_from_start_formatter, locals())
    return partial(
        letter_from_start,
        index=index,
        prefix=prefix,
        capitalize=capitalize,
        ignore_leading_space=ignore_leading_space,
        ignore_non_alpha_chars=ignore_non_alpha_chars,
    )


def letter_from_end_formatter(
    index: CountOrZero,
    prefix: str = " ",
    capitalize: bool = True,
    ignore_leading_space: bool = True,
    ignore_non_alpha_chars: bool = True,
) -> Formatter:
    """Make a formatter of `letter_from_end` with these arguments fixed.

    Example:
        >>> letter_from_end_formatter(1)("cat")
        ' T'
    """
    check_ranges(letter_from_end_formatter, locals())
    return partial(
        letter_from_end,
        index=index,
        prefix=prefix,
        capitalize=capitalize,
        ignore_leading_space=ignore_leading_space,
        ignore_non_alpha_chars=ignore_non_alpha_chars,
    )


def _letters(word: str, capitalize: bool, ignore_leading_space: bool, ignore_non_alpha_chars: bool) -> list[str]:
    text = word.strip() if ignore_leading_space else word
    letters = [c for c in text if c.isalpha()] if ignore_non_alpha_chars else list(text)
    if not letters:
        raise PromptError(
            "word",
            word,
            expected="a word with at least one letter",
            remedy="Leave out words without letters.",
        )
    return [c.upper() for c in letters] if capitalize else letters
