from pathlib import Path

import pytest
import wordfreq
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from absorb_pl.errors import VocabularyError
from absorb_pl.words import (
    ALL_ALPHA_LETTERS,
    LETTERS,
    LETTERS_UPPER,
    get_alpha_tokens,
    get_common_word_tokens,
    get_common_words,
    get_same_ending_word_pairs_of_len,
    get_tokens,
    group_words_by_ending_and_length,
)
from absorb_pl.words.vocab import most_common, ordinary_tokens
from absorb_pl.words.word_lists import vocabulary_words

GPT2 = next((path for up in Path(__file__).parents if (path := up / "shared/tokenizers/gpt2").is_dir()), None)


def vocabulary_of(*tokens, **special):
    backend = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}))
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def test_byte_level_markers_are_spaces_and_bytes_are_decoded(byte_level):
    words = get_alpha_tokens(byte_level)
    assert {" cat", "cat", " Dog", "chen", "a", "Z"} <= set(words)
    assert " élan" in get_tokens(byte_level)
    assert " élan" not in words
    assert "<bos>" not in ordinary_tokens(byte_level)
    assert words == sorted(words, key=lambda w: byte_level.get_vocab()[w.replace(" ", "Ġ")])


def test_every_byte_level_token_reads_as_the_tokenizer_decodes_it(byte_level):
    raw = [token for token in byte_level.get_vocab() if token not in ("<bos>", "<pad>")]
    decoded = [byte_level.convert_tokens_to_string([token]) for token in raw]
    assert get_tokens(vocabulary_of(*raw)) == decoded
    assert ordinary_tokens(vocabulary_of(*raw)) == list(dict.fromkeys(decoded)) != decoded
    assert set(bytes_to_unicode().values()) <= set(raw)


def test_every_entry_of_the_vocabulary_is_listed_by_id(any_tokenizer):
    entries = any_tokenizer.convert_ids_to_tokens(range(len(any_tokenizer)))
    assert get_tokens(any_tokenizer, replace_special_chars=False) == entries
    assert len(get_tokens(any_tokenizer)) == len(entries)


@pytest.mark.skipif(GPT2 is None, reason="no folder shared/tokenizers/gpt2 above this file")
def test_all_entries_of_gpt2_are_listed_as_the_tokenizer_decodes_them():
    tokenizer = AutoTokenizer.from_pretrained(GPT2)
    texts = get_tokens(tokenizer)
    assert len(texts) == 50_257
    assert texts == [
        tokenizer.convert_tokens_to_string([entry]) for entry in tokenizer.convert_ids_to_tokens(range(50_257))
    ]
    assert len(ordinary_tokens(tokenizer)) == 49_923
    alpha = [text for text in texts if text.strip() and set(text.removeprefix(" ")) <= set(ALL_ALPHA_LETTERS)]
    assert get_alpha_tokens(tokenizer) == alpha


def test_sentencepiece_markers_are_spaces_and_raw_bytes_are_characters(sentencepiece):
    words = get_alpha_tokens(sentencepiece)
    assert {" cat", "cat", " Dog", "chen", " a", "a"} <= set(words)
    assert get_tokens(sentencepiece)[:8] == ["<unk>", "<s>", "</s>", "\n", "j", " ", ":", "\n"]
    assert ordinary_tokens(sentencepiece)[:3] == [" ", ":", "\n"]
    assert words.count("j") == 2


def test_wordpiece_continuations_are_no_words(wordpiece):
    words = get_alpha_tokens(wordpiece)
    assert words[:4] == ["cat", "Dog", "kit", "has"]
    assert "##s" in get_tokens(wordpiece)


def test_words_without_leading_space_can_be_chosen(byte_level, sentencepiece):
    for tokenizer in (byte_level, sentencepiece):
        words = get_alpha_tokens(tokenizer, allow_leading_space=False)
        assert "cat" in words
        assert not any(word.startswith(" ") for word in words)


