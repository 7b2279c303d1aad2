import json
import random
from collections import Counter

import pytest

from absorb_pl.errors import AbsorbError, PromptError, RangeError
from absorb_pl.words import (
    VERBOSE_FIRST_LETTER_TEMPLATE,
    VERBOSE_FIRST_LETTER_TOKEN_POS,
    create_icl_prompt,
    first_letter_formatter,
    random_icl_prompt,
)

LETTER = {"base_template": "{word} has the first letter:", "answer_formatter": first_letter_formatter(capitalize=True)}
POOL = [f" {a}{b}o" for a in "bcdfgh" for b in "aeiou"]


def examples_of(prompt):
    return [line.removesuffix(line[-len(" X") :]).split(" has")[0] for line in prompt.base.split("\n")[:-1]]


def test_golden_prompts_are_rebuilt_to_the_letter(golden, golden_words):
    case = json.loads((golden[1] / "case_attribution.json").read_text())
    for key in ("clean", "corrupted"):
        word = case[key].split("\n")[-1].split(" has")[0]
        prompt = create_icl_prompt(word, golden_words[:8], shuffle_examples=False, **LETTER)
        assert prompt.base == case[key]
        assert prompt.base[: prompt.word_end].endswith(f"\n{word}")
        assert prompt.answer == f" {word.strip()[0].upper()}"


def test_a_seeded_draw_depends_on_seed_and_word_only():
    draws = {word: create_icl_prompt(word, POOL, max_icl_examples=5, seed=3, **LETTER) for word in POOL}
    random.seed(99)
    for word in reversed(POOL):
        assert create_icl_prompt(word, tuple(POOL), max_icl_examples=5, seed=3, **LETTER) == draws[word]
    assert len({tuple(examples_of(prompt)) for prompt in draws.values()}) > 25
    assert create_icl_prompt(POOL[0], POOL, max_icl_examples=5, seed=4, **LETTER) != draws[POOL[0]]


def test_an_unseeded_draw_follows_the_global_generator():
    random.seed(5)
    first = create_icl_prompt(POOL[0], POOL, max_icl_examples=5, **LETTER)
    second = create_icl_prompt(POOL[0], POOL, max_icl_examples=5, **LETTER)
    random.seed(5)
    assert create_icl_prompt(POOL[0], POOL, max_icl_examples=5, **LETTER) == first != second


def test_draws_are_uniform_over_ordered_subsets():
    pool = [" ba", " ca", " da", " fa"]
    counts = Counter(
        tuple(examples_of(create_icl_prompt(" BA ", pool, max_icl_examples=2, seed=seed, **LETTER)))
        for seed in range(3000)
    )
    others = pool[1:]
    assert set(counts) == {(a, b) for a in others for b in others if a != b}
    chi_squared = sum((n - 500) ** 2 / 500 for n in counts.values())
    assert chi_squared < 20.5  # 0.1 % quantile at 5 degrees of freedom


@pytest.mark.parametrize("word", ["cat", " cat", "CAT", " Cat "])
@pytest.mark.parametrize("shuffle", [True, False])
def test_the_word_is_never_among_its_own_examples(word, shuffle):
    pool = ["Cat", " dog", " cat", "emu", "cat ", " owl"]
    for seed in range(20):
        prompt = create_icl_prompt(word, pool, max_icl_examples=3, shuffle_examples=shuffle, seed=seed, **LETTER)
        assert sorted(examples_of(prompt)) == [" dog", " owl", "emu"]


def test_answers_are_spelt_in_capitals_by_default():
    prompt = create_icl_prompt("cat", ["dog", "bird", "rat"], shuffle_examples=False, max_icl_examples=2)
    assert (prompt.base, prompt.answer) == ("dog: D-O-G\nbird: B-I-R-D\ncat:", " C-A-T")
    assert random_icl_prompt(["cat", "cat", "dog"], max_icl_examples=1, seed=0).answer in (" C-A-T", " D-O-G")


def test_a_word_among_its_examples_takes_one_attempt():
    prompt = create_icl_prompt("cat", ["cat"] * 99 + ["dog"], max_icl_examples=1, max_attempts=1, seed=0)
    assert prompt.base == "dog: D-O-G\ncat:"
    with pytest.raises(AbsorbError, match="max_attempts"):
        create_icl_prompt("cat", ["dog"], max_attempts=0)


def test_the_position_of_the_papers_template_is_that_of_the_words_last_token():
    prompt = create_icl_prompt(" cat", [" Dog"], VERBOSE_FIRST_LETTER_TEMPLATE, seed=0)
    words = ["cat", " has", " the", " first", " letter", ":"]
    assert len(words) == -VERBOSE_FIRST_LETTER_TOKEN_POS
    assert prompt.base.endswith("".join(words))
    assert prompt.base[: prompt.word_end].endswith(words[VERBOSE_FIRST_LETTER_TOKEN_POS])


def test_contamination_can_be_allowed():
    prompt = create_icl_prompt("cat", ["cat"], "{word}:", check_contamination=False)
    assert prompt.base == "cat: C-A-T\ncat:"


def test_all_examples_are_used_without_a_limit():
    prompt = create_icl_prompt(POOL[3], POOL, seed=1, **LETTER)
    assert sorted(examples_of(prompt)) == sorted(set(POOL) - {POOL[3]})
    assert examples_of(prompt) != [word for word in POOL if word != POOL[3]]


def test_too_few_usable_examples_are_refused_with_both_numbers():
    with pytest.raises(PromptError, match="was 3, expected at most 2, the number of ICL words usable for ' cat'"):
        create_icl_prompt(" cat", ["cat", "dog", "emu"], max_icl_examples=3)


@pytest.mark.parametrize("kwargs", [{"examples": []}, {"examples": ["dog"], "max_icl_examples": 0}])
def test_without_examples_the_base_is_the_word_alone(kwargs):
    prompt = create_icl_prompt(" cat", **kwargs)
    assert (prompt.base, prompt.word_end) == (" cat:", 4)


def test_the_word_end_is_behind_the_last_placeholder():
    prompt = create_icl_prompt("cat", ["dog"], "{{{word}}} or {word} is:", seed=0)
    assert prompt.base == "{dog} or dog is: D-O-G\n{cat} or cat is:"
    assert prompt.base[: prompt.word_end].endswith("{cat} or cat")


@pytest.mark.parametrize("template", ["spell:", "{{word}}:", "{word} {letter}", "{word", "{}"])
def test_a_template_without_the_placeholder_is_refused(template):
    with pytest.raises(PromptError, match="base_template"):
        create_icl_prompt("cat", [], template)


def test_a_negative_number_of_examples_is_refused():
    with pytest.raises(RangeError, match="max_icl_examples"):
        create_icl_prompt("cat", ["dog"], max_icl_examples=-1)


def test_a_random_prompt_asks_about_a_word_of_the_vocabulary():
    prompts = [random_icl_prompt(POOL, max_icl_examples=4, seed=seed, **LETTER) for seed in range(60)]
    assert {prompt.word for prompt in prompts} == {prompt.word for prompt in prompts} & set(POOL)
    assert len({prompt.word for prompt in prompts}) > 15
    assert all(prompt.word not in examples_of(prompt) and len(examples_of(prompt)) == 4 for prompt in prompts)
    assert random_icl_prompt(POOL, seed=7) == random_icl_prompt(POOL, seed=7)


def test_a_random_prompt_needs_words():
    with pytest.raises(PromptError, match="vocab"):
        random_icl_prompt([])
    with pytest.raises(PromptError, match="at most 1"):
        random_icl_prompt(["cat", "dog"])
