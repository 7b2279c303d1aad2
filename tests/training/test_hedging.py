"""Hedging in worlds where features go together, and where they do not."""

from datetime import timedelta

import numpy as np
import pandas as pd
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy

from absorb_pl.errors import AbsorbError, RangeError
from absorb_pl.probes import LinearProbe
from absorb_pl.saes import load_sae
from absorb_pl.saes.properties import hedging_of
from absorb_pl.training import (
    ActivationSource,
    MeasureHedging,
    SaeExport,
    SaeOptimisation,
    SaeSettings,
    SparseAutoencoderModule,
    TokenActivationDataModule,
    WorldActivations,
    measure_hedging,
)
from absorb_pl.training.sources import chunk_rng
from absorb_pl.truth import HierarchyDataModule

pytestmark = pytest.mark.usefixtures("_one_thread")

PAIRS, WIDTH = 6, 64


class Pairs(ActivationSource):
    """Features in pairs, in orthogonal directions: the second more often with the first, or whatever it does."""

    def __init__(self, together: bool) -> None:
        self.together = together

    @property
    def hook_widths(self):
        return {"x": WIDTH}

    @property
    def num_chunks(self):
        return None

    @property
    def identity(self):
        return {"together": self.together}

    def chunk(self, number, device):
        rng = chunk_rng(9, number)
        first = rng.random((512, PAIRS)) < 0.3
        second = rng.random((512, PAIRS)) < (np.where(first, 0.6, 0.1) if self.together else 0.25)
        fires = torch.from_numpy(first), torch.from_numpy(second)
        return {"x": torch.nn.functional.pad(torch.cat(fires, dim=1).float(), (0, WIDTH - 2 * PAIRS)).to(device)}


def trainer(tmp_path, steps, **more):
    return Trainer(
        accelerator="cpu",
        max_steps=steps,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        **more,
    )


def hedging(tmp_path, *, together):
    data = TokenActivationDataModule(Pairs(together), batch_size=512, chunks_per_buffer=8)
    narrow = SaeSettings("standard", PAIRS, settings={"l1_coefficient": 0.05})
    module = SparseAutoencoderModule({"narrow": narrow}, data.hook_widths, SaeOptimisation(lr=2e-2))
    trainer(tmp_path, 400).fit(module, data)
    before = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    found = measure_hedging(module, data, lambda: trainer(tmp_path, 400), new_latents=PAIRS)["narrow"]
    assert all(torch.equal(before[key], tensor) for key, tensor in module.state_dict().items())
    return found


def test_a_narrow_sae_hedges_where_features_come_together(tmp_path):
    together, apart = (hedging(tmp_path, together=way) for way in (True, False))
    # The only latent of a pair points to both of its features; what it gives up is nearly the whole second one.
    assert together.degree > 0.4
    assert together.moved > 0.5
    assert apart.degree < 0.05


def test_the_degree_goes_with_the_saved_sae_into_a_study(tmp_path):
    data = TokenActivationDataModule(WorldActivations("superposition", rows_per_chunk=64), batch_size=64)
    saes = {
        "one": SaeSettings("standard", 24, settings={"l1_coefficient": 0.5, "l1_warm_up_steps": 20}),
        "two": SaeSettings("topk", 32, settings={"k": 3}, lr=1e-3),
    }
    module = SparseAutoencoderModule(saes, data.hook_widths, SaeOptimisation(lr=5e-3, lr_warm_up_steps=5))
    measuring = MeasureHedging(new_latents=8, steps=15)
    running = trainer(tmp_path, 30)
    running.callbacks += [SaeExport(), measuring]
    running.fit(module, data)
    assert data.trainer is running
    table = pd.read_parquet(tmp_path / "tables" / "hedging.parquet")
    pd.testing.assert_frame_equal(table, measuring.found)
    for name, row in table.set_index("sae").iterrows():
        alone = SparseAutoencoderModule({name: saes[name]}, data.hook_widths, module.optimisation)
        trainer(tmp_path, 30).fit(alone, data)
        expected = measure_hedging(alone, data, lambda: trainer(tmp_path, 15), new_latents=8)[name]
        assert row[["moved", "by_chance", "degree"]].tolist() == list(expected)
        saved = load_sae(str(tmp_path / "saes" / name))
        assert hedging_of(saved) == row["degree"]
    assert table["degree"].max() > 0


