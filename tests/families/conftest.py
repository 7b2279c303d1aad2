"""Six families of models and tokenizers: a tokenizer trained on few words, a model of three small layers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertTokenizerFast,
    Gemma2Config,
    Gemma2ForCausalLM,
    GemmaTokenizerFast,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2TokenizerFast,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GPTNeoXTokenizerFast,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaTokenizerFast,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
)

from absorb_pl.words import LETTERS

KNOWN = [
    "cat",
    "dog",
    "kitchen",
    "apple",
    "banana",
    "cherry",
    "eagle",
    "forest",
    "garden",
    "house",
    "island",
    "jungle",
    "knife",
    "lemon",
    "queen",
    "river",
]
TINY = {"vocab_size": 2000, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
SMALL = TINY | {"intermediate_size": 64, "max_position_embeddings": 128}


def corpus():
    for word in KNOWN:
        yield from [f" {word} has the first letter: {word[0].upper()}\n", word] * 3
    for letter in LETTERS:
        yield from [f"word: {letter.upper()} {letter} z{letter}\n"] * 3


def trained(backend, trainer):
    backend.train_from_iterator(corpus(), trainer)
    model = json.loads(backend.to_str())["model"]
    return {"vocab": model["vocab"], "merges": [tuple(pair) for pair in model.get("merges", [])]}


def byte_level_parts():
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|endoftext|>", "<|padding|>"]
    return trained(backend, trainers.BpeTrainer(initial_alphabet=alphabet, special_tokens=special, show_progress=False))


def sentencepiece_parts(*special):
    backend = Tokenizer(models.BPE(byte_fallback=True))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex("[:\n]"), behavior="isolated"),
            pre_tokenizers.Split("▁", behavior="merged_with_next"),
        ]
    )
    special = [*special, *(f"<0x{byte:02X}>" for byte in range(256))]
    return trained(backend, trainers.BpeTrainer(special_tokens=special, show_progress=False))


def mistral_tokenizer():
    """As Mistral 7B's: a `▁` before every text, also before one that begins with a space."""
    parts = sentencepiece_parts("<unk>", "<s>", "</s>")
    backend = Tokenizer(models.BPE(**parts, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def bert_tokenizer():
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    parts = trained(backend, trainers.WordPieceTrainer(special_tokens=special, show_progress=False))
    return BertTokenizerFast(vocab=parts["vocab"])


TOKENIZERS = {
    "gpt2": lambda: GPT2TokenizerFast(**byte_level_parts()),
    "gpt_neox": lambda: GPTNeoXTokenizerFast(**byte_level_parts()),
    "llama": lambda: LlamaTokenizerFast(**sentencepiece_parts("<unk>", "<s>", "</s>")),
    "mistral": mistral_tokenizer,
    "gemma2": lambda: GemmaTokenizerFast(**sentencepiece_parts("<pad>", "<eos>", "<bos>", "<unk>")),
    "bert": bert_tokenizer,
}
MODELS = {
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=2000, n_embd=32, n_layer=3, n_head=2, n_positions=128)),
    "gpt_neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SMALL)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SMALL)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SMALL, num_key_value_heads=1, sliding_window=5)),
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**SMALL, num_key_value_heads=1, head_dim=16, sliding_window=4)),
    "bert": lambda: BertForMaskedLM(BertConfig(**SMALL)),
}


@pytest.fixture(scope="session")
def known_words() -> list[str]:
    """Words that are one token each, the rarest aside."""
    return list(KNOWN)


@pytest.fixture(scope="session")
def family_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Gives the folder of a family's small model in Hugging Face format, with its tokenizer."""
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            torch.manual_seed(0)
            made[name] = tmp_path_factory.mktemp(name)
            TOKENIZERS[name]().save_pretrained(made[name])
            model: Any = MODELS[name]()
            for parameter in model.parameters():
                torch.nn.init.normal_(parameter, std=0.2)
            model.save_pretrained(made[name])
        return made[name]

    return folder
