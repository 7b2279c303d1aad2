"""Probe data kept in plain files, and the probe trained on it, against direct runs and scikit-learn."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score, precision_score, recall_score

from absorb_pl.errors import AbsorbError, CacheCorruptedError, HookNotFoundError, LabelError, PromptError
from absorb_pl.probes import (
    LinearProbe,
    create_dataset_probe_training,
    gen_and_save_df_acts_probing,
    gen_probe_stats,
    load_df_acts_probing,
    load_probe_and_data,
    save_probe_and_data,
    train_linear_probe_for_task,
    train_multi_probe,
)
from absorb_pl.probes.task_data import letter_class
from absorb_pl.words import LETTERS, SpellingPrompt, first_letter_formatter, get_alpha_tokens

TEMPLATE = "{word} has the first letter:"
HOOK = "blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def words(gpt2):
    return get_alpha_tokens(gpt2.tokenizer)[:40]


def datasets(words, **options):
    formatter = first_letter_formatter(capitalize=True)
    return create_dataset_probe_training(words, formatter, 2, TEMPLATE, max_icl_examples=3, **options)


def test_words_are_split_and_see_none_of_the_other_part(words):
    train, test = datasets(words, train_test_fraction=0.75, seed=5)
    assert (len(train), len(test)) == (2 * 30, 2 * 10)
    parts = [{prompt.word for prompt, _ in part} for part in (train, test)]
    assert parts[0] | parts[1] == set(words)
    assert not parts[0] & parts[1]
    for part, own in zip((train, test), parts, strict=True):
        for prompt, label in part:
            examples = [line.split(" has the first letter:")[0] for line in prompt.base.split("\n")]
            assert len(examples) == 4
            assert {*examples} <= own
            assert examples[-1] == prompt.word not in examples[:-1]
            assert label == "abcdefghijklmnopqrstuvwxyz".index(prompt.word.strip()[0].lower())
            assert prompt.answer == f" {prompt.word.strip()[0].upper()}"
    assert all(one[0].base != other[0].base for one, other in zip(train[::2], train[1::2], strict=True))


def test_a_seed_settles_all_draws(words):
    assert datasets(words, seed=5) == datasets(words, seed=5)
    assert datasets(words, seed=5) != datasets(words, seed=6)
    assert datasets(words) != datasets(words)


def test_what_cannot_be_split_or_classed_is_refused(words):
    with pytest.raises(PromptError, match="max_icl_examples"):
        datasets(words[:4], seed=0)
    with pytest.raises(LabelError, match="`answer` was ' C-A-T', expected one letter"):
        letter_class(" C-A-T")
    with pytest.raises(AbsorbError, match="num_prompts_per_token"):
        create_dataset_probe_training(words, first_letter_formatter(), 0, TEMPLATE)


@pytest.fixture(scope="module")
def saved(gpt2, words, tmp_path_factory):
    """Prompts of different lengths and odd texts with their activations, and the folder that they were written to."""
    train, test = datasets(words, seed=1)
    odd = [SpellingPrompt(f"{text}:", f" {text[:1]}", text) for text in ("NA", "", '"', "a\nb", "c,d", " e\r", "\tf")]
    train = [*train, *((prompt, number) for number, prompt in enumerate(odd))]
    folder = tmp_path_factory.mktemp("probing")
    return (train, test), folder, gen_and_save_df_acts_probing(gpt2, train, test, folder, HOOK, 1, batch_size=5)


def test_activations_are_those_of_each_prompt_alone(saved, gpt2):
    parts, _, found = saved
    lengths = set()
    for prompts, table, activations in zip(parts, found[:2], found[2:], strict=True):
        assert activations.shape == (len(prompts), 48)
        assert activations.dtype == np.float32
        for (prompt, label), row, ours in zip(prompts, table.to_dict("records"), activations, strict=True):
            tokens = gpt2.to_tokens(prompt.base)
            lengths.add(tokens.shape[1])
            with torch.no_grad():
                alone = gpt2.run_with_cache(tokens, names_filter=HOOK)[1][HOOK][0, -2]
            scale = alone.abs().max().item()
            # the width of two layers' sums in float32
            assert ours == pytest.approx(alone.numpy(), abs=8 * 48 * float(np.finfo(np.float32).eps) * scale)
            assert row == {
                "prompt": prompt.base,
                "HOOK_POINT": HOOK,
                "answer": prompt.answer,
                "answer_class": label,
                "token": prompt.word,
            }
    assert len(lengths) > 1


def test_what_was_written_is_read_back(saved, gpt2):
    _, folder, written = saved
    assert sorted(path.name for path in (folder / "layer_1").iterdir()) == [
        *("test_act_tensor.dat", "test_df.csv", "train_act_tensor.dat", "train_df.csv")
    ]
    read = load_df_acts_probing(gpt2, folder, 1)
    for ours, theirs in zip(read[:2], written[:2], strict=True):
        pd.testing.assert_frame_equal(ours, theirs, check_dtype=False)
    for ours, theirs in zip(read[2:], written[2:], strict=True):
        assert isinstance(ours, np.memmap)
        assert np.array_equal(ours, theirs)


def test_files_that_do_not_fit_are_named(saved, gpt2, tmp_path):
    _, folder, _ = saved
    with pytest.raises(CacheCorruptedError, match=r"layer_2/train_df\.csv` was 'missing'"):
        load_df_acts_probing(gpt2, folder, 2)
    with pytest.raises(CacheCorruptedError, match="the model's width"):
        load_df_acts_probing(SimpleNamespace(cfg=SimpleNamespace(d_model=32)), folder, 1)
    for file in (folder / "layer_1").iterdir():
        (tmp_path / "layer_1").mkdir(exist_ok=True)
        (tmp_path / "layer_1" / file.name).write_bytes(file.read_bytes()[: -3 if file.suffix == ".dat" else None])
    with pytest.raises(CacheCorruptedError, match="whole rows of float32"):
        load_df_acts_probing(gpt2, tmp_path, 1)


def test_positions_and_hooks_that_are_not_there_are_refused(saved, gpt2, tmp_path):
    (train, test), _, _ = saved
    with pytest.raises(PromptError, match="`position_idx` was -40"):
        gen_and_save_df_acts_probing(gpt2, train, test, tmp_path, HOOK, 1, position_idx=-40)
    with pytest.raises(PromptError, match="`test_dataset`"):
        gen_and_save_df_acts_probing(gpt2, train[:3], [], tmp_path, HOOK, 1)
    with pytest.raises(HookNotFoundError):
        gen_and_save_df_acts_probing(gpt2, train, test, tmp_path, "blocks.9.hook_resid_post", 9)


@pytest.fixture(scope="module")
def blobs():
    """Three clusters with some overlap in sixteen dimensions, as tables and activations."""
    generator = torch.Generator().manual_seed(4)
    centres = 1.5 * torch.randn(3, 16, generator=generator)
    labels = torch.randint(0, 3, (400,), generator=generator)
    x = (centres[labels] + torch.randn(400, 16, generator=generator)).numpy()
    tables = [pd.DataFrame({"answer_class": part.numpy()}) for part in (labels[:300], labels[300:])]
    return tables[0], tables[1], x[:300], x[300:]


@pytest.fixture(scope="module")
def trained(blobs):
    train_df, test_df, x_train, x_test = blobs
    torch.manual_seed(0)
    return train_linear_probe_for_task(train_df, test_df, "cpu", x_train, x_test, 3, batch_size=50, show_progress=False)


def test_the_probe_at_its_optimum_is_that_of_scikit_learn(blobs):
    train_df, test_df, x_train, x_test = blobs
    decay = 0.01
    probe, _ = train_linear_probe_for_task(
        train_df,
        test_df,
        "cpu",
        x_train,
        x_test,
        3,
        num_epochs=1,
        weight_decay=decay,
        show_progress=False,
        solver="optimum",
    )
    for c in range(3):
        truth = (train_df["answer_class"] == c).to_numpy()
        weights = np.where(truth, (~truth).sum() / truth.sum(), 1.0)
        # the loss is a mean over rows and classes; a column of ones stands for the bias, decayed like the weights
        with_bias = np.concatenate([x_train, np.ones((len(x_train), 1), np.float32)], axis=1)
        model = LogisticRegression(C=1 / (decay * len(truth) * 3), fit_intercept=False, tol=1e-8, max_iter=1000)
        theirs = model.fit(with_bias, truth, sample_weight=weights).coef_[0]
        ours = [*probe.weights[c].tolist(), probe.biases[c].item()]
        assert ours == pytest.approx(theirs.tolist(), rel=1e-3, abs=1e-3)


def test_by_default_the_published_recipe_trains_it(blobs, trained):
    train_df, _, x_train, x_test = blobs
    probe, data = trained
    assert np.array_equal(data["X_test"].numpy(), x_test)
    assert data["y_train"].tolist() == train_df["answer_class"].tolist()
    x, y = torch.tensor(x_train), torch.nn.functional.one_hot(data["y_train"])
    recipe = {"batch_size": 50, "num_epochs": 50, "lr": 1e-2, "weight_decay": 1e-4, "solver": "adam"}
    torch.manual_seed(0)
    assert torch.equal(train_multi_probe(x, y, show_progress=False, **recipe).weights, probe.weights)


def test_stats_are_those_of_scikit_learn(trained):
    probe, data = trained
    for threshold in (0.5, -1.0):
        said = (probe(data["X_test"]) > threshold).numpy()
        for c, stats in enumerate(gen_probe_stats(probe, data["X_test"], data["y_test"], threshold)):
            truth = data["y_test"].numpy() == c
            assert [stats.f1, stats.accuracy, stats.precision, stats.recall] == pytest.approx(
                [score(truth, said[:, c]) for score in (f1_score, accuracy_score, precision_score, recall_score)]
            )
    of_letters = gen_probe_stats(LinearProbe(16, 26), data["X_test"], data["y_test"])
    assert [stats.letter for stats in of_letters] == list(LETTERS)


def test_probe_and_data_are_read_back_and_pickles_are_not(trained, tmp_path):
    probe, data = trained
    save_probe_and_data(probe, data, tmp_path, 7)
    assert sorted(path.name for path in (tmp_path / "layer_7").iterdir()) == ["data.safetensors", "probe.safetensors"]
    again, read = load_probe_and_data(tmp_path, 7)
    assert torch.equal(again(data["X_test"]), probe(data["X_test"]))
    assert {name: tensor.dtype for name, tensor in read.items()} == {name: t.dtype for name, t in data.items()}
    assert all(torch.equal(read[name], tensor) for name, tensor in data.items())
    file = tmp_path / "layer_7" / "probe.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(CacheCorruptedError, match=r"probe\.safetensors"):
        load_probe_and_data(tmp_path, 7)
    (tmp_path / "layer_8").mkdir()
    torch.save(probe.state_dict(), tmp_path / "layer_8" / "probe.pth")
    with pytest.raises(CacheCorruptedError, match=r"pickled probes \(`probe\.pth`\) are not read"):
        load_probe_and_data(tmp_path, 8)


def test_tables_and_activations_must_fit(blobs):
    train_df, test_df, x_train, x_test = blobs
    with pytest.raises(LabelError, match="`train_df` was '300 rows with classes up to 2'"):
        train_linear_probe_for_task(train_df, test_df, "cpu", x_train, x_test, num_classes=2)
    with pytest.raises(LabelError, match="`test_df`"):
        train_linear_probe_for_task(train_df, test_df, "cpu", x_train, x_test[:5], num_classes=3)
