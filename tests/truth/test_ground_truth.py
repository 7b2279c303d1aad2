"""Worlds as Lightning data, and the truth of an SAE beside what rules say of it."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from lightning.pytorch import Trainer

from absorb_pl import evaluate_activations, load_sae
from absorb_pl.cli import main
from absorb_pl.errors import AbsorbError, SaeWidthError, SplitError
from absorb_pl.evaluators import Evaluate
from absorb_pl.functional.truth import edge_gap
from absorb_pl.probes import LinearProbe
from absorb_pl.schema import EDGES, TRUTH
from absorb_pl.truth import GroundTruthEvaluator, HierarchyDataModule
from absorb_pl.truth.hierarchy import hierarchy_truth
from absorb_pl.truth.trained import trained_sae_path

SAE = str(trained_sae_path("frequent-children/standard-0.3"))
OTHER_WIDTH = str(trained_sae_path("superposition/standard-0.3"))


def trainer(folder: Path, **how: Any) -> Trainer:
    return Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
        **how,
    )


@pytest.fixture(scope="module")
def tested(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("world")
    data = HierarchyDataModule(rows_per_parent=150)
    probe = LinearProbe(data.width, data.num_classes, class_names=data.class_names)
    fitter = trainer(folder)
    fitter.fit(probe, datamodule=data)
    fitter.save_checkpoint(folder / "probe.ckpt")
    evaluate, truth = Evaluate(SAE, rules=["absorb-pl-1", "saebench-0.6.0"]), GroundTruthEvaluator(SAE)
    [logged] = trainer(folder, callbacks=[evaluate, truth]).test(probe, datamodule=data, verbose=False)
    return folder, data, evaluate.tables, truth.tables, logged


def test_the_truth_is_that_of_the_held_out_samples(tested: Any):
    _, data, _, tables, logged = tested
    test = data.splits["test"]
    expected = hierarchy_truth(data.hierarchy, load_sae(SAE), data.sizes(test), data.rows(test))
    expected["row"] = test[expected["row"].to_numpy()].numpy()
    pd.testing.assert_frame_equal(tables["truth"].drop(columns="sae"), expected)
    assert list(tables["truth"]) == list(TRUTH)
    rate = expected.groupby("label")["is_absorbed"].mean().mean()
    assert logged["test/truth/absorption_rate"] == pytest.approx(rate)
    assert rate > 0.05


def test_rules_stand_beside_it(tested: Any):
    _, data, tables, _, logged = tested
    assert logged["test/absorb-pl-1/absorption_rate"] == pytest.approx(logged["test/truth/absorption_rate"], abs=0.05)
    labels = [data.class_names[c] for c in data.label_numbers.tolist()]
    alone = evaluate_activations(SAE, data.rows(torch.arange(len(labels))), labels, "absorb-pl-1", seed=42)
    found = tables["summary"].set_index("rule").loc["absorb-pl-1", "absorption_rate"]
    assert found == pytest.approx(alone["summary"]["absorption_rate"].item(), abs=0.02)
    assert set(tables["words"]["row"]) <= set(data.splits["test"].tolist())


def test_edges_are_counted_sample_by_sample(tested: Any):
    _, data, _, tables, logged = tested
    edges, test = tables["edges"], data.splits["test"]
    assert list(edges) == list(EDGES)
    assert len(edges) == 12 * 6
    sizes, latents = data.sizes(test), load_sae(SAE).encode(data.rows(test))
    for edge in edges.sample(12, random_state=0).to_dict("records"):
        parent, counts = data.class_names.index(edge["label"]), {"on": [0, 0], "off": [0, 0]}
        for row in range(len(test)):
            if sizes[row, parent] > 0:
                kind = counts["on" if sizes[row, edge["child"]] > 0 else "off"]
                kind[0] += 1
                kind[1] += int(latents[row, edge["tracking_latent"]] != 0)
        assert [edge["rows_on"], edge["fired_on"]] == counts["on"]
        assert [edge["rows_off"], edge["fired_off"]] == counts["off"]
    eligible = edges[edges["eligible"]]
    assert logged["test/truth/gap"] == pytest.approx(eligible["gap"].mean())
    assert logged["test/truth/eligible_edges"] == len(eligible)
    assert logged["test/truth/gap"] > 0.1


def test_a_gap_that_is_not_known_is_not_nought():
    there, never = torch.ones(5, dtype=torch.bool), torch.zeros(5, dtype=torch.bool)
    found = edge_gap(there, there, never)
    assert (found.rows_on, found.rows_off, found.eligible) == (0, 5, False)
    assert found.gap != found.gap
    half = torch.tensor([True, True, False, False, False])
    assert edge_gap(half, there, half).gap == pytest.approx(0.0 - 1.0)


def test_samples_that_were_trained_on_are_not_scored(tested: Any):
    folder, *_ = tested
    for how, refused in (({"split_seed": 1}, True), ({"seed": 1}, False), ({"world": "rare-children"}, False)):
        data = HierarchyDataModule(**{"rows_per_parent": 150, **how})
        probe = LinearProbe(data.width, data.num_classes)
        if refused:
            with pytest.raises(SplitError, match="trained on"):
                trainer(folder).test(probe, datamodule=data, ckpt_path=folder / "probe.ckpt", verbose=False)
        else:
            trainer(folder).test(probe, datamodule=data, ckpt_path=folder / "probe.ckpt", verbose=False)


def test_what_does_not_fit_is_refused(tested: Any, tmp_path: Path):
    folder, data, *_ = tested
    probe = LinearProbe(data.width, data.num_classes)
    with pytest.raises(SaeWidthError):
        trainer(folder, callbacks=[GroundTruthEvaluator(OTHER_WIDTH)]).test(probe, datamodule=data)
    with pytest.raises(SystemExit) as stopped:
        main(
            [
                "test",
                "--model=LinearProbe",
                "--data=ActivationDataModule",
                "--trainer.callbacks=GroundTruthEvaluator",
                f"--trainer.callbacks.sae={SAE}",
                "--data.task.max_words=100",
                f"--data.cache_dir={tmp_path}",
                "--trainer.accelerator=cpu",
            ]
        )
    assert isinstance(stopped.value.__cause__, AbsorbError)
    assert "HierarchyDataModule" in str(stopped.value.__cause__)
