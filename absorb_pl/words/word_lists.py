"""The words that a task is about: a tokenizer's own, common English ones, or a list."""

from collections.abc import Sequence
from typing import Literal

from transformers import PreTrainedTokenizerBase

from absorb_pl.errors import VocabularyError
from absorb_pl.ranges import Count, NotNegative, check_ranges
from absorb_pl.words.vocab import (
    get_alpha_tokens,
    get_common_word_tokens,
    get_common_words,
    marks_leading_spaces,
    ordinary_tokens,
)

Vocabulary = Literal["alpha", "common", "words"]
"""`alpha`: all tokens made of letters; `common`: tokens that are common words; `words`: common words of any number of
tokens."""


def vocabulary_words(
    tokenizer: PreTrainedTokenizerBase,
    vocabulary: Vocabulary,
    *,
    only_start_of_word: bool = False,
    threshold: NotNegative = 10,
    max_tokens_per_word: Count | None = None,
) -> list[str]:
    """List the words of a vocabulary as they stand in a prompt.

    Args:
        tokenizer: The model's tokenizer.
        vocabulary: `alpha` takes all tokens made of letters (the choice of arXiv 2409.14507), `common` the tokens
            that are common English words, `words` all common English words, however many tokens they have, that
            the tokenizer knows, at least by their parts.
        only_start_of_word: For tokens, whether to leave out those without a leading space, where the vocabulary
            marks spaces. Words of `words` always carry one there.
        threshold: For `common` and `words`, least number of occurrences in a million words.
        max_tokens_per_word: Leave out words of more tokens than this; None for no limit.

    Returns:
        Tokens in the order of their ids, or words with the most frequent first.

    Raises:
        VocabularyError: If there are none, or `vocabulary` or the limit is another value.

    Example:
        >>> from tokenizers import Tokenizer, models
        >>> from transformers import PreTrainedTokenizerFast
        >>> backend = Tokenizer(models.WordLevel({"▁cat": 0, "dog": 1, "▁": 2}, unk_token="▁"))
        >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
        >>> vocabulary_words(tokenizer, "alpha", only_start_of_word=True)
        [' cat']
        >>> vocabulary_words(tokenizer, "words", threshold=10_000)[:3]
        [' the', ' to', ' and']
    """
    check_ranges(vocabulary_words, locals())
    if vocabulary not in ("alpha", "common", "words"):
        raise VocabularyError(
            "vocabulary", vocabulary, expected="'alpha', 'common' or 'words'", remedy="Name one of the three."
        )
    if vocabulary == "words":
        words = as_in_prompts(tokenizer, list(get_common_words(threshold)))
        unknown = set(unknown_words(tokenizer, words))
        words = [word for word in words if word not in unknown]
    elif vocabulary == "common":
        common = get_common_word_tokens(tokenizer, only_start_of_word=only_start_of_word, threshold=threshold)
        words = ordinary_tokens(tokenizer, set(common).__contains__)
    else:
        words = ordinary_tokens(tokenizer, set(get_alpha_tokens(tokenizer)).__contains__)
        if only_start_of_word and marks_leading_spaces(tokenizer):
            words = [word for word in words if word.startswith(" ")]
    if max_tokens_per_word is not None:
        counts = token_counts(tokenizer, words)
        words = [word for word, count in zip(words, counts, strict=True) if count <= max_tokens_per_word]
    return words


