"""Shuffled copies of an SAE: they fire alike, and their rates tell what absorption is more than chance."""

from typing import Any

import pandas as pd
import pytest
import torch

from absorb_pl import evaluate_activations
from absorb_pl.errors import RangeError, RuleError, SaeArchitectureError
from absorb_pl.evaluators.shuffles import AMOUNTS, check_shuffles, shuffles_table
from absorb_pl.rules import configured_rules
from absorb_pl.saes import control_sae
from absorb_pl.schema import SHUFFLES
from absorb_pl.truth import PlantedAbsorption, WorldSettings, make_world, planted_sae

RULES = ["absorb-pl-1", "saebench-0.6.0"]


def shuffled(rate: float, copies: int = 19, **how: Any) -> dict[str, Any]:
    world, made = planted_sae(
        make_world(WorldSettings(classes=5, words_per_class=60, unrelated=30, unrelated_active=4)),
        PlantedAbsorption(rate),
    )
    labels = [world.class_names[c] for c in world.classes.tolist()]
    return evaluate_activations(made.sae, world.activations, labels, RULES, shuffles=copies, **how)


@pytest.fixture(scope="module")
def absorbing() -> dict[str, Any]:
    return shuffled(0.4)


def test_planted_absorption_exceeds_its_copies(absorbing: dict[str, Any]):
    table = absorbing["shuffles"]
    assert list(table) == list(SHUFFLES)
    assert set(zip(table["rule"], table["amount"], strict=True)) == {
        (rule, amount) for rule in RULES for amount in ("absorption_rate", "absorption_fraction")
    }
    rates = table[table["amount"] == "absorption_rate"].set_index("rule")
    assert rates.loc["absorb-pl-1", "exceeds"]
    assert rates.loc["absorb-pl-1", "p_value"] == pytest.approx(1 / 20)
    assert rates.loc["absorb-pl-1", "excess_ci_low"] > 0.2
    summary = absorbing["summary"].set_index("rule")
    for rule, row in rates.iterrows():
        assert row["value"] == summary.loc[rule, "absorption_rate"]
        assert len(row["shuffled_rates"]) == row["copies"] == 19
        assert row["shuffled_mean"] == pytest.approx(sum(row["shuffled_rates"]) / 19)
        assert row["excess"] == pytest.approx(row["value"] - row["shuffled_mean"])


def test_no_absorption_does_not():
    rates = shuffled(0.0)["shuffles"]
    assert not rates[rates["amount"] == "absorption_rate"]["exceeds"].any()


def test_a_copys_rate_is_that_of_the_copy_scored_alone():
    world, made = planted_sae(
        make_world(WorldSettings(classes=5, words_per_class=60, unrelated=30, unrelated_active=4)),
        PlantedAbsorption(0.4),
    )
    labels = [world.class_names[c] for c in world.classes.tolist()]
    found = evaluate_activations(made.sae, world.activations, labels, RULES, shuffles=3)["shuffles"]
    table = found[found["amount"] == "absorption_rate"].set_index("rule")["shuffled_rates"]
    for copy in range(3):
        control = control_sae(made.sae, "shuffled_decoder", copy)
        assert torch.equal(control.encode(world.activations), made.sae.encode(world.activations))
        alone = evaluate_activations(control, world.activations, labels, RULES)["summary"].set_index("rule")
        for rule in RULES:
            assert table[rule][copy] == pytest.approx(alone.loc[rule, "absorption_rate"], abs=1e-12)


def test_rules_on_gradients_are_left_out_of_the_table():
    figures = [{"rule": "paper", "absorption_rate": 0.1, "ci_low": 0.0, "ci_high": 0.2, "absorption_fraction": None}]
    empty = shuffles_table(pd.DataFrame(columns=["rule", "copy", *AMOUNTS]), figures, 0.95)
    assert len(empty) == 0
    assert list(empty) == [name for name in SHUFFLES if name != "sae"]


def test_bad_numbers_are_named():
    with pytest.raises(RangeError, match="2 and more"):
        check_shuffles(1, configured_rules("absorb-pl-1"))
    with pytest.raises(RuleError, match="shuffles"):
        check_shuffles(19, configured_rules("paper"))
    tied = type("Tied", (), {"W_dec": torch.eye(4), "encode": torch.relu, "decode": staticmethod(lambda f: f)})()
    with pytest.raises(SaeArchitectureError, match="W_enc"):
        evaluate_activations(tied, torch.eye(4).repeat(20, 1), list("abcd") * 20, shuffles=2)
