"""Tiny tokenizers of each kind, and the golden models."""

import json
from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from absorb_pl.models import load_language_model

GOLDEN = Path(__file__).parents[1] / "golden"
WORDS = ["cat", "Dog", "cats", "kitchen", "the"]


@pytest.fixture(scope="session")
def golden_words() -> list[str]:
    return [f" {word}" for word in json.loads((GOLDEN / "words.json").read_text())]


@pytest.fixture(scope="session", params=["gpt2-micro", "gemma2-micro"])
def golden(request):
    """A golden model and its folder."""
    folder = GOLDEN / request.param
    return load_language_model(str(folder)), folder


def letters() -> list[str]:
    return [chr(c) for c in range(ord("a"), ord("z") + 1)] + [chr(c) for c in range(ord("A"), ord("Z") + 1)]


@pytest.fixture(scope="session")
def byte_level():
    """GPT-2's kind: bytes as printable characters, `Ġ` for a leading space, words merged letter by letter."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens, merges = dict.fromkeys(["<bos>", "<pad>", *alphabet]), []
    for word in [*(f"Ġ{w}" for w in ["cat", "Dog", "kit", "Ã©lan", "has", "the"]), "cat", "chen"]:
        for end in range(2, len(word) + 1):
            pair = (word[: end - 1], word[end - 1])
            if word[:end] not in tokens:
                tokens[word[:end]] = None
                merges.append(pair)
    for letter in "ABCDK":
        tokens[f"Ġ{letter}"] = None
        if ("Ġ", letter) not in merges:
            merges.append(("Ġ", letter))
    vocabulary = {token: i for i, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocabulary, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<bos>", pad_token="<pad>")


@pytest.fixture(scope="session")
def sentencepiece():
    """Gemma's kind: `▁` for a leading space, raw-byte tokens for all that is unknown."""
    pieces = ["<unk>", "<s>", "</s>", "<0x0A>", "<0x6A>", "▁", ":", "\n"]
    pieces += ["▁cat", "▁Dog", "▁kit", "chen", "cat", "▁has", "▁the", "▁first", "▁letter", "s"]
    pieces += [f"▁{c}" for c in letters()] + [c for c in letters() if c != "s"]
    vocabulary = [(piece, 0.0 if piece.startswith("<") else -1.0) for piece in pieces]
    backend = Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex("\n"), behavior="isolated"),
            pre_tokenizers.Metaspace(prepend_scheme="first"),
        ]
    )
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.fixture(scope="session")
def wordpiece():
    """BERT's kind: no marker for a leading space, `##` for a continuation, the unknown word as one token."""
    tokens = ["[UNK]", "[CLS]", "[PAD]", "cat", "##s", "Dog", "kit", "##chen", "has", "the", "first", "letter"]
    tokens += [":", *letters()]
    backend = Tokenizer(models.WordPiece({token: i for i, token in enumerate(tokens)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="[CLS]", unk_token="[UNK]", pad_token="[PAD]")


@pytest.fixture(scope="session", params=["byte_level", "sentencepiece", "wordpiece"])
def any_tokenizer(request):
    return request.getfixturevalue(request.param)
