"""Cross-fitting: no word is judged by what was found with it, and the figures are those of the folds."""

from typing import Any

import pandas as pd
import pytest
import torch
from torch.nn.functional import one_hot

from absorb_pl.errors import LabelError, RangeError, RuleError
from absorb_pl.evaluators import fold_mains as room
from absorb_pl.evaluators import folds as folds_room
from absorb_pl.evaluators.crossfit import crossfit
from absorb_pl.evaluators.folds import CrossfitSettings, Folds
from absorb_pl.functional.rates import LetterOutcome, letter_rate, repeated_rate, sae_rate
from absorb_pl.probes.settings import KSparseSettings
from absorb_pl.rules import RateSettings, configured_rules
from absorb_pl.schema import CROSSFIT, CROSSFIT_WORDS
from absorb_pl.truth import PlantedAbsorption, WorldSettings, make_world, planted_sae

QUICK = KSparseSettings(ks=(1, 2, 3))
SETTINGS = CrossfitSettings(folds=4, repeats=2)


@pytest.fixture(scope="module")
def planted():
    world = make_world(WorldSettings(classes=4, words_per_class=40, unrelated=20, unrelated_active=3))
    return planted_sae(world, PlantedAbsorption(0.3))


@pytest.fixture(scope="module")
def folds(planted: Any) -> Folds:
    world, _ = planted
    return Folds(world.activations, one_hot(world.classes).bool(), world.class_names, SETTINGS, seed=5)


@pytest.fixture(scope="module")
def found(planted: Any, folds: Folds) -> dict[str, pd.DataFrame]:
    return crossfit(planted[1].sae, folds, configured_rules(["absorb-pl-1", "saebench-0.6.0"]), k_sparse=QUICK)


def test_every_word_is_held_out_once_per_repeat(folds: Folds):
    for repeat in range(2):
        parts = list(folds.of_repeat(repeat))
        assert len(parts) == 4
        assert torch.cat([test for _, test in parts]).sort().values.tolist() == list(range(160))
        for fold, (train, test) in enumerate(parts):
            assert not set(train.tolist()) & set(test.tolist())
            assert len(train) + len(test) == 160
            assert folds.y[test].sum(dim=0).tolist() == [10] * 4
            assert folds.held_out(repeat)[test].tolist() == [fold] * 40
    first, second = (folds.held_out(repeat).tolist() for repeat in (0, 1))
    assert first != second


def test_nothing_of_a_word_reaches_what_judges_it(planted: Any, folds: Folds, monkeypatch: pytest.MonkeyPatch):
    """Probes are trained, and main latents chosen, on the other folds alone."""
    world, made = planted
    seen: list[tuple[str, set[int]]] = []
    linear, chosen, rows = folds_room.train_linear_probe, room._chosen_latents, folds_room.EvaluationRows
    places = {row.numpy().tobytes(): number for number, row in enumerate(world.activations)}

    def train_linear(x: torch.Tensor, *args: Any, **how: Any) -> Any:
        seen.append(("linear", {places[row.numpy().tobytes()] for row in x}))
        return linear(x, *args, **how)

    def choose(sae: Any, ranking: Any, fold: int, x: torch.Tensor, *args: Any) -> Any:
        assert (ranking.trained_on[:, fold].nonzero().squeeze(1).tolist()) == sorted(
            places[row.numpy().tobytes()] for row in x
        )
        seen.append(("chosen", {places[row.numpy().tobytes()] for row in x}))
        return chosen(sae, ranking, fold, x, *args)

    class Rows(rows):
        @classmethod
        def of(cls, x: Any, y: Any, index: torch.Tensor, *args: Any) -> Any:
            seen.append(("judged", set(index.tolist())))
            return rows.of(x, y, index, *args)

    monkeypatch.setattr(folds_room, "train_linear_probe", train_linear)
    monkeypatch.setattr(room, "_chosen_latents", choose)
    monkeypatch.setattr(folds_room, "EvaluationRows", Rows)
    crossfit(made.sae, folds, configured_rules("saebench-0.6.0"), k_sparse=QUICK)
    by_kind = {kind: [words for name, words in seen if name == kind] for kind in ("linear", "chosen", "judged")}
    assert [len(found) for found in by_kind.values()] == [8, 8, 16]  # asked for candidates first, then judged
    assert by_kind["judged"][:8] == by_kind["judged"][8:]
    for trained, ranked, held_out in zip(by_kind["linear"], by_kind["chosen"], by_kind["judged"][:8], strict=True):
        assert trained == ranked
        assert not trained & held_out
        assert len(trained | held_out) == 160


