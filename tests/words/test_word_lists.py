import pytest
import wordfreq

from absorb_pl.errors import VocabularyError
from absorb_pl.words import get_alpha_tokens, get_common_words
from absorb_pl.words.word_lists import as_in_prompts, listed_words, token_counts, unknown_words, vocabulary_words


def test_words_carry_a_space_where_the_vocabulary_marks_spaces(byte_level, sentencepiece, wordpiece):
    assert as_in_prompts(byte_level, ["cat", "New York"]) == [" cat", " New York"]
    assert as_in_prompts(sentencepiece, ["cat"]) == [" cat"]
    assert as_in_prompts(wordpiece, ["cat"]) == ["cat"]


def test_tokens_are_counted_as_inside_a_prompt(byte_level, sentencepiece, wordpiece):
    assert token_counts(byte_level, [" cat", " kitchen", " Doggy", "cat"]) == [1, 2, 3, 1]
    # `▁` before the line end is not the word's; ` zoo` is `▁z`, `o`, `o`.
    assert token_counts(sentencepiece, [" cat", " kitchen", " zoo"]) == [1, 2, 3]
    assert token_counts(wordpiece, ["cat", "cats", "kitchen"]) == [1, 2, 2]


def test_the_common_words_of_any_number_of_tokens(byte_level):
    words = vocabulary_words(byte_level, "words", threshold=100)
    assert words == [f" {word}" for word in get_common_words(100)]
    rates = [wordfreq.word_frequency(word.strip(), "en") for word in words]
    assert min(rates) > 0.95e-4
    assert rates[:50] == sorted(rates[:50], reverse=True)
    counts = {word: len(byte_level.tokenize(word)) for word in words}
    for limit in (1, 3):
        short = vocabulary_words(byte_level, "words", threshold=100, max_tokens_per_word=limit)
        assert short == [word for word in words if counts[word] <= limit]
        assert 0 < len(short) < len(words)


def test_vocabulary_words_that_the_tokenizer_does_not_know_are_left_out(wordpiece):
    # This vocabulary has no continuations but `##s` and `##chen`.
    assert {"cat", "kitchen", "has", "the"} <= set(vocabulary_words(wordpiece, "words"))
    assert "of" not in vocabulary_words(wordpiece, "words")
    assert unknown_words(wordpiece, ["cats", "dogs", "of"]) == ["dogs", "of"]


def test_long_tokens_of_a_vocabulary_do_not_exist(any_tokenizer):
    words = vocabulary_words(any_tokenizer, "alpha", max_tokens_per_word=1)
    assert set(words) <= set(get_alpha_tokens(any_tokenizer))
    assert all(count == 1 for count in token_counts(any_tokenizer, words))


def test_listed_words_keep_their_order(byte_level):
    assert listed_words(byte_level, ["kitchen", " cat ", "été"]) == [" kitchen", " cat", " été"]


@pytest.mark.parametrize(
    ("words", "options", "message"),
    [
        (["cat", " "], {}, "Drop entry 2"),
        (["cat", "Dog", " cat"], {}, "Drop entry 3"),
        (
            ["cat", "kitchen", "kits"],
            {"max_tokens_per_word": 1},
            "at least 2.*Raise it, or leave out 'kitchen', 'kits'",
        ),
    ],
)
def test_listed_words_that_cannot_be_taken_are_refused(byte_level, words, options, message):
    with pytest.raises(VocabularyError, match=message):
        listed_words(byte_level, words, **options)


def test_listed_words_that_the_tokenizer_does_not_know_are_refused(wordpiece):
    with pytest.raises(VocabularyError, match=r"`words` was \['猫'\]"):
        listed_words(wordpiece, ["cat", "猫"])
