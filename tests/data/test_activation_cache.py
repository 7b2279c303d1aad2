"""The activation cache against the model's own activations, and against all that may happen to files."""

import errno
import json
import os
import platform
import shutil

import pytest
import torch

from absorb_pl.data import ActivationCacheWriter, ActivationCollector, collector, read_residuals
from absorb_pl.data import activation_cache as cache_module
from absorb_pl.data.activation_cache import activation_identities, activation_path, open_activations
from absorb_pl.data.activation_datamodule import ensure_activations
from absorb_pl.data.drafts import begin_draft, draft_of, end_draft, new_owner
from absorb_pl.errors import (
    AbsorbError,
    CacheCorruptedError,
    HookNotFoundError,
    ManifestMismatchError,
    NonFiniteError,
    OutputFolderError,
)
from absorb_pl.models import load_language_model

HOOKS = ["blocks.1.hook_resid_post", "blocks.0.attn.hook_z", "blocks.0.mlp.hook_out"]
HOOK = HOOKS[0]


def files_below(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def expected_rows(data, hook):
    """Each prompt alone, without padding, through TransformerLens's own cache."""
    rows = []
    for ids, length, position in zip(
        data.prompts.input_ids, data.prompts.lengths, data.prompts.word_positions, strict=True
    ):
        with torch.no_grad():
            _, cache = data.language_model.run_with_cache(ids[None, :length], names_filter=hook)
        rows.append(cache[hook][0, position].flatten())
    return torch.stack(rows)


def test_rows_are_the_activations_at_each_word(ragged, golden, trainer_of, tmp_path):
    # In float64, where sums do not depend on what else is in the batch as far as the stored digits go.
    ragged.language_model = load_language_model(str(golden / "gpt2-micro"), dtype="float64")
    assert len(set(ragged.prompts.lengths.tolist())) >= 5
    assert len(set(ragged.prompts.word_positions.tolist())) >= 5
    caches = ensure_activations(ragged, HOOKS, tmp_path, "float32", trainer_of)
    assert list(caches) == HOOKS
    for hook, cache in caches.items():
        expected = expected_rows(ragged, hook)
        assert (cache.num_rows, cache.width, len(cache)) == (*expected.shape, 27)
        torch.testing.assert_close(cache.rows(), expected.float(), rtol=2e-7, atol=1e-12)


def test_hooks_read_together_and_alone_are_the_same(ragged, trainer_of, tmp_path):
    together = ensure_activations(ragged, HOOKS, tmp_path / "a", "float32", trainer_of)
    for hook in HOOKS:
        alone = ensure_activations(ragged, [hook], tmp_path / "b", "float32", trainer_of)[hook]
        assert torch.equal(alone.rows(), together[hook].rows())


def test_only_missing_hooks_are_read_again(ragged, trainer_of, tmp_path):
    passes = []

    def counted(callbacks):
        passes.append(callbacks)
        return trainer_of(callbacks)

    ensure_activations(ragged, HOOKS[:1], tmp_path, "float32", counted)
    before = {path: path.stat().st_mtime_ns for path in files_below(tmp_path)}
    ensure_activations(ragged, HOOKS, tmp_path, "float32", counted)
    ensure_activations(ragged, HOOKS, tmp_path, "float32", counted)
    assert len(passes) == 2
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_the_pass_stops_after_the_deepest_hook(ragged):
    model, ran = ragged.language_model, []
    blocks = model.original_model.transformer.h
    handles = [
        block.register_forward_pre_hook(lambda *_, number=number: ran.append(number))
        for number, block in enumerate(blocks)
    ]
    try:
        prompts = ragged.prompts
        read_residuals(
            model, prompts.input_ids, prompts.attention_mask, prompts.word_positions, ["blocks.0.hook_resid_pre", HOOK]
        )
    finally:
        for handle in handles:
            handle.remove()
    assert len(blocks) == 4
    assert ran == [0, 1]


@pytest.mark.parametrize(("name", "size"), [("float32", 4), ("bfloat16", 2), ("float16", 2)])
def test_storage_dtypes(ragged, trainer_of, tmp_path, name, size):
    exact = ensure_activations(ragged, [HOOK], tmp_path / "exact", "float32", trainer_of)[HOOK].rows()
    cache = ensure_activations(ragged, [HOOK], tmp_path, name, trainer_of)[HOOK]
    assert torch.equal(cache.rows(), exact.to(getattr(torch, name)).float())
    assert (cache.path / "00000.bin").stat().st_size == 27 * 48 * size


def test_shards_meet_inside_batches(ragged, trainer_of, tmp_path, monkeypatch):
    whole = ensure_activations(ragged, [HOOK], tmp_path / "whole", "float32", trainer_of)[HOOK].rows()
    monkeypatch.setattr(cache_module, "ROWS_PER_SHARD", 5)
    cache = ensure_activations(ragged, [HOOK], tmp_path, "float32", trainer_of)[HOOK]
    assert [file.name for file in sorted(cache.path.glob("*.bin"))] == [f"{n:05d}.bin" for n in range(6)]
    assert (cache.path / "00005.bin").stat().st_size == 2 * 48 * 4
    assert torch.equal(cache.rows(), whole)
    index = torch.tensor([26, 0, 4, 5, 4, 13, 9, 10])
    assert torch.equal(cache.rows(index), whole[index])


@pytest.fixture
def stored(ragged, trainer_of, tmp_path):
    """A whole cache: its root, its folder and its identity."""
    cache = ensure_activations(ragged, [HOOK], tmp_path, "float32", trainer_of)[HOOK]
    return tmp_path, cache.path, activation_identities(ragged.language_model, ragged.prompts, [HOOK], "float32")[HOOK]


def flip_a_bit(shard):
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: flip_a_bit(folder / "00000.bin"),
        lambda folder: os.truncate(folder / "00000.bin", 100),
        lambda folder: (folder / "00000.bin").unlink(),
        lambda folder: (folder / "manifest.json").unlink(),
        lambda folder: (folder / "manifest.json").write_text("{"),
        lambda folder: (folder / "manifest.json").write_text("{}"),
    ],
    ids=["flipped bit", "cut short", "no shard", "no manifest", "half a manifest", "empty manifest"],
)
def test_damaged_caches_are_refused(stored, damage):
    root, folder, identity = stored
    damage(folder)
    with pytest.raises(CacheCorruptedError, match=f"Delete {folder} and run again") as raised:
        open_activations(root, identity)
    assert str(folder) in raised.value.argument


