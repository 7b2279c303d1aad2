"""Six families of models and tokenizers, from prompts to cached residuals, against runs of one prompt each."""

import pytest
import torch
from lightning.pytorch import Trainer
from transformers import (
    AutoModel,
    AutoTokenizer,
)

from absorb_pl.data import PromptDataModule
from absorb_pl.data.activation_datamodule import ensure_activations
from absorb_pl.models import has_next_token_logits, load_language_model
from absorb_pl.words import (
    LETTERS,
    TaskConfig,
    answer_token_ids,
    first_letter_task,
    get_alpha_tokens,
    get_tokens,
    tokenize_prompts,
)
from absorb_pl.words.letter_tasks import letter_task_of_words
from absorb_pl.words.positions import prepends_bos
from absorb_pl.words.vocab import ordinary_tokens
from absorb_pl.words.word_lists import token_counts

FAMILIES = ["gpt2", "gpt_neox", "llama", "mistral", "gemma2", "bert"]
LONG = ["catdog", "housekitchen", "riverbananas", "zebra"]
HOOKS = ["blocks.0.hook_resid_pre", "blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]
BEGIN = {"gpt2": ["<|endoftext|>"], "gpt_neox": [], "llama": ["<s>"], "mistral": ["<s>"], "gemma2": ["<bos>"]}
"""What TransformerLens puts before a text: nothing for GPT-NeoX, which was trained without."""


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, family_folder):
    """Name, folder and loaded model of a family, its tokenizer as `AutoTokenizer` reads it from the folder."""
    folder = family_folder(request.param)
    return request.param, folder, load_language_model(str(folder))


def direct_run(family, prompt):
    """Ids of one prompt and hidden states at its word, by Hugging Face alone."""
    name, folder, _ = family
    tokenizer = AutoTokenizer.from_pretrained(folder)
    encoded = tokenizer(prompt.base, add_special_tokens=False, return_offsets_mapping=True)
    ids, spans = encoded["input_ids"], encoded["offset_mapping"]
    place = max(i for i, (start, stop) in enumerate(spans) if start < prompt.word_end <= stop)
    if name == "bert":
        assert tokenizer(prompt.base)["input_ids"] == [tokenizer.cls_token_id, *ids, tokenizer.sep_token_id]
        ids = tokenizer(prompt.base)["input_ids"]
    else:
        begin = tokenizer.convert_tokens_to_ids(BEGIN[name])
        ids, place = [*begin, *ids], place + len(begin) - 1
    model = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        states = model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states
    return ids, place + 1, [state[0, place + 1] for state in states[:3]]


def test_cached_residuals_are_those_of_one_unpadded_prompt(family, known_words, tmp_path):
    model = family[2]
    words = [*LONG, *known_words]
    data = PromptDataModule(model, TaskConfig(words=words, max_icl_examples=2), batch_size=7)
    assert len(set(data.prompts.lengths.tolist())) > 2
    caches = ensure_activations(
        data,
        HOOKS,
        tmp_path,
        "float32",
        lambda callbacks: Trainer(
            accelerator="cpu",
            devices=1,
            callbacks=callbacks,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
        ),
    )
    for row in range(0, len(words), 3):
        ids, place, states = direct_run(family, data.texts[row])
        length = int(data.prompts.lengths[row])
        assert data.prompts.input_ids[row, :length].tolist() == ids
        assert int(data.prompts.word_positions[row]) == place
        for hook, state in zip(HOOKS, states, strict=True):
            cached = caches[hook].rows(torch.tensor([row]))[0]
            assert state.abs().max() > 0.1
            torch.testing.assert_close(cached, state, rtol=1e-5, atol=1e-5 * float(state.abs().max()))


