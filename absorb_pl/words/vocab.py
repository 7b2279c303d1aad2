"""Words that are single tokens of a tokenizer, and how common they are in English.

Names, arguments and defaults of `get_…` and `group_…` are those of `sae_spelling.vocab`, the released code of arXiv
2409.14507. It counts words in the Brown corpus; here `wordfreq` says how common a word is.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import cache

from transformers import PreTrainedTokenizerBase

from absorb_pl.errors import VocabularyError
from absorb_pl.ranges import Count, NotNegative, check_ranges

LETTERS = "abcdefghijklmnopqrstuvwxyz"
"""The letters in lower case."""
LETTERS_UPPER = LETTERS.upper()
"""The letters in upper case."""
ALL_ALPHA_LETTERS = LETTERS + LETTERS_UPPER
"""The letters in both cases."""

_ALPHA = re.compile("[a-zA-Z]+")
_MARKED = re.compile("Ġ|▁|##")
_RAW_BYTE = re.compile("<0x[0-9A-Fa-f]{2}>")


def get_tokens(
    tokenizer: PreTrainedTokenizerBase,
    filter: Callable[[str], bool] = lambda _text: True,
    replace_special_chars: bool = True,
) -> list[str]:
    """List every entry of the vocabulary that passes a filter, in the order of their ids.

    The filter sees an entry as text: the markers `Ġ` of byte-level tokenizers and `▁` of SentencePiece ones are
    spaces, bytes are decoded (`<0x6A>` is `j`), and a WordPiece continuation keeps its `##`, since it is no text that
    could stand by itself. Entries of equal text, such as parts of characters, stand as often as they occur.
    `ordinary_tokens` gives texts once each.

    Args:
        tokenizer: A Hugging Face tokenizer.
        filter: Says of an entry's text whether to keep it.
        replace_special_chars: Whether to return texts; otherwise entries as the vocabulary writes them.

    Returns:
        One text or entry of each id that passes.

    Example:
        >>> from tokenizers import Tokenizer, models
        >>> from transformers import PreTrainedTokenizerFast
        >>> backend = Tokenizer(models.WordLevel({"<s>": 0, "▁cat": 1, "▁": 2}, unk_token="<s>"))
        >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", unk_token="<s>")
        >>> get_tokens(tokenizer)
        ['<s>', ' cat', ' ']
    """
    to_text = _text_reader(_ordinary_entries(tokenizer))
    entries = [(entry, to_text(entry)) for entry in _entries(tokenizer)]
    return [text if replace_special_chars else entry for entry, text in entries if filter(text)]


def ordinary_tokens(
    tokenizer: PreTrainedTokenizerBase, filter: Callable[[str], bool] = lambda _text: True
) -> list[str]:
    """List the texts that ordinary tokens stand for, each once, in the order of their ids.

    Special tokens and raw bytes (`<0x6A>`) are no ordinary tokens. Tasks take their words from here.

    Args:
        tokenizer: A Hugging Face tokenizer.
        filter: Says of a text, as in `get_tokens`, whether to keep it.

    Returns:
        The texts.

    Raises:
        VocabularyError: If none passes.

    Example:
        >>> from tokenizers import Tokenizer, models
        >>> from transformers import PreTrainedTokenizerFast
        >>> backend = Tokenizer(models.WordLevel({"<s>": 0, "▁cat": 1, "▁": 2}, unk_token="<s>"))
        >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", unk_token="<s>")
        >>> ordinary_tokens(tokenizer)
        [' cat', ' ']
    """
    entries = _ordinary_entries(tokenizer)
    found = list(dict.fromkeys(text for text in map(_text_reader(entries), entries) if filter(text)))
    if not found:
        raise VocabularyError(
            "tokenizer",
            found,
            expected="a vocabulary with fitting tokens",
            remedy="Use a filter that keeps some.",
        )
    return found


def get_alpha_tokens(
    tokenizer: PreTrainedTokenizerBase,
    allow_leading_space: bool = True,
    replace_special_chars: bool = True,
) -> list[str]:
    """List the entries made of the letters a to z in either case: the words of arXiv 2409.14507, section 3.

    Args:
        tokenizer: A Hugging Face tokenizer.
        allow_leading_space: Whether one space may stand before the letters.
        replace_special_chars: As in `get_tokens`.

    Returns:
        The entries in the order of their ids, as `get_tokens` gives them.

    Example:
        >>> from tokenizers import Tokenizer, models
        >>> from transformers import PreTrainedTokenizerFast
        >>> backend = Tokenizer(models.WordLevel({"▁cat": 0, "dog": 1, "x2": 2, "##ing": 3}))
        >>> get_alpha_tokens(PreTrainedTokenizerFast(tokenizer_object=backend))
        [' cat', 'dog']
    """
    return get_tokens(
        tokenizer,
        lambda text: bool(_ALPHA.fullmatch(text.removeprefix(" ") if allow_leading_space else text)),
        replace_special_chars,
    )


def get_common_word_tokens(
    tokenizer: PreTrainedTokenizerBase,
    only_start_of_word: bool = True,
    replace_special_chars: bool = True,
    threshold: NotNegative = 10,
) -> list[str]:
    """List the entries that are common English words in lower case.

    Args:
        tokenizer: A Hugging Face tokenizer.
        only_start_of_word: Whether an entry must begin a word, which is to say carry a leading space; in
            vocabularies that mark no spaces, every entry that is no continuation does.
        replace_special_chars: As in `get_tokens`.
        threshold: Least number of occurrences in a million words, by `wordfreq`'s English list. The
            published default of 10 occurrences in the Brown corpus (1.2 million words) is 8.6 in a million.

    Returns:
        The entries in the order of their ids, as `get_tokens` gives them.

    Example:
        >>> from tokenizers import Tokenizer, models
        >>> from transformers import PreTrainedTokenizerFast
        >>> backend = Tokenizer(models.WordLevel({"▁cat": 0, "dog": 1, "▁zyzzyva": 2}))
        >>> get_common_word_tokens(PreTrainedTokenizerFast(tokenizer_object=backend))
        [' cat']
    """
    check_ranges(get_common_word_tokens, locals())
    common = get_common_words(threshold)
    needs_space = only_start_of_word and marks_leading_spaces(tokenizer)

    def is_common_word(text: str) -> bool:
        return text.removeprefix(" ") in common and (text.startswith(" ") or not needs_space)

    return get_tokens(tokenizer, is_common_word, replace_special_chars)


def marks_leading_spaces(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Tell whether any word of the vocabulary carries a leading space (WordPiece vocabularies have none).

    Example:
        >>> from tokenizers import Tokenizer, models
        >>> from transformers import PreTrainedTokenizerFast
        >>> backend = Tokenizer(models.WordLevel({"cat": 0, "##s": 1}))
        >>> marks_leading_spaces(PreTrainedTokenizerFast(tokenizer_object=backend))
        False
    """
    return any(text.startswith(" ") for text in get_alpha_tokens(tokenizer))


