import json
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizer, PreTrainedTokenizerFast

from absorb_pl.errors import ContextLengthError, PromptError
from absorb_pl.words import (
    SpellingPrompt,
    TokenizedPrompts,
    create_icl_prompt,
    first_letter_formatter,
    tokenize_prompts,
)
from absorb_pl.words.positions import bos_token_id, prepends_bos

LETTER = {
    "base_template": "{word} has the first letter:",
    "answer_formatter": first_letter_formatter(capitalize=True),
}


def characters(*merges, kind=PreTrainedTokenizerFast, **special):
    """A tokenizer of single characters, but for the merges given."""
    tokens = [*dict.fromkeys("<s> <pad> cat:dogs\n-".replace("<s> <pad> ", "") + " "), "<s>", "<pad>"]
    tokens += [a + b for a, b in merges]
    backend = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, list(merges)))
    return kind(tokenizer_object=backend, **special)


class SlowTokenizer(PreTrainedTokenizer):
    """Splits at spaces, and so merges a word with the colon behind it."""

    def __init__(self):
        self.known = {}
        super().__init__(bos_token="<s>")

    @property
    def vocab_size(self):
        return len(self.known)

    def get_vocab(self):
        return dict(self.known)

    def _tokenize(self, text, **_):
        return text.split()

    def _convert_token_to_id(self, token):
        return self.known.setdefault(token, len(self.known))

    def _convert_id_to_token(self, index):
        return {i: t for t, i in self.known.items()}.get(index, "<s>")


def test_the_golden_word_stands_at_minus_six(golden, golden_words):
    model, folder = golden
    case = json.loads((folder / "case_attribution.json").read_text())
    prompts = [
        create_icl_prompt(word, golden_words[:8], shuffle_examples=False, **LETTER) for word in golden_words[8:40]
    ]
    tokenized = tokenize_prompts(model.tokenizer, prompts, prepend_bos=True, max_length=model.cfg.n_ctx)
    assert torch.equal(tokenized.word_positions - tokenized.lengths, torch.full((32,), case["position"]))
    for row, prompt in enumerate(prompts):
        length = int(tokenized.lengths[row])
        assert torch.equal(tokenized.input_ids[row, :length], model.to_tokens(prompt.base)[0])
        at_word = tokenized.input_ids[row, tokenized.word_positions[row]]
        assert model.tokenizer.decode([at_word]) == prompt.word


@pytest.mark.parametrize(
    ("kind", "word", "last_piece", "from_end"),
    [
        ("byte_level", " kitchen", "chen", None),
        ("byte_level", " cat", "Ġcat", None),
        ("byte_level", " élan", "ĠÃ©lan", None),
        ("byte_level", " dög", "g", None),
        ("sentencepiece", " kitchen", "chen", 6),
        ("sentencepiece", " cats", "s", 6),
        ("sentencepiece", " cat", "▁cat", 6),
        ("wordpiece", "kitchen", "##chen", 6),
        ("wordpiece", "cats", "##s", 6),
        ("wordpiece", "cat", "cat", 6),
    ],
)
@pytest.mark.parametrize("prepend_bos", [True, False])
def test_the_position_is_the_word_s_last_token(kind, word, last_piece, from_end, prepend_bos, request):
    tokenizer = request.getfixturevalue(kind)
    examples = [word.replace(word.strip(), other) for other in ("the", "Dog", "has")]
    prompt = create_icl_prompt(word, examples, seed=0, **LETTER)
    tokenized = tokenize_prompts(tokenizer, [prompt], prepend_bos=prepend_bos)
    position = int(tokenized.word_positions[0])
    ids = tokenized.input_ids[0].tolist()
    assert tokenizer.convert_ids_to_tokens(ids[position]) == last_piece
    assert (ids[0] == tokenizer.bos_token_id) == prepend_bos
    assert tokenizer.bos_token_id not in ids[1:]
    if from_end is not None:
        assert len(ids) - position == from_end


def test_a_tokenizer_that_adds_its_own_bos_does_not_double_it(golden):
    tokenizer = golden[0].tokenizer
    assert tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    ids = tokenize_prompts(tokenizer, [SpellingPrompt(" a:", "", " a", 2)], prepend_bos=True).input_ids[0]
    assert (ids == tokenizer.bos_token_id).sum() == 1


def test_a_token_that_spans_the_word_s_end_is_found_by_its_offsets():
    tokenizer = characters(("c", "a"), ("ca", "t"), ("cat", ":"), bos_token="<s>")
    prompts = [SpellingPrompt("dog: cat:", "", "cat", 8), SpellingPrompt("cat: dog:", "", "dog", 8)]
    tokenized = tokenize_prompts(tokenizer, prompts, prepend_bos=True)
    at_word = [tokenized.input_ids[i, tokenized.word_positions[i]].item() for i in range(2)]
    assert tokenizer.convert_ids_to_tokens(at_word) == ["cat:", "g"]


def test_a_slow_tokenizer_that_merges_over_the_word_s_end_is_refused():
    with pytest.raises(PromptError, match="fast tokenizer"):
        tokenize_prompts(SlowTokenizer(), [SpellingPrompt("the cat: x", "", "cat", 7)], prepend_bos=False)