def test_the_tables_have_the_columns_that_the_schema_says(found: dict[str, pd.DataFrame]):
    assert list(found["crossfit"]) == [name for name in CROSSFIT if name != "sae"]
    assert list(found["crossfit_words"]) == [name for name in CROSSFIT_WORDS if name != "sae"]
    assert found["crossfit"]["label"].tolist() == ["", "a", "b", "c", "d"] * 2


def test_verdicts_are_the_truth_for_clean_absorption(planted: Any, found: dict[str, pd.DataFrame]):
    words = found["crossfit_words"].merge(planted[1].truth[["row", "is_absorbed"]], on="row")
    ours = words[words["rule"] == "absorb-pl-1"]
    assert len(ours) == 2 * 160
    assert (ours["is_absorption"] == ours["is_absorbed"]).all()
    assert words.groupby(["rule", "repeat", "row"]).size().max() == 1


def test_rates_are_means_over_repeats_of_all_folds_together(found: dict[str, pd.DataFrame]):
    words = found["crossfit_words"]
    for rule in ("absorb-pl-1", "saebench-0.6.0"):
        table = found["crossfit"].set_index(["rule", "label"]).loc[rule]
        of_rule = words[words["rule"] == rule]
        repeats, pooled = [], []
        for _, judged in of_rule.groupby("repeat"):
            letters = []
            for _, own in judged.groupby("label"):
                absorbers = torch.tensor(own.loc[own["is_absorption"], "top_latent"].to_numpy())
                amounts = torch.tensor(own["is_absorption"].to_numpy(float))
                letters.append(LetterOutcome(amounts, len(own), absorbers=absorbers))
            repeats.append(sae_rate(letters))
            pooled.append(sae_rate(letters, pooled=True))
            assert letter_rate(letters[0]).value == pytest.approx(letters[0].amounts.mean().item())
        expected, over_words = repeated_rate(repeats), repeated_rate(pooled)
        row = table.loc[""]
        for name, value in (("absorption_rate", "value"), ("ci_low", "ci_low"), ("se_selection", "se_selection")):
            assert row[name] == pytest.approx(getattr(expected, value), rel=1e-12)
        assert row["pooled_ci_high"] == pytest.approx(over_words.ci_high, rel=1e-12)
        assert row["num_words"] == pytest.approx(len(of_rule) / 2)


def test_linear_probes_are_trained_once_for_all_saes(planted: Any, folds: Folds, monkeypatch: pytest.MonkeyPatch):
    probe = folds.probe_of_fold()
    for repeat in range(2):
        for fold, (train, _) in enumerate(folds.of_repeat(repeat)):
            probe(repeat, fold, train)
    monkeypatch.setattr(folds_room, "train_linear_probe", None)
    crossfit(planted[1].sae, folds, configured_rules("absorb-pl-1"), probe_of_fold=probe, k_sparse=QUICK)


def test_classes_of_fewer_words_than_folds_are_judged_where_they_are(planted: Any):
    world, made = planted
    few = torch.cat([(world.classes == c).nonzero().squeeze(1)[: 2 if c == 0 else 40] for c in range(4)])
    folds = Folds(
        world.activations[few], one_hot(world.classes[few]).bool(), world.class_names, CrossfitSettings(4, 1), seed=1
    )
    rates = RateSettings(min_probe_f1=0)
    found = crossfit(made.sae, folds, configured_rules("absorb-pl-1"), k_sparse=QUICK, rates=rates)
    table = found["crossfit"].set_index("label")
    assert table.loc["b", "num_words"] == 40
    assert table.loc["", "evaluable"]
    assert table.loc["a", "num_words"] <= 2


def test_bad_settings_are_named(planted: Any, folds: Folds):
    world, made = planted
    with pytest.raises(RangeError, match="folds"):
        CrossfitSettings(folds=1)
    with pytest.raises(LabelError, match="largest class, which has 40"):
        Folds(world.activations, one_hot(world.classes).bool(), world.class_names, CrossfitSettings(folds=41), seed=0)
    with pytest.raises(RuleError, match="paper"):
        crossfit(made.sae, folds, configured_rules("paper"), k_sparse=QUICK)


def test_classes_without_a_rate_say_why(planted: Any, folds: Folds):
    weight = torch.randn(4, folds.x.shape[1], generator=torch.Generator().manual_seed(0))
    found = crossfit(
        planted[1].sae,
        folds,
        configured_rules("absorb-pl-1"),
        k_sparse=QUICK,
        rates=RateSettings(min_probe_f1=1.0),
        probe_of_fold=lambda *_: (weight, torch.zeros(4)),
    )
    table = found["crossfit"]
    assert not table["evaluable"].any()
    assert table["reason"].str.contains("probe F1|no evaluable|true positives").all()