def get_common_words(threshold: NotNegative = 10) -> dict[str, float]:
    """Give the English words of the letters a to z that are at least this common, most frequent first.

    Args:
        threshold: Least number of occurrences in a million words, by `wordfreq`'s English list.

    Returns:
        Occurrences in a million words, by word in lower case.

    Example:
        >>> list(get_common_words(10_000))[:3]
        ['the', 'to', 'and']
    """
    check_ranges(get_common_words, locals())
    common = {word: rate for word, rate in _rates().items() if rate >= threshold and _ALPHA.fullmatch(word)}
    return dict(sorted(common.items(), key=lambda item: (-item[1], item[0])))


def most_common(words: Sequence[str], count: Count) -> list[str]:
    """Keep the words that are most frequent in English, in the order given.

    Frequency is that of the word in lower case without white space around it, by `wordfreq`; of equally
    frequent words the earlier ones are kept.

    Args:
        words: The words.
        count: How many to keep.

    Returns:
        At most `count` words.

    Example:
        >>> most_common([" zyzzyva", " cat", " The"], 2)
        [' cat', ' The']
    """
    check_ranges(most_common, locals())
    rates = _rates()
    ranked = sorted(range(len(words)), key=lambda i: -rates.get(words[i].strip().lower(), 0.0))
    return [words[i] for i in sorted(ranked[:count])]