def test_tokens_can_be_returned_as_the_vocabulary_writes_them(byte_level, sentencepiece):
    assert "Ġcat" in get_alpha_tokens(byte_level, replace_special_chars=False)
    assert "▁cat" in get_alpha_tokens(sentencepiece, replace_special_chars=False)


def test_a_marker_is_recognised_by_its_frequency():
    wordpiece = vocabulary_of("##s", "##ing", "##ed", "Ġ", "▁", "café")
    assert "café" in get_tokens(wordpiece)
    sentencepiece = vocabulary_of("▁the", "▁Ġ", "Ġ", "▁a", "é")
    assert get_tokens(sentencepiece) == [" the", " Ġ", "Ġ", " a", "é"]


def test_added_special_tokens_are_entries_but_no_words_of_tasks():
    tokenizer = vocabulary_of("cat", "dog", bos_token="<s>", additional_special_tokens=["turn"])
    tokenizer.add_tokens(["emu"])
    assert get_alpha_tokens(tokenizer) == ["cat", "dog", "turn", "emu"]
    assert vocabulary_words(tokenizer, "alpha") == ["cat", "dog", "emu"]


def test_a_task_without_words_is_refused():
    assert get_alpha_tokens(vocabulary_of("1", "2")) == []
    with pytest.raises(VocabularyError, match="tokenizer"):
        vocabulary_words(vocabulary_of("1", "2"), "alpha")


def test_the_filter_sees_texts(byte_level):
    assert get_tokens(byte_level, str.isupper) == [t for t in get_tokens(byte_level) if t.isupper()] != []
    assert get_tokens(byte_level, lambda text: text == " cat", replace_special_chars=False) == ["Ġcat"]


def test_letters():
    assert ALL_ALPHA_LETTERS == LETTERS + LETTERS_UPPER
    assert (LETTERS_UPPER[0], LETTERS_UPPER[-1], len(LETTERS_UPPER)) == ("A", "Z", 26)


def test_common_words_are_lower_case_and_frequent(byte_level, wordpiece):
    words = get_common_word_tokens(byte_level, only_start_of_word=True)
    assert {" cat", " has", " the"} <= set(words)
    assert " Dog" not in words
    assert all(word.startswith(" ") for word in words)
    assert "cat" in get_common_word_tokens(byte_level, only_start_of_word=False)
    assert {"cat", "has", "the"} <= set(get_common_word_tokens(wordpiece))


@pytest.mark.parametrize("threshold", [1, 10, 1000.0])
def test_the_threshold_counts_occurrences_in_a_million_words(threshold):
    common = get_common_words(threshold)
    for word, rate in list(common.items())[:50] + list(common.items())[-50:]:
        # `word_frequency` rounds to three digits
        assert rate == pytest.approx(1e6 * wordfreq.word_frequency(word, "en"), rel=5e-3)
        assert rate >= threshold
    assert list(common.values()) == sorted(common.values(), reverse=True)
    assert "zyzzyva" not in common


def test_a_threshold_that_no_word_reaches_is_refused(byte_level):
    assert get_common_word_tokens(byte_level, threshold=1_000_000) == []
    with pytest.raises(VocabularyError):
        vocabulary_words(byte_level, "common", threshold=1_000_000)


def test_the_most_common_words_keep_their_order():
    words = [" zyzzyva", " Kitchen", "the", " cat", "qzx"]
    by_frequency = sorted(words, key=lambda w: -wordfreq.word_frequency(w.strip().lower(), "en"))
    for count in range(1, 6):
        assert most_common(words, count) == [w for w in words if w in by_frequency[:count]]


def test_groups_and_pairs_share_their_ending():
    groups = group_words_by_ending_and_length(["bat", "cat", "a", "hats", "dog"])
    assert groups == {3: {"at": ["bat", "cat"]}, 4: {}}
    pairs = get_same_ending_word_pairs_of_len(5)
    assert len(pairs) > 100
    assert all(a[1:] == b[1:] and a[0] != b[0] and len(a) == 5 for a, b in pairs)
    assert get_same_ending_word_pairs_of_len(40) == []