def test_rows_of_another_model_are_refused(stored, golden, ragged):
    root, folder, identity = stored
    other = activation_identities(load_language_model(str(golden / "gpt2-micro")), ragged.prompts, [HOOK], "float32")[
        HOOK
    ]
    assert other == identity
    changed = load_language_model(str(golden / "gpt2-micro"))
    with torch.no_grad():
        next(changed.original_model.parameters())[0, 0] += 1
    other = activation_identities(changed, ragged.prompts, [HOOK], "float32")[HOOK]
    assert activation_path(root, other) != folder
    assert open_activations(root, other) is None
    shutil.copytree(folder, activation_path(root, other))
    with pytest.raises(ManifestMismatchError, match="model") as raised:
        open_activations(root, other)
    assert raised.value.value == {"model": identity["model"]}
    assert other["model"] in raised.value.expected


def test_identity_tells_apart_what_changes_the_rows(ragged):
    model, prompts = ragged.language_model, ragged.prompts
    identities = [
        activation_identities(model, prompts, [HOOK], "float32")[HOOK],
        activation_identities(model, prompts, [HOOK], "float16")[HOOK],
        activation_identities(model, prompts, [HOOKS[1]], "float32")[HOOKS[1]],
        activation_identities(model, prompts.select(range(26)), [HOOK], "float32")[HOOK],
    ]
    assert len({json.dumps(identity, sort_keys=True) for identity in identities}) == 4


def test_a_write_that_fails_leaves_nothing_and_can_be_repeated(
    ragged, trainer_of, tmp_path, tmp_path_factory, monkeypatch
):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    real, calls = os.pwrite, []

    def full(descriptor, content, offset):
        calls.append(offset)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, content, offset)

    monkeypatch.setattr(cache_module.os, "pwrite", full)
    with pytest.raises(OutputFolderError, match=f"{tmp_path}.*No space left on device"):
        ensure_activations(ragged, HOOKS, tmp_path, "float32", trainer_of)
    assert files_below(tmp_path) == []
    monkeypatch.undo()
    cache = ensure_activations(ragged, HOOKS, tmp_path, "float32", trainer_of)[HOOK]
    assert torch.equal(cache.rows(), ensure_activations(ragged, [HOOK], elsewhere, "float32", trainer_of)[HOOK].rows())


def test_short_writes_are_carried_on(ragged, trainer_of, tmp_path, monkeypatch):
    real = os.pwrite
    whole = ensure_activations(ragged, [HOOK], tmp_path / "whole", "float32", trainer_of)[HOOK].rows()
    monkeypatch.setattr(cache_module.os, "pwrite", lambda file, content, offset: real(file, content[:100], offset))
    assert torch.equal(ensure_activations(ragged, [HOOK], tmp_path, "float32", trainer_of)[HOOK].rows(), whole)


def test_leftovers_of_a_killed_run_are_not_taken_for_whole(stored, ragged, trainer_of):
    root, folder, identity = stored
    rows = open_activations(root, identity).rows()
    running, part = begin_draft(folder, new_owner()), draft_of(folder, new_owner())
    folder.rename(part)
    (part / "manifest.json").unlink()
    flip_a_bit(part / "00000.bin")
    assert open_activations(root, identity) is None
    remade = ensure_activations(ragged, [HOOK], root, "float32", trainer_of)[HOOK]
    assert torch.equal(remade.rows(), rows)
    assert not part.exists()
    assert running.exists()  # somebody is at work on the same rows
    end_draft(running)


