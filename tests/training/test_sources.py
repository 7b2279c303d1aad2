"""Where activations come from, against the same rows read one by one."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Array2D, Dataset, Features, Sequence, Value

from absorb_pl.errors import AbsorbError, ContextLengthError, HookNotFoundError, RangeError, ShapeError
from absorb_pl.models import load_language_model
from absorb_pl.training import CachedActivations, SpellingActivations, TextActivations, WorldActivations
from absorb_pl.training.sources import chunk_rng
from absorb_pl.training.spelling_mixture import TEMPLATES, SpellingMixture, vocabulary_of
from absorb_pl.truth.hierarchy import HIERARCHIES, HierarchyWorld

pytestmark = pytest.mark.usefixtures("_one_thread")

CPU = torch.device("cpu")
HOOKS = ["blocks.0.hook_resid_post", "blocks.1.hook_resid_pre"]


@pytest.fixture(scope="module")
def speller():
    return load_language_model("speller")


@pytest.fixture
def texts(tmp_path):
    """Two documents that fill four contexts of 16 tokens and a bit."""
    words = ["house", "water", "small", "green", "paper", "music", "table", "light"]
    files = []
    for number in range(2):
        file = tmp_path / f"{number}.txt"
        file.write_text("".join(f" {words[(number + step) % len(words)]}" for step in range(33)))
        files.append(str(file))
    return files


def rows_of(model, contexts, hook):
    """Rows of a hook at all tokens, read by TransformerLens itself."""
    _, cache = model.run_with_cache(torch.tensor(contexts), names_filter=[hook])
    return cache[hook]


def test_texts_are_packed_and_read_at_all_tokens_but_the_first(speller, texts, tmp_path):
    source = TextActivations(
        HOOKS, speller, files=texts, context_size=16, contexts_per_chunk=2, cache_dir=tmp_path / "cache"
    )
    tokenizer = speller.tokenizer
    documents = [tokenizer(Path(file).read_text(), add_special_tokens=False)["input_ids"] for file in texts]
    assert [len(document) for document in documents] == [33, 33]
    line = documents[0] + [tokenizer.eos_token_id] * (tokenizer.eos_token_id is not None) + documents[1]
    contexts = [[tokenizer.bos_token_id, *line[first : first + 15]] for first in range(0, len(line) - 14, 15)]
    assert source.num_chunks == len(contexts) // 2 == 2
    assert source.hook_widths == dict.fromkeys(HOOKS, 128)
    chunks = [source.chunk(number, CPU) for number in range(2)]
    for hook in HOOKS:
        expected = rows_of(speller, contexts, hook)[:, 1:].flatten(0, 1)
        found = torch.cat([chunk[hook] for chunk in chunks])
        assert found.shape == expected.shape
        distances = torch.cdist(found.double(), expected.double(), compute_mode="donot_use_mm_for_euclid_dist")
        assert float(distances.min(dim=1).values.max()) < 1e-4
    again = TextActivations(
        HOOKS, speller, files=texts, context_size=16, contexts_per_chunk=2, cache_dir=tmp_path / "elsewhere"
    )
    assert again.identity == source.identity
    assert torch.equal(again.chunk(1, CPU)[HOOKS[0]], chunks[1][HOOKS[0]])


def test_text_comes_from_files_json_lines_and_data_sets_alike(speller, texts, tmp_path):
    documents = [Path(file).read_text() for file in texts]
    lines = tmp_path / "texts.jsonl"
    lines.write_text("".join(json.dumps({"story": document}) + "\n" for document in documents))
    Dataset.from_dict({"text": documents}).save_to_disk(tmp_path / "set")
    settings = {"context_size": 16, "contexts_per_chunk": 2, "cache_dir": tmp_path / "cache"}
    sources = [
        TextActivations(HOOKS[:1], speller, files=texts, **settings),
        TextActivations(HOOKS[:1], speller, files=[str(lines)], column="story", **settings),
        TextActivations(HOOKS[:1], speller, dataset=str(tmp_path / "set"), **settings),
    ]
    rows = [source.chunk(0, CPU)[HOOKS[0]] for source in sources]
    assert torch.equal(rows[0], rows[1])
    assert torch.equal(rows[0], rows[2])
    assert len({json.dumps(source.identity) for source in sources}) == 1


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"files": []}, AbsorbError, "`files` was .*expected files or a dataset, and not both"),
        ({"files": ["no-such.txt"]}, AbsorbError, "`files` was 'no-such.txt', expected files that exist"),
        ({"column": "words"}, AbsorbError, "`column` was 'words', expected one of text"),
        ({"dataset": "no/such/set", "files": None}, AbsorbError, "`dataset` was 'no/such/set'"),
        ({"context_size": 70}, ShapeError, "`context_size` was 70, expected texts that fill at least one context"),
        ({"context_size": 100_000}, ContextLengthError, "`context_size` was 100000, expected at most"),
        ({"contexts_per_chunk": 5}, ShapeError, "`contexts_per_chunk` was 5, expected at most the 4 contexts"),
        ({"contexts_per_chunk": 0}, RangeError, "`contexts_per_chunk` was 0"),
        ({"hook_names": ["blocks.99.hook_resid_post"]}, HookNotFoundError, "`hook_name` was 'blocks.99"),
    ],
)
def test_texts_that_cannot_be_read_are_refused(speller, texts, tmp_path, given, error, message):
    settings = {"hook_names": HOOKS, "files": texts, "context_size": 16, "contexts_per_chunk": 2}
    with pytest.raises(error, match=message):
        TextActivations(**settings | {"model": speller, "cache_dir": tmp_path / "cache"} | given)


def test_spelling_rows_are_those_at_the_words_and_some_elsewhere(speller):
    source = SpellingActivations(HOOKS, contexts_per_chunk=6, seed=5)
    for number in (0, 3):
        chunk = source.chunk(number, CPU)
        rng = chunk_rng(5, number)
        template = TEMPLATES[rng.choice(4, p=[template.share for template in TEMPLATES])]
        mixture = SpellingMixture(speller.tokenizer, vocabulary_of(speller.tokenizer), power=0.6, examples=11, seed=0)
        mixture.rng = rng
        batch = mixture.batch(template, 6, with_bos=True)
        words = 6 * 11
        for hook in HOOKS:
            everywhere = rows_of(speller, batch.input_ids.tolist(), hook)
            at_words = everywhere[:, batch.word_positions].flatten(0, 1)
            torch.testing.assert_close(chunk[hook][:words], at_words)
            elsewhere = everywhere[:, 1:].flatten(0, 1)
            distances = torch.cdist(chunk[hook][words:].double(), elsewhere.double())
            assert float(distances.min(dim=1).values.max()) < 1e-3
            assert len(chunk[hook]) == words + round(words / 4)
    assert torch.equal(source.chunk(3, CPU)[HOOKS[0]], source.chunk(3, CPU)[HOOKS[0]])
    assert not torch.equal(source.chunk(3, CPU)[HOOKS[0]], source.chunk(4, CPU)[HOOKS[0]])


def test_world_rows_are_samples_of_the_world():
    source = WorldActivations("superposition", rows_per_chunk=50, seed=2)
    seed = int(chunk_rng(2, 9).integers(2**32))
    expected = HierarchyWorld(HIERARCHIES["superposition"]).sample(50, seed)[1]
    assert torch.equal(source.chunk(9, CPU)["activations"], expected)
    assert source.hook_widths == {"activations": 64}


@pytest.fixture
def cached(tmp_path):
    """A folder as SAELens's `CacheActivationsRunner` writes it."""
    rows = np.random.default_rng(0).standard_normal((7, 5, 8)).astype(np.float32)
    features = Features({"blocks.2.hook_mlp_out": Array2D((5, 8), "float32"), "token_ids": Sequence(Value("int32"), 5)})
    columns = {"blocks.2.hook_mlp_out": list(rows), "token_ids": [[1, 2, 3, 4, 5]] * 7}
    Dataset.from_dict(columns, features=features).save_to_disk(tmp_path / "cached")
    return str(tmp_path / "cached"), rows


def test_cached_rows_are_read_context_by_context(cached):
    folder, rows = cached
    source = CachedActivations(folder, contexts_per_chunk=3)
    assert source.hook_widths == {"blocks.2.hook_mlp_out": 8}
    assert source.num_chunks == 2
    found = source.chunk(1, CPU)["blocks.2.hook_mlp_out"]
    assert torch.equal(found, torch.from_numpy(rows[3:6]).flatten(0, 1))


def test_folders_without_cached_activations_are_refused(cached, tmp_path):
    folder, _ = cached
    with pytest.raises(AbsorbError, match=r"`folder` was .*expected a folder of activations that SAELens"):
        CachedActivations(str(tmp_path))
    with pytest.raises(HookNotFoundError, match=r"`hook_names` was 'token_ids'.*It has blocks.2.hook_mlp_out"):
        CachedActivations(folder, ["token_ids"])
    with pytest.raises(ShapeError, match="`contexts_per_chunk` was 8, expected at most the 7 contexts"):
        CachedActivations(folder, contexts_per_chunk=8)
