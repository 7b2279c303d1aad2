"""A study of SAEs of every architecture and hook kind, of a training checkpoint, and of one from elsewhere."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
from sae_lens.registry import get_sae_class
from sae_lens.saes.sae import SAEMetadata

from absorb_pl.study import StudyResult, run_study

pytestmark = pytest.mark.slow

KINDS = {
    "gated": "blocks.1.hook_mlp_out",
    "abstopk": "blocks.1.hook_attn_out",
    "jumprelu": "blocks.1.attn.hook_z",
    "matching_pursuit": "blocks.1.attn.hook_z",
}
MODULE = """
import torch

class Mine:
    hook_name = "blocks.1.attn.hook_z"

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.W_dec = torch.randn(96, 48, generator=generator) / 7

    def encode(self, x):
        return torch.relu(x @ self.W_dec.T)

    def decode(self, latents):
        return latents @ self.W_dec

def load():
    mine = Mine()
    mine.identity = "by seed 0"
    return mine
"""


def randomise(sae: Any) -> Any:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            scale = 0.1 if name.startswith("b_") else 1 / 7
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
            if name == "threshold":
                parameter.abs_()
    return sae


@pytest.fixture(scope="module")
def result(
    study_config: Callable[..., Any],
    _one_thread: None,
    _without_figures: None,
    tmp_path_factory: pytest.TempPathFactory,
    golden: Path,
) -> StudyResult:
    folder = tmp_path_factory.mktemp("any_sae")
    for architecture, hook in KINDS.items():
        kind, config = get_sae_class(architecture)
        options: dict[str, Any] = {"k": 9} if "topk" in architecture else {}
        if hook.endswith("hook_z"):
            options["reshape_activations"] = "hook_z"
        sae = kind(config(d_in=48, d_sae=96, metadata=SAEMetadata(hook_name=hook), **options))
        randomise(sae).save_model(folder / architecture)
    metadata = SAEMetadata(hook_name="blocks.1.hook_resid_post")
    training = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(d_in=48, d_sae=96, k=9.0, metadata=metadata))
    randomise(training).save_model(folder / "checkpoint")
    (folder / "my_any_saes.py").write_text(MODULE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(golden.parents[1])
        config = study_config(folder, "--splits.silent=0.5", "--k_sparse.max_epochs=2")
        patch.chdir(folder)
        config = dataclasses.replace(
            config, model=str(golden / "gpt2-micro"), saes=[*KINDS, "checkpoint", "my_any_saes:load"]
        )
        return run_study(config)


def test_every_kind_of_sae_is_measured(result: StudyResult) -> None:
    summary = result.tables["summary"].drop_duplicates("sae").set_index("sae")
    assert list(summary.index) == [*KINDS, "checkpoint", "my_any_saes:load"]
    assert summary["architecture"].to_dict() == {
        **{name: name for name in KINDS},
        "checkpoint": "batchtopk",
        "my_any_saes:load": "Mine",
    }
    assert summary.loc[list(KINDS), "hook_name"].to_dict() == KINDS
    assert (summary["d_sae"] == 96).all()
    assert summary["l0"].between(1, 96).all()
    assert summary[["explained_variance", "probe_f1", "top_latent_precision"]].notna().all().all()


def test_words_are_judged_where_activations_have_heads(result: StudyResult) -> None:
    words = result.tables["words"]
    judged = words.groupby("sae").size()
    assert {"jumprelu", "my_any_saes:load"} & set(judged.index)
    scored = words[words["sae"].isin(["jumprelu", "my_any_saes:load", "gated"])]
    assert pd.notna(scored["top_score"]).all()
    assert (scored.groupby("sae")["top_score"].min() < 0).all()
