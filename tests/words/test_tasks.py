import hashlib
import json
import re

import pytest
import torch
import wordfreq
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from absorb_pl.errors import LabelError, PromptError, RangeError, VocabularyError
from absorb_pl.models import speller_path
from absorb_pl.words import (
    LETTERS,
    Task,
    TaskConfig,
    answer_token_ids,
    first_letter_task,
    get_alpha_tokens,
    get_common_word_tokens,
    tokenize_prompts,
)
from absorb_pl.words.letter_tasks import letter_task_of_words
from absorb_pl.words.vocab import ordinary_tokens

WORDS = [f" {a}{b}{c}" for a in LETTERS for b in "aeiou" for c in "xyz"]


def task_over(tokens, words=("cat", "dog"), answers=(" C", " D"), template="{word}:"):
    backend = Tokenizer(models.WordLevel({t: i for i, t in enumerate(tokens)}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="?")
    return Task("t", tuple(words), (0, 1), ("c", "d"), tuple(answers), template, str), tokenizer


def fields(**changes):
    kept = {"name": "t", "words": ("a", "b"), "labels": (0, 1), "classes": ("x", "y"), "answers": (" X", " Y")}
    return kept | {"template": "{word}:", "answer_formatter": str} | changes


def test_labels_are_the_first_letters(any_tokenizer):
    task = first_letter_task(any_tokenizer)
    assert task.words == tuple(text for text in ordinary_tokens(any_tokenizer) if re.fullmatch(" ?[A-Za-z]+", text))
    assert [task.classes[label] for label in task.labels] == [w.strip()[0].lower() for w in task.words]
    assert task.answers[2] == " C" == task.answer_formatter(" cat")
    assert (task.name, task.max_icl_examples, len(task.classes)) == ("first_letter", 10, 26)


@pytest.mark.parametrize(
    ("settings", "num_words", "digest"),
    [
        ({}, 4491, "20892048d0f2da53"),
        ({"vocabulary": "common"}, 4287, "520e9853465af2b8"),
        ({"name": "contains", "contains": "e"}, 4491, "642a930754c21f70"),
    ],
)
def test_the_bundled_speller_is_asked_what_it_has_always_been_asked(settings, num_words, digest):
    config = TaskConfig(**settings)
    task = config.build(AutoTokenizer.from_pretrained(speller_path()))
    prompts = [(p.base, p.answer, p.word, p.word_end) for p in config.prompts(task)]
    asked = json.dumps([task.words, task.labels, task.classes, task.answers, prompts])
    assert len(task.words) == num_words
    assert hashlib.sha256(asked.encode()).hexdigest()[:16] == digest


def test_words_without_a_label_are_left_out():
    task = letter_task_of_words([" 2nd", " élan", "42", " Cat", "", " ßa", " Cat"])
    assert task.words == (" 2nd", " Cat")
    assert task.labels == (13, 2)


def test_the_common_vocabulary(byte_level):
    task = first_letter_task(byte_level, vocabulary="common", only_start_of_word=True, threshold=50)
    assert task.words == tuple(get_common_word_tokens(byte_level, threshold=50))


def test_words_without_leading_space_can_be_left_out(byte_level, sentencepiece, wordpiece):
    for tokenizer in (byte_level, sentencepiece):
        words = first_letter_task(tokenizer, only_start_of_word=True).words
        assert words == tuple(w for w in get_alpha_tokens(tokenizer) if w.startswith(" "))
    assert first_letter_task(wordpiece, only_start_of_word=True).words == tuple(get_alpha_tokens(wordpiece))


def test_the_most_frequent_words_are_kept(sentencepiece):
    every = first_letter_task(sentencepiece).words
    kept = first_letter_task(sentencepiece, max_words=9).words
    rate = {w: wordfreq.word_frequency(w.strip().lower(), "en") for w in every}
    assert len(kept) == 9
    assert min(rate[w] for w in kept) >= max(rate[w] for w in every if w not in kept)
    assert list(kept) == [w for w in every if w in kept]


def test_a_prompt_depends_on_the_seed_and_its_word_only():
    task = letter_task_of_words(WORDS)
    every = task.prompts(seed=1)
    assert [prompt.word for prompt in every] == WORDS
    assert task.prompts([WORDS[7], WORDS[3]], seed=1) == [every[7], every[3]]
    assert task.prompts([WORDS[7]], seed=2) != [every[7]]
    assert all(prompt.base.count("\n") == 10 and f"{prompt.word} has" not in prompt.base[:-40] for prompt in every)


def test_a_shared_context_serves_all_words_but_its_own():
    task = letter_task_of_words(WORDS)
    prompts = task.prompts(seed=1, shared_context=True)
    contexts = [prompt.base[: prompt.word_end].removesuffix(prompt.word) for prompt in prompts]
    shared = max(set(contexts), key=contexts.count)
    own = [prompt.word for prompt, context in zip(prompts, contexts, strict=True) if context != shared]
    assert len(own) == 10
    assert all(f"{word} has" in shared for word in own)
    assert all(f"{p.word} has" not in context for p, context in zip(prompts, contexts, strict=True))
    assert {context.count("\n") for context in contexts} == {10}
    assert task.prompts(own[:1], seed=1, shared_context=True)[0] in prompts
    assert task.prompts(own[:1], seed=2, shared_context=True)[0] not in prompts


def test_too_few_words_for_the_examples_are_refused():
    with pytest.raises(PromptError, match="was 10, expected at most 1"):
        letter_task_of_words([" cat", " dog"]).prompts(seed=0)


def test_answers_are_the_tokens_that_follow_the_template(golden, golden_words):
    tokenizer = golden[0].tokenizer
    task = letter_task_of_words(golden_words)
    tokens = answer_token_ids(task, tokenizer)
    vocabulary = tokenizer.get_vocab()
    assert tokens.answers.tolist() == [vocabulary[f"Ġ{letter.upper()}"] for letter in LETTERS]
    assert torch.equal(tokens.positives, tokens.answers)
    published = answer_token_ids(task, tokenizer, "published")
    assert torch.equal(published.answers, tokens.answers)
    assert published.positives.tolist() == [tokenizer.encode(letter)[-1] for letter in LETTERS]


def test_answers_in_a_sentencepiece_vocabulary_carry_its_marker(sentencepiece):
    tokens = answer_token_ids(first_letter_task(sentencepiece), sentencepiece)
    assert sentencepiece.convert_ids_to_tokens(tokens.answers.tolist()) == [f"▁{c.upper()}" for c in LETTERS]


def test_answers_of_several_tokens_count_by_their_first():
    task, tokenizer = task_over(["?", "cat", "dog", ":", "yes", "no", "sir"], answers=(" yes sir", " no sir"))
    assert answer_token_ids(task, tokenizer).answers.tolist() == [4, 5]


def test_answers_that_share_a_token_are_refused_by_name():
    task, tokenizer = task_over(["?", "cat", "dog", ":", "the"], answers=(" the cat", " the dog"))
    with pytest.raises(LabelError, match=r"\[' the cat', ' the dog'\]"):
        answer_token_ids(task, tokenizer)


def test_an_unknown_answer_is_refused_by_name():
    task, tokenizer = task_over(["?", "cat", "dog", ":", "C"])
    with pytest.raises(LabelError, match=r"\[' D'\]"):
        answer_token_ids(task, tokenizer)


def test_an_unknown_published_token_is_refused_by_name():
    task, tokenizer = task_over(["?", "cat", "dog", ":", "C", "D", "c"])
    assert answer_token_ids(task, tokenizer).answers.tolist() == [4, 5]
    with pytest.raises(LabelError, match=r"\['d'\]"):
        answer_token_ids(task, tokenizer, "published")


def test_an_answer_that_merges_with_the_template_is_refused():
    task, tokenizer = task_over(["?", "cat", "dog", ":", "C", "D"], answers=("C", "D"), template="{word}: x")
    with pytest.raises(PromptError, match="template"):
        answer_token_ids(task, tokenizer)


def test_prompts_of_a_task_tokenize(sentencepiece):
    task = first_letter_task(sentencepiece, only_start_of_word=True, max_words=20)
    tokenized = tokenize_prompts(sentencepiece, task.prompts(seed=0), prepend_bos=True, max_length=200)
    assert torch.equal(tokenized.lengths - tokenized.word_positions, torch.full((20,), 6))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"words": (), "labels": ()}, VocabularyError, "at least one word"),
        ({"words": ("a", "a")}, VocabularyError, "each word once"),
        ({"labels": (0,)}, LabelError, "1 labels"),
        ({"labels": (0, 2)}, LabelError, "was 2, expected 0 to 1"),
        ({"labels": (-1, 0)}, LabelError, "was -1, expected 0 to 1"),
        ({"answers": (" X",)}, LabelError, "2 classes"),
    ],
)
def test_fields_that_do_not_fit_are_refused(changes, error, message):
    with pytest.raises(error, match=message):
        Task(**fields(**changes))


@pytest.mark.parametrize("words", [[], ["42", " élan"]])
def test_a_word_list_without_labels_is_refused(words):
    with pytest.raises(VocabularyError, match="words"):
        letter_task_of_words(words)


def test_a_word_limit_below_one_is_refused():
    with pytest.raises(RangeError, match="max_words"):
        letter_task_of_words(WORDS, max_words=0)