def group_words_by_ending_and_length(words: Iterable[str]) -> dict[int, dict[str, list[str]]]:
    """Group words that differ in nothing but their first letter.

    Args:
        words: The words; those of one letter are left out.

    Returns:
        Words by length and by all that follows their first letter, groups of one left out.

    Example:
        >>> group_words_by_ending_and_length(["union", "onion", "cat", "hat", "dog"])
        {5: {'nion': ['union', 'onion']}, 3: {'at': ['cat', 'hat']}}
    """
    groups: dict[int, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for word in words:
        if len(word) > 1:
            groups[len(word)][word[1:]].append(word)
    return {
        length: {ending: group for ending, group in by_ending.items() if len(group) > 1}
        for length, by_ending in groups.items()
    }


def get_same_ending_word_pairs_of_len(length: Count) -> list[tuple[str, str]]:
    """Pair common words of one length that differ in their first letter only.

    Args:
        length: Number of letters.

    Returns:
        From each group of `group_words_by_ending_and_length` the two most frequent words.

    Example:
        >>> ("would", "could") in get_same_ending_word_pairs_of_len(5)
        True
    """
    check_ranges(get_same_ending_word_pairs_of_len, locals())
    groups = group_words_by_ending_and_length(get_common_words())
    return [(group[0], group[1]) for group in groups.get(length, {}).values()]


@cache
def _rates() -> dict[str, float]:
    import wordfreq  # takes more than a second, and most commands do without

    return {word: 1e6 * share for word, share in wordfreq.get_frequency_dict("en", wordlist="best").items()}


def _entries(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Entries by id; `get_vocab` itself comes in another order at each call."""
    ids = tokenizer.get_vocab()
    return sorted(ids, key=ids.__getitem__)


def _ordinary_entries(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    special = set(tokenizer.all_special_tokens) | {
        token.content for token in tokenizer.added_tokens_decoder.values() if token.special
    }
    return [entry for entry in _entries(tokenizer) if entry not in special and not _RAW_BYTE.fullmatch(entry)]


def _text_reader(tokens: Sequence[str]) -> Callable[[str], str]:
    """Choose how to read tokens as text by the marker that is the most frequent among them."""
    markers = Counter(match[0] for token in tokens if (match := _MARKED.match(token)))
    marker = markers.most_common(1)[0][0] if markers else "##"
    if marker == "Ġ":
        return _read_byte_level
    return _read_sentencepiece if marker == "▁" else str


def _read_sentencepiece(token: str) -> str:
    if _RAW_BYTE.fullmatch(token):
        return bytes([int(token[3:5], 16)]).decode("utf-8", errors="replace")
    return token.replace("▁", " ")


def _read_byte_level(token: str) -> str:
    bytes_of = _byte_alphabet()
    if any(character not in bytes_of for character in token):
        return token
    return bytes(bytes_of[character] for character in token).decode("utf-8", errors="replace")


@cache
def _byte_alphabet() -> dict[str, int]:
    """Map characters of byte-level BPE (GPT-2) to their bytes; printable bytes stand for themselves."""
    printable = [b for b in range(256) if chr(b).isprintable() and chr(b) != " " and b not in (0xA0, 0xAD)]
    hidden = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + n): b for n, b in enumerate(hidden)}
