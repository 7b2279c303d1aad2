import string

import pytest
import wordfreq

from absorb_pl.errors import LabelError, PromptError, RangeError, VocabularyError
from absorb_pl.words import TaskConfig
from absorb_pl.words.letter_tasks import contains_task_of_words, letter_task_of_words, letter_template

WORDS = [*wordfreq.top_n_list("en", 400), "Élan", "co-op", "x2y", "42", "naïve", "Straße"]


def letter_by_hand(word, place):
    """Letter number `place` of a word, by walking along it from the one end or the other; None where it has none."""
    seen = 0
    for character in word if place > 0 else reversed(word):
        if character.isalpha():
            seen += 1
            if seen == abs(place):
                lower = character.lower()
                return lower if lower in list(string.ascii_lowercase) else None
    return None


@pytest.mark.parametrize("place", [1, 2, 3, 7, -1, -2, -5])
def test_labels_and_answers_are_the_letters_at_their_place(place):
    task = letter_task_of_words([f" {word}" for word in WORDS], place=place)
    expected = {f" {word}": letter for word in WORDS if (letter := letter_by_hand(word, place))}
    assert {word: task.classes[label] for word, label in zip(task.words, task.labels, strict=True)} == expected
    assert list(task.words) == list(expected)
    assert task.classes == tuple(string.ascii_lowercase)
    for word, label in zip(task.words, task.labels, strict=True):
        assert task.answer_formatter(word) == task.answers[label] == f" {expected[word].upper()}"
    assert task.name == {1: "first_letter", -1: "last_letter"}.get(place, "nth_letter")
    word = task.words[0]
    assert task.prompts([word], seed=0)[0].base.endswith("\n" + letter_template(place).replace("{word}", word))


@pytest.mark.parametrize("letters", ["e", "th", "ING", "-"])
def test_words_that_contain_letters_say_yes(letters):
    task = contains_task_of_words(WORDS, letters)
    assert task.words == tuple(WORDS)
    for word, label in zip(task.words, task.labels, strict=True):
        places = range(len(word))
        found = any(word[i : i + len(letters)].casefold() == letters.casefold() for i in places)
        assert task.classes[label] == ("yes" if found else "no")
        assert task.answer_formatter(word) == task.answers[label] == (" yes" if found else " no")
    assert task.template == '{word} contains "' + letters + '":'


def test_of_both_kinds_the_most_frequent_words_are_kept():
    for task in (letter_task_of_words(WORDS, place=-1, max_words=9), contains_task_of_words(WORDS, "e", max_words=9)):
        assert len(task.words) == 9
        assert set(task.words) <= set(WORDS[:12])


@pytest.mark.parametrize("letters", ["", " ", "a b", "{", "}x"])
def test_letters_that_make_no_template_are_refused(letters):
    with pytest.raises(PromptError, match="contains"):
        contains_task_of_words(["cat"], letters)


@pytest.mark.parametrize("letters", ["q", "a"])
def test_one_label_for_all_words_is_refused(letters):
    with pytest.raises(LabelError, match=rf"`contains` was '{letters}', expected letters that some of the 2 words"):
        contains_task_of_words([" cat", " bat"], letters)


def test_tasks_without_words_are_refused():
    with pytest.raises(VocabularyError, match="at least one word"):
        letter_task_of_words([" cat"], place=4)
    with pytest.raises(VocabularyError, match="at least one word"):
        contains_task_of_words([], "a")
    with pytest.raises(RangeError, match="max_words"):
        contains_task_of_words([" cat", " dog"], "a", max_words=0)


def test_letter_zero_is_refused():
    with pytest.raises(RangeError, match=r"`place` was 0, expected .* at most -1 or .* at least 1"):
        letter_task_of_words([" cat"], place=0)
    with pytest.raises(RangeError, match="`letter` was 0"):
        TaskConfig(name="nth_letter", letter=0, words=["cat"])
