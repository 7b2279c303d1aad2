"""What latents carry of a feature, gathered in parts, against loops over words and latents."""

import pandas as pd
import pytest
import torch
from torch.nn.functional import one_hot

from absorb_pl.evaluators.carried import gather_carried
from absorb_pl.evaluators.sae_probing import EvaluationRows
from absorb_pl.rules.evidence import Carried
from absorb_pl.saes import encode_rows, portions
from absorb_pl.schema import CARRIED
from absorb_pl.truth import PlantedAbsorption, WorldSettings, make_world, planted_sae

SETTINGS = WorldSettings(classes=3, words_per_class=16, unrelated=12, unrelated_active=3, superposition=1.5)


@pytest.fixture(scope="module")
def case():
    world, made = planted_sae(make_world(SETTINGS), PlantedAbsorption(0.3, still_fires=0.4))
    sae = made.sae.to(torch.float64)
    sae.cfg.dtype = "float64"
    y = one_hot(world.classes, 3)
    weight, bias = world.directions[:3].clone(), torch.full((3,), -0.4, dtype=torch.float64)
    x = world.activations.double()
    rows = EvaluationRows.of(x, y, torch.arange(len(x)) + 100, weight, bias, world.class_names)
    letters = pd.DataFrame({"label": list(world.class_names), "tracking_latent": [0, 1, 2]})
    return world, sae, rows, letters, gather_carried(sae, rows, letters, Carried())


def test_columns_are_those_of_the_schema(case):
    *_, found = case
    assert list(found) == list(CARRIED)
    assert found["row"].is_monotonic_increasing


def test_figures_are_sums_over_latents_less_their_means_on_other_classes(case):
    world, sae, rows, _, found = case
    latents = encode_rows(sae, rows.x)
    decoder = sae.W_dec
    classes = world.classes
    fired = torch.stack([(latents[classes == c] != 0).sum(dim=0) for c in range(3)])
    for c in range(3):
        d = decoder[c] / decoder[c].norm()
        own = [j for j in range(len(decoder)) if float(decoder[j] @ d) >= 0.95 * float(decoder[j].norm())]
        counted = [
            j
            for j in range(len(decoder))
            if j not in own and not any(2 * fired[k, j] > fired[:, j].sum() for k in range(3) if k != c)
        ]

        def written(w: int, ids: list[int], d: torch.Tensor = d) -> float:
            return sum(float(latents[w, j]) * float(decoder[j] @ d) for j in ids)

        others = [w for w in range(len(classes)) if classes[w] != c]
        null = sum(written(w, counted) for w in others) / len(others)
        rest = [j for j in range(len(decoder)) if j not in counted]
        base = sum(float(rows.x[w] @ d) - written(w, rest) for w in others) / len(others)
        table = found[found["label"] == world.class_names[c]]
        assert len(table) > 0
        for row in table.to_dict("records"):
            w = row["row"] - 100
            assert row["others_part"] == pytest.approx(written(w, counted) - null, abs=1e-9)
            assert row["own_part"] == pytest.approx(written(w, own), abs=1e-9)
            assert row["feature_size"] == pytest.approx(float(rows.x[w] @ d) - base, abs=1e-9)
            assert row["main_max"] == pytest.approx(max(float(latents[w, j].abs()) for j in own), abs=1e-6)
            assert row["own_latents"] == own
            parts = sorted((written(w, [j]) for j in counted), reverse=True)
            assert row["carrier_parts"][: len(parts)] == pytest.approx(
                [part for part in parts[:5] if part > 0], abs=1e-9
            )
            assert row["top_score"] == pytest.approx(max(parts[0], 0.0), abs=1e-9)


def test_the_linear_probe_says_which_words_are_scored(case):
    _, _, rows, _, found = case
    assert found["row"].tolist() == (rows.seen[:, 0] + 100).tolist()


def test_parts_and_the_order_of_words_change_nothing(case, monkeypatch):
    _, sae, rows, letters, found = case
    monkeypatch.setattr(portions, "CHUNK_BYTES", 8 * 4 * 5 * len(sae.W_dec))
    order = torch.randperm(len(rows.x), generator=torch.Generator().manual_seed(0))
    turned = EvaluationRows(
        rows.x[order], rows.y[order], rows.index[order], rows.probe_weight, rows.probe_logits[order], rows.class_names
    )
    again = gather_carried(sae, turned, letters, Carried())
    assert again["row"].tolist() == found["row"].tolist()
    for name in ("feature_size", "own_part", "others_part", "usual_part", "top_score"):
        assert again[name].tolist() == pytest.approx(found[name].tolist(), abs=1e-9)
    assert again["top_latent"].tolist() == found["top_latent"].tolist()
