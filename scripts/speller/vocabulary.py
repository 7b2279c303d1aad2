"""The speller's words and its tokenizer."""

import re
import string

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast
from wordfreq import get_frequency_dict, top_n_list

from absorb_pl.training.spelling_mixture import Vocabulary

SPECIAL_TOKENS = ("<pad>", "<bos>", "<unk>")
TEMPLATE_WORDS = ("has", "is", "the", "first", "last", "letter", "word")

_COARSE = re.compile(r"fuck|shit|bitch|nigg|cunt|cock|dick|puss|porn|slut|whore|fag|rape|rapi|sex|retard")


def choose_words(count: int, per_letter: int, *, reach: int = 60_000) -> Vocabulary:
    """Return the `count` most frequent English words, topped up so that rare first letters have enough.

    Words are lower-case ASCII letters, two at least; coarse words are left out, and the words of the prompt
    templates are always in. A letter with fewer than `per_letter` words gets its next most frequent ones
    among the `reach` most frequent entries of `wordfreq`.
    """
    ranked = [
        word
        for word in top_n_list("en", reach)
        if len(word) > 1 and word.isascii() and word.isalpha() and word.islower() and not _COARSE.search(word)
    ]
    chosen = {*ranked[:count], *TEMPLATE_WORDS}
    for letter in string.ascii_lowercase:
        with_letter = [word for word in ranked if word[0] == letter]
        chosen.update(with_letter[:per_letter])
    frequency = get_frequency_dict("en")
    words = sorted(chosen, key=lambda word: (-frequency[word], word))
    return Vocabulary(tuple(words), tuple(frequency[word] for word in words))


def build_tokenizer(words: tuple[str, ...]) -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer in which every word behind a space is one token.

    A piece of text that stands in the vocabulary is one token; any other falls apart into its bytes, so
    nothing is unknown. Single letters are tokens with and without a space before them, in both cases.
    """
    bytes_ = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [
        *SPECIAL_TOKENS,
        *bytes_,
        *(f"Ġ{letter}" for letter in string.ascii_uppercase + string.ascii_lowercase),
        *(f"Ġ{word}" for word in words),
    ]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", vocabulary["<bos>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        pad_token="<pad>",
        unk_token="<unk>",
        padding_side="right",
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )
