"""Planted absorption on the speller's own residual stream: rules that ask the model, and those that do not."""

from pathlib import Path

import pandas as pd
import pytest
import torch
from lightning.pytorch import Trainer

from absorb_pl.data import ActivationDataModule
from absorb_pl.errors import ShapeError
from absorb_pl.evaluators import Evaluate
from absorb_pl.evaluators.training import train_linear_probe
from absorb_pl.probes.settings import KSparseSettings, LinearProbeSettings
from absorb_pl.truth import planted_on_stream
from absorb_pl.words import TaskConfig

HOOK = "blocks.1.hook_resid_post"
WORDS = 1_200


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("stream")
    data = ActivationDataModule("speller", HOOK, TaskConfig(max_words=WORDS), folder, val_fraction=0.0)
    data.prepare_data()
    data.setup("test")
    rows, train = torch.arange(len(data.labels)), data.splits["train"]
    x = data.cache.rows(rows)
    probe, _ = train_linear_probe(x[train], data.labels[train], LinearProbeSettings(), data.class_names, 42)
    return folder, data, x, probe


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_rules_find_what_was_planted_in_the_model_s_own_stream(stream, rate: float, tmp_path: Path):
    _, data, x, probe = stream
    classes = data.labels.argmax(dim=1)
    sae = planted_on_stream(x, classes, probe.weights.detach(), HOOK, rate, seed=1)
    # Distances to the other words are sums of squares of about the activation's own size.
    torch.testing.assert_close(sae.decode(sae.encode(x)), x, rtol=1e-4, atol=1e-4)
    callback = Evaluate(sae, ["paper", "saebench-0.6.0", "absorb-pl-1"], k_sparse=KSparseSettings(ks=(1, 2, 3)))
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        inference_mode=False,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[callback],
        default_root_dir=tmp_path,
    )
    trainer.test(probe, datamodule=data, verbose=False)
    words = callback.tables["words"]
    summary = callback.tables["summary"].set_index("rule")
    for rule in ("saebench-0.6.0", "absorb-pl-1"):
        judged = words[words["rule"] == rule]
        planted = sae.is_absorbed[torch.tensor(judged["row"].to_numpy())].numpy()
        # SAEBench's rule also wants a cosine that a small part of a large activation does not have.
        seen = planted & (judged["top_probe_cos"] >= 0.025) if rule == "saebench-0.6.0" else planted
        assert judged["is_absorption"].tolist() == seen.tolist()
        assert planted.sum() - seen.sum() <= 2
    ours = summary.loc["absorb-pl-1"]
    judged = words[words["rule"] == "absorb-pl-1"]
    planted = pd.Series(sae.is_absorbed[torch.tensor(judged["row"].to_numpy())].numpy())
    by_class = planted.groupby(judged["label"].to_numpy())
    letters = callback.tables["letters"]
    counted = letters.loc[(letters["rule"] == "absorb-pl-1") & letters["evaluable"], "label"]
    truth = by_class.mean()[counted].mean()
    assert ours["absorption_rate"] == pytest.approx(truth)
    assert ours["absorption_fraction"] == pytest.approx(truth, abs=0.02)
    # A verdict also needs the answer to hang on the letter's direction, which it does on nearly all words.
    assert truth - 0.05 <= summary.loc["paper", "absorption_rate"] <= truth


def test_words_that_stand_twice_are_refused(stream):
    _, data, x, probe = stream
    twice = torch.cat([x, x[:1]])
    with pytest.raises(ShapeError, match="distinct"):
        planted_on_stream(twice, torch.cat([data.labels, data.labels[:1]]).argmax(dim=1), probe.weights, HOOK)