def test_words_end_in_the_token_that_is_read(family, known_words):
    name, _, model = family
    data = PromptDataModule(model, TaskConfig(words=[*LONG, *known_words], max_icl_examples=1))
    counts = token_counts(model.tokenizer, data.task.words)
    assert max(counts) > 1
    assert counts[data.task.words.index(" " * (name != "bert") + "cat")] == 1
    for row, word in enumerate(data.task.words):
        stop = int(data.prompts.word_positions[row]) + 1
        pieces = model.tokenizer.convert_ids_to_tokens(data.prompts.input_ids[row, stop - counts[row] : stop].tolist())
        text = "".join(pieces).replace("##", "")
        assert text.lstrip("Ġ▁") == word.strip()
        assert text[0] in "Ġ▁" or name == "bert"


def test_vocabularies_read_as_text(family, known_words):
    name, _, model = family
    words = get_alpha_tokens(model.tokenizer)
    space = " " * (name != "bert")
    assert {f"{space}{word}" for word in known_words if token_counts(model.tokenizer, [space + word]) == [1]} <= set(
        words
    )
    assert space + "cat" in words
    assert not any(word.strip() in ("CLS", "SEP", "endoftext", "s", "bos", "unk") for word in words if len(word) > 2)
    assert all(word.strip().isascii() and word.strip().isalpha() for word in words)
    assert len(get_tokens(model.tokenizer)) == len(model.tokenizer)
    assert not any(text.startswith("<0x") or "Ġ" in text or "▁" in text for text in ordinary_tokens(model.tokenizer))
    task = first_letter_task(model.tokenizer, only_start_of_word=True)
    assert all(word.startswith(" ") for word in task.words) == (name != "bert")
    assert [task.classes[label] for label in task.labels] == [word.strip()[0].lower() for word in task.words]


@pytest.mark.parametrize("word", ["cat", " cat"])
def test_a_word_at_the_very_start_of_a_text(family, word):
    name, _, model = family
    task = letter_task_of_words([word], max_icl_examples=0)
    prompts = tokenize_prompts(model.tokenizer, task.prompts(seed=0), prepend_bos=prepends_bos(model))
    pieces = model.tokenizer.convert_ids_to_tokens(prompts.input_ids[0].tolist())
    place = int(prompts.word_positions[0])
    marked = {"gpt2": "Ġcat", "gpt_neox": "Ġcat", "gemma2": "▁cat", "llama": "▁cat", "mistral": "▁cat", "bert": "cat"}
    # Llama's and Mistral's tokenizers put a marker before a text, so that there a bare word reads like a spaced one.
    bare = "▁cat" if name in ("llama", "mistral") else "cat"
    assert pieces[place] == (marked[name] if word == " cat" else bare)
    assert pieces[prepends_bos(model) : place] == (["▁"] if (name, word) == ("mistral", " cat") else [])


def test_answers_are_the_tokens_behind_the_colon(family):
    name, _, model = family
    task = first_letter_task(model.tokenizer)
    pieces = model.tokenizer.convert_ids_to_tokens(answer_token_ids(task, model.tokenizer).answers.tolist())
    marker = {"bert": "", "gpt2": "Ġ", "gpt_neox": "Ġ"}.get(name, "▁")
    assert pieces == [marker + (letter if name == "bert" else letter.upper()) for letter in LETTERS]


def test_who_answers_next_tokens_and_what_stands_around_a_prompt(family):
    name, _, model = family
    assert has_next_token_logits(model) == (name != "bert")
    assert prepends_bos(model) == (name != "gpt_neox")
    data = PromptDataModule(model, TaskConfig(words=["cat", "dog"], max_icl_examples=1))
    pieces = model.tokenizer.convert_ids_to_tokens(data.prompts.input_ids[0].tolist())
    first = model.tokenizer.convert_ids_to_tokens(model.to_tokens(data.texts[0].base)[0, 0].item())
    assert pieces[0] == first == (*BEGIN.get(name, ["[CLS]"]), "Ġdog")[0]
    assert pieces[-1] == ("[SEP]" if name == "bert" else ":")