def test_a_slow_tokenizer_that_keeps_words_apart_is_fine():
    prompt = SpellingPrompt("the cat : x", "", "cat", 7)
    assert tokenize_prompts(SlowTokenizer(), [prompt], prepend_bos=False).word_positions.tolist() == [1]


def test_a_word_that_the_tokenizer_drops_is_refused():
    backend = Tokenizer(models.WordLevel({"a": 0, "<s>": 1}, unk_token="<s>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<s>")
    with pytest.raises(PromptError, match="part of a token"):
        tokenize_prompts(tokenizer, [SpellingPrompt("  a", "", " ", 1)], prepend_bos=False)


def test_padding_and_lengths(sentencepiece):
    words = [" cat", " kitchen", " cats"]
    prompts = [create_icl_prompt(word, [" the"], **LETTER) for word in words]
    tokenized = tokenize_prompts(sentencepiece, prompts, prepend_bos=True)
    assert len(tokenized) == 3
    assert tokenized.lengths.tolist() == tokenized.attention_mask.sum(1).tolist()
    assert tokenized.lengths.tolist() == [n + int(tokenized.lengths[0]) for n in (0, 1, 1)]
    assert tokenized.input_ids[0, -1] == sentencepiece.eos_token_id
    for row, prompt in enumerate(prompts):
        alone = tokenize_prompts(sentencepiece, [prompt], prepend_bos=True)
        assert torch.equal(tokenized.input_ids[row][tokenized.attention_mask[row]], alone.input_ids[0])
        assert tokenized.word_positions[row] == alone.word_positions[0]


@pytest.mark.parametrize(
    "rows", [[2, 0], [True, False, True], slice(0, 3, 2), torch.tensor([True, False, True]), torch.tensor([0])]
)
def test_selected_rows_lose_padding_they_do_not_need(rows):
    lengths = torch.tensor([2, 4, 3])
    mask = torch.arange(4) < lengths[:, None]
    ids = torch.arange(12).reshape(3, 4)
    chosen = TokenizedPrompts(ids, mask, lengths, lengths - 1).select(rows)
    index = torch.arange(3)[rows]
    assert torch.equal(chosen.lengths, lengths[index])
    assert torch.equal(chosen.word_positions, lengths[index] - 1)
    assert torch.equal(chosen.input_ids, ids[index][:, : int(lengths[index].max())])
    assert torch.equal(chosen.attention_mask, mask[index][:, : int(lengths[index].max())])
    assert chosen.to("cpu").input_ids.device.type == "cpu"


def test_selecting_nothing_gives_nothing():
    ids = torch.zeros(2, 3, dtype=torch.long)
    prompts = TokenizedPrompts(ids, ids == 0, torch.tensor([3, 3]), torch.tensor([1, 1]))
    assert len(prompts.select([])) == 0


def test_a_prompt_over_the_limit_is_refused_with_its_length_and_word(sentencepiece):
    prompts = [create_icl_prompt(word, [" the"], **LETTER) for word in (" cat", " kitchen", " cats")]
    tokenized = tokenize_prompts(sentencepiece, prompts, prepend_bos=True)
    longest = int(tokenized.lengths.max())
    assert tokenize_prompts(sentencepiece, prompts, prepend_bos=True, max_length=longest).lengths.max() == longest
    with pytest.raises(
        ContextLengthError, match=rf"`max_length` was {longest - 1}, expected at least {longest}.*kitchen"
    ):
        tokenize_prompts(sentencepiece, prompts, prepend_bos=True, max_length=longest - 1)


def test_a_handmade_prompt_needs_its_word_exactly_once():
    tokenizer = characters(eos_token="<s>")
    tokenized = tokenize_prompts(tokenizer, [SpellingPrompt("dog: cat:", "", "cat")], prepend_bos=False)
    assert tokenized.word_positions.tolist() == [7]
    for base, word in [("cat: cat:", "cat"), ("dog:", "cat"), ("dog:", "")]:
        with pytest.raises(PromptError, match="exactly once"):
            tokenize_prompts(tokenizer, [SpellingPrompt(base, "", word)], prepend_bos=False)


@pytest.mark.parametrize("end", [0, 5, -1])
def test_a_word_end_outside_the_prompt_is_refused(end):
    with pytest.raises(PromptError, match="word_end"):
        tokenize_prompts(characters(), [SpellingPrompt("cat:", "", "cat", end)], prepend_bos=False)


def test_no_prompts_are_refused():
    with pytest.raises(PromptError, match="prompts"):
        tokenize_prompts(characters(), [], prepend_bos=False)


def test_a_missing_bos_token_is_refused():
    assert bos_token_id(characters(bos_token="<s>")) == characters().get_vocab()["<s>"]
    with pytest.raises(PromptError, match="prepend_bos"):
        tokenize_prompts(characters(), [SpellingPrompt("cat:", "", "cat", 3)], prepend_bos=True)


def test_whether_a_model_prepends_bos_follows_its_settings_and_tokenizer(golden):
    model = golden[0]
    assert prepends_bos(model)
    assert model.to_tokens("a")[0, 0] == model.tokenizer.bos_token_id
    assert not prepends_bos(SimpleNamespace(cfg=SimpleNamespace(default_prepend_bos=False), tokenizer=None))
    without_bos = SimpleNamespace(cfg=SimpleNamespace(default_prepend_bos=True), tokenizer=characters())
    assert not prepends_bos(without_bos)