def listed_words(
    tokenizer: PreTrainedTokenizerBase, words: Sequence[str], *, max_tokens_per_word: Count | None = None
) -> list[str]:
    """Take a list of words as they stand in a prompt.

    Args:
        tokenizer: The model's tokenizer.
        words: The words; white space around them does not count.
        max_tokens_per_word: Refuse words of more tokens than this; None for no limit.

    Returns:
        The words in the order given, with a leading space where the vocabulary marks spaces.

    Raises:
        VocabularyError: If a word is empty, stands twice, is unknown to the tokenizer or has too many tokens.

    Example:
        >>> from tokenizers import Tokenizer, models
        >>> from transformers import PreTrainedTokenizerFast
        >>> backend = Tokenizer(models.WordLevel({"▁cat": 0, "▁": 1}, unk_token="▁"))
        >>> listed_words(PreTrainedTokenizerFast(tokenizer_object=backend), ["cat", "New York"])
        [' cat', ' New York']
    """
    check_ranges(listed_words, locals())
    bare = [word.strip() for word in words]
    seen: set[str] = set()
    for number, word in enumerate(bare):
        if not word or word in seen:
            raise VocabularyError(
                "words",
                words[number],
                expected="words that are not empty, each once",
                remedy=f"Drop entry {number + 1} of the list.",
            )
        seen.add(word)
    listed = as_in_prompts(tokenizer, bare)
    unknown = unknown_words(tokenizer, listed)
    if unknown:
        raise VocabularyError(
            "words",
            unknown,
            expected="words that the tokenizer knows, at least by their parts",
            remedy="Leave these out: the model would see an unknown token.",
        )
    if max_tokens_per_word is not None:
        counts = dict(zip(bare, token_counts(tokenizer, listed), strict=True))
        long = [word for word, count in counts.items() if count > max_tokens_per_word]
        if long:
            raise VocabularyError(
                "max_tokens_per_word",
                max_tokens_per_word,
                expected=f"at least {max(counts.values())}, the tokens of the longest word",
                remedy=f"Raise it, or leave out {', '.join(map(repr, long))}.",
            )
    return listed


def as_in_prompts(tokenizer: PreTrainedTokenizerBase, words: Sequence[str]) -> list[str]:
    """Write words as they stand in a prompt that begins with them: with a leading space where spaces are marked.

    Byte-level and SentencePiece vocabularies have most words with the space before them (`Ġcat`, `▁cat`);
    WordPiece ones mark the inside of words instead and take words bare.

    Args:
        tokenizer: The model's tokenizer.
        words: The words, without white space around them.

    Example:
        >>> from tokenizers import Tokenizer, models
        >>> from transformers import PreTrainedTokenizerFast
        >>> backend = Tokenizer(models.WordLevel({"cat": 0, "##s": 1}))
        >>> as_in_prompts(PreTrainedTokenizerFast(tokenizer_object=backend), ["cat"])
        ['cat']
    """
    space = " " * marks_leading_spaces(tokenizer)
    return [space + word for word in words]


def token_counts(tokenizer: PreTrainedTokenizerBase, words: Sequence[str]) -> list[int]:
    r"""Count the tokens that each word has after a line end, where words stand in ICL prompts.

    Some SentencePiece tokenizers put a `▁` before a text; counted inside a text, a word has none to spare.

    Args:
        tokenizer: The model's tokenizer.
        words: The words as they stand in a prompt.

    Example:
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> from transformers import PreTrainedTokenizerFast
        >>> backend = Tokenizer(models.WordPiece({"cat": 0, "##s": 1, "[UNK]": 2}, unk_token="[UNK]"))
        >>> backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        >>> token_counts(PreTrainedTokenizerFast(tokenizer_object=backend), ["cat", "cats"])
        [1, 2]
    """
    return [len(ids) for ids in _ids_in_prompts(tokenizer, words)]


def unknown_words(tokenizer: PreTrainedTokenizerBase, words: Sequence[str]) -> list[str]:
    """List the words that a tokenizer reads, wholly or in part, as its unknown token.

    Args:
        tokenizer: The model's tokenizer.
        words: The words as they stand in a prompt.

    Example:
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> from transformers import PreTrainedTokenizerFast
        >>> backend = Tokenizer(models.WordPiece({"cat": 0, "[UNK]": 1}, unk_token="[UNK]"))
        >>> backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        >>> unknown_words(PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]"), ["cat", "猫"])
        ['猫']
    """
    unknown = tokenizer.unk_token_id
    return [word for word, ids in zip(words, _ids_in_prompts(tokenizer, words), strict=True) if unknown in ids]


def _ids_in_prompts(tokenizer: PreTrainedTokenizerBase, words: Sequence[str]) -> list[list[int]]:
    """Token ids of each word after a line end, without those of the line end."""
    texts = ["\n", *(f"\n{word}" for word in words)]
    ids = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
    return [row[len(ids[0]) :] for row in ids[1:]]
