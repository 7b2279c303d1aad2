"""Rows of several classes: each class is judged for itself, and a second class takes nothing from the first."""

from typing import Any

import pandas as pd
import pytest
import torch

from absorb_pl import evaluate_activations
from absorb_pl.errors import LabelError
from absorb_pl.evaluators.folds import CrossfitSettings
from absorb_pl.truth import PlantedAbsorption, WorldSettings, make_world, planted_sae

RULES = ["absorb-pl-1", "saebench-0.6.0"]
FOLDS = CrossfitSettings(folds=3, repeats=2)


@pytest.fixture(scope="module")
def planted() -> Any:
    return planted_sae(
        make_world(WorldSettings(classes=4, words_per_class=60, unrelated=20, unrelated_active=3)),
        PlantedAbsorption(0.25),
    )


def judged(planted: Any, labels: list[Any], **how: Any) -> dict[str, pd.DataFrame]:
    world, made = planted
    return evaluate_activations(made.sae, world.activations, labels, RULES, **how)


def letters_of(planted: Any) -> list[str]:
    world, _ = planted
    return [world.class_names[c] for c in world.classes.tolist()]


def test_a_class_and_its_double_get_the_same_verdicts(planted: Any):
    tables = judged(planted, [(letter, letter + letter) for letter in letters_of(planted)], crossfit=FOLDS)
    for name, by in (("words", ["rule", "row"]), ("crossfit_words", ["rule", "repeat", "row"])):
        words = tables[name].set_index(by)
        single, double = (words[words["label"].str.len() == size].sort_index() for size in (1, 2))
        assert len(single) == len(double) > 90
        assert single["is_absorption"].tolist() == double["is_absorption"].tolist()
        assert (single["label"] * 2).tolist() == double["label"].tolist()
    letters = tables["letters"].set_index(["rule", "label"])["absorption_rate"]
    for rule in RULES:
        for letter in "abcd":
            assert letters[rule, letter] == letters[rule, letter * 2]


def test_verdicts_on_letters_are_the_truth_beside_another_kind_of_class(planted: Any):
    world, made = planted
    length = torch.randint(2, (len(world.activations),), generator=torch.Generator().manual_seed(0)).tolist()
    labels = [[letter, ("even", "odd")[odd]] for letter, odd in zip(letters_of(planted), length, strict=True)]
    found = judged(planted, labels)
    words = found["words"][(found["words"]["rule"] == "absorb-pl-1") & (found["words"]["label"].str.len() == 1)]
    words = words.merge(made.truth[["row", "is_absorbed"]], on="row")
    assert len(words) > 40
    assert (words["is_absorption"] == words["is_absorbed"]).all()
    assert set(found["letters"]["label"]) == {"a", "b", "c", "d", "even", "odd"}


def test_lists_of_one_label_are_labels(planted: Any):
    plain, listed = (judged(planted, labels) for labels in (letters_of(planted), [[x] for x in letters_of(planted)]))
    for name, table in plain.items():
        pd.testing.assert_frame_equal(listed[name], table)


def test_rows_without_a_label_are_named(planted: Any):
    labels: list[Any] = [[x] for x in letters_of(planted)]
    labels[7] = []
    with pytest.raises(LabelError, match="row 7"):
        judged(planted, labels)
