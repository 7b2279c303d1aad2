"""What the datamodules serve, to one process and to one of several."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from lightning.pytorch import Trainer
from safetensors.torch import load_file, save_file

from absorb_pl.data import ActivationDataModule, PromptDataModule, prompt_datamodule
from absorb_pl.data.activation_cache import activation_identities
from absorb_pl.data.shares import Share
from absorb_pl.errors import HookMismatchError, RowsError
from absorb_pl.probes import LinearProbe, LinearProbeSettings
from absorb_pl.saes import load_sae
from absorb_pl.study.probing_stages import ActivationStage, LinearProbeStage, ProbeData
from absorb_pl.words import TableSettings, TaskConfig

HOOK = "blocks.1.hook_resid_post"
TASK = TaskConfig(max_icl_examples=2)


@pytest.fixture
def data(gpt2, tmp_path):
    return ActivationDataModule(gpt2, HOOK, TASK, tmp_path, batch_size=32)


def as_process(rank, processes):
    return SimpleNamespace(global_rank=rank, world_size=processes)


def test_batches_hold_the_rows_and_labels_of_their_words(data):
    data.prepare_data()
    rows, words = data.cache.rows(), data.prompt_data.task.words
    for split, loader in (
        ("train", data.train_dataloader()),
        ("val", data.val_dataloader()),
        ("test", data.test_dataloader()),
    ):
        seen = []
        for batch in loader:
            assert torch.equal(batch["x"], rows[batch["index"]])
            assert len(batch["index"]) <= 32
            letters = [words[row].strip()[0].lower() for row in batch["index"].tolist()]
            assert [data.class_names[label] for label in batch["y"].argmax(1).tolist()] == letters
            assert (batch["y"].sum(dim=1) == 1).all()
            seen += batch["index"].tolist()
        assert sorted(seen) == data.splits[split].tolist()
        assert (seen == sorted(seen)) == (split != "train")
    sizes = data.labels.sum(dim=0)
    cuts = [(sizes * share).round().sum().item() for share in (0.7, 0.8, 1.0)]
    assert [len(data.splits[split]) for split in ("train", "val", "test")] == [
        cuts[0],
        cuts[1] - cuts[0],
        cuts[2] - cuts[1],
    ]
    assert torch.cat(list(data.splits.values())).sort().values.tolist() == list(range(238))


def test_class_counts_are_those_of_the_training_words(data):
    positives, rows = data.class_counts()
    letters = [data.prompt_data.task.words[row].strip()[0].lower() for row in data.splits["train"].tolist()]
    assert rows == len(letters)
    assert positives.tolist() == [letters.count(name) for name in data.class_names]


def test_the_split_depends_on_its_seed_alone(gpt2, tmp_path, data):
    torch.manual_seed(7)
    same = ActivationDataModule(gpt2, HOOK, TASK, tmp_path)
    other = ActivationDataModule(gpt2, HOOK, TASK, tmp_path, split_seed=1)
    assert all(torch.equal(same.splits[part], data.splits[part]) for part in data.splits)
    assert not torch.equal(other.splits["test"], data.splits["test"])


def test_the_cache_is_built_once(gpt2, tmp_path, data):
    data.prepare_data()
    shard = data.cache.path / "00000.bin"
    before = shard.stat().st_mtime_ns
    again = ActivationDataModule(gpt2, HOOK, TASK, tmp_path)
    again.prepare_data()
    assert again.cache.path == data.cache.path
    assert shard.stat().st_mtime_ns == before


def test_prompt_batches_hold_each_word_once_in_order_of_length(ragged):
    batches = list(ragged.predict_dataloader())
    lengths = torch.cat([batch["lengths"] for batch in batches])
    assert torch.cat([batch["index"] for batch in batches]).sort().values.tolist() == list(range(27))
    assert lengths.tolist() == sorted(lengths.tolist())
    for batch in batches:
        assert batch["input_ids"].shape[1] == batch["lengths"].max()
        assert torch.equal(batch["attention_mask"].sum(dim=1), batch["lengths"])
        for row, ids, length, position in zip(
            batch["index"].tolist(), batch["input_ids"], batch["lengths"], batch["word_positions"], strict=True
        ):
            text = ragged.language_model.tokenizer.decode(ids[1 : position + 1])
            assert text == ragged.texts[row].base[: ragged.texts[row].word_end]
            assert ragged.language_model.tokenizer.decode(ids[1:length]) == ragged.texts[row].base


def test_some_words_alone(gpt2, tmp_path):
    pd.DataFrame({"row": [7, 3, 7, 200], "word": "x"}).to_parquet(tmp_path / "candidates.parquet")
    from_table = PromptDataModule(gpt2, TASK, rows=tmp_path / "candidates.parquet")
    assert from_table.rows.tolist() == [3, 7, 200]
    whole = PromptDataModule(gpt2, TASK)
    part = whole.only([200, 3, 7])
    (batch,), (same,) = part.predict_dataloader(), from_table.predict_dataloader()
    assert sorted(batch["index"].tolist()) == same["index"].tolist()
    assert len(whole.rows) == 238


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_shares_are_disjoint_and_whole(processes):
    items, shares = list("abc"), []
    for rank in range(processes):
        share = Share(items, "none", as_process(rank, processes))
        shares.append(list(share.loader()))
        assert len(share) == len(shares[-1])
    assert sorted(item for share in shares for item in share if item != "none") == items
    assert [share for share in shares if "none" in share] == [["none"]] * max(0, processes - 3)


def test_processes_share_whole_prompt_batches(ragged):
    alone = [batch["index"].tolist() for batch in ragged.predict_dataloader()]
    shares = []
    for rank in range(2):
        ragged.trainer = as_process(rank, 2)
        shares.append([batch["index"].tolist() for batch in ragged.predict_dataloader()])
    ragged.trainer = None
    assert shares == [alone[::2], alone[1::2]]


def test_the_identity_is_all_that_the_task_says(gpt2, tmp_path):
    words = [word.strip() for word in PromptDataModule(gpt2, TASK).task.words[:24]]
    frame = pd.DataFrame({"word": words, "kind": ["a", "b", "c", "d"] * 6, "group": ["x", "y"] * 12})
    frame.to_csv(tmp_path / "t.csv", index=False)
    frame.sample(frac=1, random_state=0).to_csv(tmp_path / "shuffled.csv", index=False)
    frame.assign(kind=frame["kind"].replace("d", "e")).to_csv(tmp_path / "renamed.csv", index=False)
    frame.assign(group=frame["group"].replace({"x": "y", "y": "x"})).to_csv(tmp_path / "swapped.csv", index=False)

    def identity(name="t.csv", template="{word}:", answers=("X", "Y")):
        answer_of = {"x": f" {answers[0]}", "y": f" {answers[1]}"}
        table = TableSettings(str(tmp_path / name), "word", "kind", "group", answer_of)
        data = PromptDataModule(gpt2, TaskConfig("table", table=table, template=template, max_icl_examples=0))
        return data.identity, data.prompts.input_ids.tolist()

    assert identity("shuffled.csv") == identity()
    changed = [identity(), identity("renamed.csv"), identity("swapped.csv"), identity(answers=("Y", "X"))]
    changed.append(identity(template="{word} is"))
    assert len({content for content, _ in changed}) == 5
    # Without in-context examples neither labels nor answers stand in the prompts.
    assert all(ids == changed[0][1] for _, ids in changed[:4])


def test_what_is_made_of_labels_is_cached_under_the_task_s_identity(gpt2, tmp_path):
    words = [word.strip() for word in PromptDataModule(gpt2, TASK).task.words[:30]]
    pd.DataFrame({"word": words, "kind": ["x", "y"] * 15}).to_csv(tmp_path / "t.csv", index=False)
    paths = []
    for answers in (("X", "Y"), ("Y", "X")):
        table = TableSettings(
            str(tmp_path / "t.csv"), "word", "kind", answers={"x": f" {answers[0]}", "y": f" {answers[1]}"}
        )
        data = PromptDataModule(gpt2, TaskConfig("table", table=table, template="{word}:", max_icl_examples=0))
        identities = activation_identities(gpt2, data.prompts, [HOOK], "float32")
        activations = ActivationStage(tmp_path, data, identities, "float32")
        rows = ProbeData(activations, test_fraction=0.2, seed=42)
        paths.append((identities[HOOK], LinearProbeStage(tmp_path, rows, LinearProbeSettings()).path(HOOK)))
    assert paths[0][0] == paths[1][0]
    assert paths[0][1] != paths[1][1]


@pytest.mark.parametrize("row", [-1, 10**5, 2**70])
def test_words_that_the_task_does_not_have_are_refused(gpt2, row):
    config = TaskConfig(max_words=30, max_icl_examples=2)
    data = PromptDataModule(gpt2, config, rows=[3])
    assert data.rows.tolist() == [3]
    for ask in (lambda: PromptDataModule(gpt2, config, rows=[0, row]), lambda: data.only([row])):
        with pytest.raises(RowsError, match=rf"`rows` was {row}, expected numbers of the task's 30 words"):
            ask()


def test_a_table_of_rows_that_cannot_be_read_is_named(gpt2, tmp_path):
    with pytest.raises(RowsError, match=r"no\.parquet', expected a Parquet table with a column `row`"):
        PromptDataModule(gpt2, TaskConfig(max_words=30, max_icl_examples=2), rows=tmp_path / "no.parquet")


MODEL = str(Path(__file__).parents[1] / "golden/gpt2-micro")


def fit_and_test(data, tmp_path):
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        default_root_dir=tmp_path,
    )
    probe = LinearProbe(data.width, data.num_classes, class_names=data.class_names)
    trainer.fit(probe, datamodule=data)
    return trainer.test(probe, datamodule=data, verbose=False)[0]


def no_model(*_args, **_settings):
    raise AssertionError("the language model was loaded")


@pytest.fixture
def warm(tmp_path):
    """Settings of a datamodule whose cache is warm, and what a probe scores on it."""
    settings = {"model": MODEL, "hook_name": HOOK, "task": TASK, "cache_dir": tmp_path / "cache"}
    return settings, fit_and_test(ActivationDataModule(**settings), tmp_path)


def test_nothing_is_loaded_before_it_is_needed(monkeypatch, tmp_path):
    monkeypatch.setattr(prompt_datamodule, "resolve_model", no_model)
    data = ActivationDataModule(MODEL, HOOK, TASK, tmp_path)
    assert data.hparams["hook_name"] == HOOK
    assert not list(tmp_path.iterdir())


def test_a_warm_cache_needs_no_language_model(warm, monkeypatch, tmp_path):
    settings, expected = warm
    monkeypatch.setattr(prompt_datamodule, "resolve_model", no_model)
    assert fit_and_test(ActivationDataModule(**settings), tmp_path) == expected
    sae = load_sae(f"{MODEL}/sae_topk_B")
    with pytest.raises(HookMismatchError):
        ActivationDataModule(**settings).check_sae(sae)
    ActivationDataModule(**settings).check_sae(load_sae(f"{MODEL}/sae_standard_A"))


@pytest.mark.parametrize(
    "changed",
    [
        {"task": TaskConfig(max_icl_examples=3)},
        {"task": TaskConfig(max_icl_examples=2, seed=1)},
        {"hook_name": "blocks.2.hook_resid_post"},
        {"model_dtype": "bfloat16"},
        {"dtype": "float16"},
    ],
    ids=str,
)
def test_other_settings_are_not_served_what_is_known(warm, changed):
    settings, _ = warm
    one, other = ActivationDataModule(**settings), ActivationDataModule(**{**settings, **changed})
    assert other._recalled is None
    assert other.cache.path != one.cache.path


def test_a_model_that_changed_is_loaded_again(tmp_path):
    folder = shutil.copytree(MODEL, tmp_path / "model", ignore=shutil.ignore_patterns("sae_*", "expected_*"))
    settings = {"model": str(folder), "hook_name": HOOK, "task": TASK, "cache_dir": tmp_path / "cache"}
    before = ActivationDataModule(**settings).cache.rows()
    weights = load_file(folder / "model.safetensors")
    save_file({name: tensor * 1.5 for name, tensor in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    again = ActivationDataModule(**settings)
    assert again._recalled is None
    assert not torch.equal(again.cache.rows(), before)


def test_rows_that_were_deleted_are_made_again(warm):
    settings, _ = warm
    path = ActivationDataModule(**settings).cache.path
    shutil.rmtree(path)
    assert ActivationDataModule(**settings).cache.path == path
    assert (path / "00000.bin").is_file()