def test_two_of_one_name_and_number_keep_apart(ragged, trainer_of, tmp_path, monkeypatch):
    """As processes of two containers do on one cache: here it is one process that begins the same rows twice."""
    whole = ensure_activations(ragged, [HOOK], tmp_path / "whole", "float32", trainer_of)[HOOK].rows()
    write, others = cache_module.write_rows, []

    def write_beside(folder, rows, index):
        final = folder.with_name(folder.name.removeprefix(".").split(f".{platform.node()}-")[0])
        others.append(begin_draft(final, new_owner()))
        write(folder, rows, index)

    monkeypatch.setattr(collector, "write_rows", write_beside)
    cache = ensure_activations(ragged, [HOOK], tmp_path, "float32", trainer_of)[HOOK]
    assert torch.equal(cache.rows(), whole)
    assert len(others) == 4
    assert all(list(other.iterdir()) == [] for other in others)
    for other in others:
        end_draft(other)


@pytest.mark.parametrize(("row", "what"), [(3, "left out"), (26, "left out"), (5, "zeroed"), (0, "zeroed")])
def test_a_row_that_is_not_on_disk_is_not_published(ragged, trainer_of, tmp_path, monkeypatch, row, what):
    """Whatever a batch said it would write."""
    write = cache_module.write_rows

    def careless(folder, rows, index):
        kept = index != row
        write(folder, rows[kept], index[kept])
        if what == "zeroed" and not kept.all():
            write(folder, rows, index)
            cache_module._write_at(folder / "00000.bin", bytes(rows.shape[1] * 4), row * rows.shape[1] * 4)

    monkeypatch.setattr(collector, "write_rows", careless)
    with pytest.raises(CacheCorruptedError, match=r"26 rows.*expected 27 rows"):
        ensure_activations(ragged, [HOOK], tmp_path, "float32", trainer_of)
    assert files_below(tmp_path) == []


@pytest.mark.parametrize(
    "change",
    [
        lambda said: said["facts"].update(rows=13),
        lambda said: said["facts"].update(width=24),
        lambda said: said["facts"].pop("rows"),
        lambda said: said.pop("facts"),
        lambda said: said["files"]["00000.bin"].pop("blake2b"),
        lambda said: said["files"].clear(),
        lambda said: said.update(files=[]),
        lambda said: said["identity"].update(dtype="float16"),
    ],
    ids=["rows", "width", "no rows", "no facts", "no checksum", "no files", "a list of files", "identity"],
)
def test_an_altered_manifest_is_refused(stored, change):
    root, folder, identity = stored
    said = json.loads((folder / "manifest.json").read_text())
    change(said)
    (folder / "manifest.json").write_text(json.dumps(said))
    with pytest.raises(CacheCorruptedError, match=r"manifest.json.*its own checksum.*Delete"):
        open_activations(root, identity)


def test_a_pass_over_some_of_the_batches_is_not_published(ragged, trainer_of, tmp_path):
    trainer = trainer_of([ActivationCacheWriter(tmp_path)], limit_predict_batches=2)
    with pytest.raises(CacheCorruptedError, match=r"16 rows.*expected 27 rows"):
        trainer.predict(ActivationCollector(ragged.language_model, [HOOK]), datamodule=ragged)
    assert files_below(tmp_path) == []


@pytest.mark.parametrize(("value", "dtype"), [(float("nan"), "float32"), (1e5, "float16")])
def test_activations_that_are_not_finite_are_refused(ragged, golden, trainer_of, tmp_path, value, dtype):
    ragged.language_model = load_language_model(str(golden / "gpt2-micro"))
    with torch.no_grad():
        ragged.language_model.original_model.transformer.h[0].mlp.c_proj.bias[3] = value
    with pytest.raises(NonFiniteError, match=f"{HOOK}.*row.*{dtype}"):
        ensure_activations(ragged, [HOOK], tmp_path, dtype, trainer_of)
    assert files_below(tmp_path) == []


def test_a_hook_that_does_not_exist_is_named_with_its_neighbours(ragged, trainer_of, tmp_path):
    with pytest.raises(HookNotFoundError, match=r"blocks\.9\.hook_resid_post.*Closest: blocks\.\d"):
        ensure_activations(ragged, ["blocks.9.hook_resid_post"], tmp_path, "float32", trainer_of)
    assert files_below(tmp_path) == []


def test_the_collector_needs_a_prompt_datamodule(ragged, trainer_of, tmp_path):
    loader = ragged.predict_dataloader()
    trainer = trainer_of([ActivationCacheWriter(tmp_path)])
    with pytest.raises(AbsorbError, match="expected a PromptDataModule"):
        trainer.predict(ActivationCollector(ragged.language_model, [HOOK]), loader)