def test_measuring_on_the_way_leaves_the_training_as_it_is(tmp_path):
    data = TokenActivationDataModule(WorldActivations("superposition", rows_per_chunk=64), batch_size=64)
    saes = {
        "one": SaeSettings("batchtopk", 24, settings={"k": 3}),
        "two": SaeSettings("matryoshka_batchtopk", 32, settings={"k": 3, "matryoshka_widths": [8, 32]}),
    }
    weights, measuring = {}, {}
    for way, every in (("end", None), ("way", 10)):
        module = SparseAutoencoderModule(saes, data.hook_widths, SaeOptimisation(lr=5e-3, lr_decay_steps=10))
        measuring[way] = MeasureHedging(new_latents=8, steps=5, every_n_steps=every)
        running = trainer(tmp_path / way, 30)
        running.callbacks += [measuring[way], SaeExport(every_n_steps=15)]
        torch.manual_seed(0)
        running.fit(module, data)
        weights[way] = {key: tensor.clone() for key, tensor in module.state_dict().items()}, torch.get_rng_state()
    assert all(tensor.equal(weights["way"][0][key]) for key, tensor in weights["end"][0].items())
    assert weights["end"][1].equal(weights["way"][1])
    found = measuring["way"].found
    assert found["step"].tolist() == [10, 10, 20, 20, 30, 30]
    pd.testing.assert_frame_equal(found[found["step"] == 30].reset_index(drop=True), measuring["end"].found)
    assert found.loc[found["sae"] == "one", "moved"].nunique() == 3
    running.save_checkpoint(tmp_path / "way.ckpt")
    [kept] = [
        state
        for name, state in torch.load(tmp_path / "way.ckpt", weights_only=True)["callbacks"].items()
        if "MeasureHedging" in name
    ]
    again = MeasureHedging()
    again.load_state_dict(kept)
    pd.testing.assert_frame_equal(again.found, found)
    degrees = found.set_index(["sae", "step"])["degree"]
    for name in saes:  # a degree is that of the step at which the SAE was saved
        assert hedging_of(load_sae(str(tmp_path / "way" / "saes" / name))) == degrees[name, 30]
        assert np.isnan(hedging_of(load_sae(str(tmp_path / "way" / "saes" / "step-15" / name))))
    assert [path.name for path in sorted((tmp_path / "way" / "figures").iterdir())] == [
        "hedging_while_training.png",
        "hedging_while_training.svg",
    ]
    assert not (tmp_path / "end" / "figures").exists()


def test_two_processes_measure_as_one_does(tmp_path):
    saes = {"one": SaeSettings("standard", 24, settings={"l1_coefficient": 0.5})}
    in_two = DDPStrategy(start_method="fork", timeout=timedelta(seconds=60))  # ends if one waits for the other
    found = []
    for way, more in (("one", {}), ("two", {"devices": 2, "strategy": in_two})):
        data = TokenActivationDataModule(WorldActivations("superposition", rows_per_chunk=64), batch_size=64)
        module = SparseAutoencoderModule(saes, data.hook_widths, SaeOptimisation(lr=5e-3))
        running = trainer(tmp_path / way, 20, **more)
        running.callbacks.append(MeasureHedging(new_latents=8, steps=5, every_n_steps=10))
        running.fit(module, data)
        found.append(pd.read_parquet(tmp_path / way / "tables" / "hedging.parquet"))
    pd.testing.assert_frame_equal(found[0], found[1], rtol=1e-3)
    assert found[0]["step"].tolist() == [10, 20]


@pytest.mark.parametrize(
    "settings",
    [
        SaeSettings("batchtopk", 8, settings={"k": 2}),
        SaeSettings("gated", 8),
        SaeSettings("jumprelu", 8),
        SaeSettings("matching_pursuit", 8, settings={"max_iterations": 2}),
    ],
)
def test_every_architecture_can_be_extended(tmp_path, settings):
    data = TokenActivationDataModule(Pairs(together=True), batch_size=64, chunks_per_buffer=4)
    module = SparseAutoencoderModule({"a": settings}, data.hook_widths)
    found = measure_hedging(module, data, lambda: trainer(tmp_path, 2), new_latents=3)["a"]
    assert 0 <= found.degree < 0.05
    with pytest.raises(RangeError, match="`new_latents` was 0"):
        measure_hedging(module, data, lambda: trainer(tmp_path, 2), new_latents=0)


def test_something_else_in_training_is_refused(tmp_path):
    data = HierarchyDataModule("superposition", rows_per_parent=30)
    running = trainer(tmp_path, 1)
    running.callbacks.append(MeasureHedging())
    with pytest.raises(AbsorbError, match="`callbacks` was 'MeasureHedging with LinearProbe', expected a Sparse"):
        running.fit(LinearProbe(64, 12), data)
