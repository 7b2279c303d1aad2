import pytest

from absorb_pl.errors import PromptError
from absorb_pl.words import (
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


def test_spelling_options():
    assert spelling("cat") == " C-A-T"
    assert spelling(" cat", separator=" :: ", prefix="") == "C :: A :: T"
    assert spelling(" It's", capitalize=False) == " I-t-s"
    assert spelling(" it's", ignore_leading_space=False, ignore_non_alpha_chars=False) == "  -I-T-'-S"
    assert spelling("▁1cat") == " C-A-T"
    assert spelling("▁1cat", ignore_non_alpha_chars=False) == " ▁-1-C-A-T"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (first_letter(" 'tis"), " T"),
        (first_letter(" cat", capitalize=False), " c"),
        (first_letter("'tis", ignore_non_alpha_chars=False), " '"),
        (last_letter(" cat!"), " T"),
        (last_letter("cat", capitalize=False), " t"),
        (last_letter(" cat!", ignore_non_alpha_chars=False, prefix=""), "!"),
        (letter_from_start("mobile", 2), " B"),
        (letter_from_start("▁mobile", index=1, ignore_non_alpha_chars=False), " M"),
        (letter_from_start("mobile", 2, capitalize=False), " b"),
        (letter_from_end("mobile", 2), " L"),
        (letter_from_end("mobile_", index=1, ignore_non_alpha_chars=False), " _"),
        (letter_from_end("mobile", 2, capitalize=False), " l"),
        (is_present("cat", "t"), " True"),
        (is_present("cat", "T", return_binary=True, prefix=""), "0"),
    ],
)
def test_single_answers(given, expected):
    assert given == expected


@pytest.mark.parametrize(
    ("formatter", "expected"),
    [
        (spelling_formatter(separator=""), " WORD"),
        (spelling_formatter(capitalize=False), " w-o-r-d"),
        (first_letter_formatter(prefix=""), "W"),
        (first_letter_formatter(capitalize=False), " w"),
        (last_letter_formatter(), " D"),
        (last_letter_formatter(capitalize=False), " d"),
        (letter_from_start_formatter(1), " O"),
        (letter_from_start_formatter(1, capitalize=False), " o"),
        (letter_from_end_formatter(4), " W"),
        (letter_from_end_formatter(4, capitalize=False), " w"),
        (is_present_formatter("r", return_binary=True), " 1"),
    ],
)
def test_formatters_fix_their_arguments(formatter, expected):
    assert formatter(" word") == expected


@pytest.mark.parametrize("function", [spelling, first_letter, last_letter])
@pytest.mark.parametrize("word", ["", "  ", " 42"])
def test_a_word_without_letters_is_refused(function, word):
    with pytest.raises(PromptError, match="at least one letter"):
        function(word)


@pytest.mark.parametrize("index", [-1, 3])
def test_an_index_outside_the_word_is_refused_from_the_start(index):
    with pytest.raises(PromptError, match=r"`index` was -?\d, expected 0 to 2 for ' cat'"):
        letter_from_start(" cat", index)


@pytest.mark.parametrize("index", [0, 4])
def test_an_index_outside_the_word_is_refused_from_the_end(index):
    with pytest.raises(PromptError, match="expected 1 to 3 for ' cat'"):
        letter_from_end(" cat", index)


def test_looking_for_no_character_is_refused():
    with pytest.raises(PromptError, match="char_to_check"):
        is_present("cat", "")
