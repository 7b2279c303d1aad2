import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from absorb_pl.errors import SaeNotFoundError
from absorb_pl.saes import bundled_sae_path, expand_sae_names, list_saes

GOLDEN = Path(__file__).parents[1] / "golden" / "gpt2-micro"
COLUMNS = ["name", "release", "model", "hook_name", "layer", "d_sae", "published_l0", "architecture"]


def only_row(name: str) -> dict[str, Any]:
    table = list_saes([name])
    assert list(table.columns) == COLUMNS
    assert len(table) == 1
    return {key: None if pd.isna(value) else value for key, value in table.iloc[0].items()}


@pytest.mark.parametrize(
    ("name", "hook_name", "d_sae", "l0", "architecture"),
    [
        ("gpt2-small-res-jb/blocks.8.hook_resid_pre", "blocks.8.hook_resid_pre", None, 60, None),
        ("gpt2-small-hook-z-kk/blocks.3.hook_z", "blocks.3.attn.hook_z", 24576, None, "standard"),
        ("gpt2-small-res-jb-feature-splitting/blocks.8.hook_resid_pre_768", "blocks.8.hook_resid_pre", 768, 36, None),
        ("gpt2-small-resid-post-v5-32k/blocks.0.hook_resid_post", "blocks.0.hook_resid_post", 32768, 32, None),
        ("gemma-scope-2b-pt-att/layer_0/width_16k/average_l0_104", "blocks.0.attn.hook_z", 16384, 104, "jumprelu"),
        ("gemma-scope-2b-pt-mlp/layer_0/width_65k/average_l0_39", "blocks.0.hook_mlp_out", 65536, 39, "jumprelu"),
        ("gemma-scope-2-1b-pt-att/layer_7_width_65k_l0_small", "blocks.7.attn.hook_z", 65536, 18, "jumprelu"),
        ("llama_scope_lxm_8x/l31m_8x", "blocks.31.hook_mlp_out", None, 50, "jumprelu"),
        ("qwen-scope-3.5-27b-w80k-l50/layer7", "blocks.7.hook_resid_post", 81920, 50, "topk"),
        ("temporal-sae-gemma-2-2b/blocks.12.hook_resid_post", "blocks.12.hook_resid_post", None, 192, "temporal"),
        ("gemma-scope-2b-pt-transcoders/layer_25/width_16k/average_l0_41", None, 16384, 41, "transcoder"),
    ],
)
def test_releases_say_what_their_names_say(name: str, hook_name: str, d_sae: int, l0: float, architecture: str) -> None:
    row = only_row(name)
    assert (row["hook_name"], row["d_sae"], row["architecture"]) == (hook_name, d_sae, architecture)
    assert row["release"] == name.partition("/")[0]
    assert l0 is None or row["published_l0"] == pytest.approx(l0, abs=1)


def test_widths_and_hooks_of_gemma_scope_are_saelens_s_own() -> None:
    from sae_lens.loading.pretrained_sae_loaders import get_gemma_2_config_from_hf

    table = list_saes(["gemma-scope-*b-pt-*/layer_1*/*", "gemma-scope-2b-pt-res/embedding/*"])
    table = table[~table["release"].str.startswith("gemma-scope-2-")]
    assert len(table) > 500
    for row in table.itertuples():
        release, _, folder = str(row.name).partition("/")
        config = get_gemma_2_config_from_hf(f"google/{release}", folder, "cpu")
        assert (row.hook_name, row.d_sae, row.architecture) == (config["hook_name"], config["d_sae"], "jumprelu")


def test_patterns_select_over_the_whole_directory() -> None:
    names = expand_sae_names(["gemma-scope-2b-pt-*/layer_12/width_16k/*"])
    assert {name.split("/")[0] for name in names} == {
        f"gemma-scope-2b-pt-{kind}{canonical}" for kind in ("att", "mlp", "res") for canonical in ("", "-canonical")
    }
    assert len(names) == len(set(names)) > 15
    assert "gemma-scope-2b-pt-transcoders/layer_12/width_16k/average_l0_6" in expand_sae_names(
        ["gemma-scope-2b-pt-transcoders/layer_12/*"]
    )
    with pytest.raises(SaeNotFoundError, match="pattern that selects SAEs"):
        expand_sae_names(["gemma-scope-2b-*/layer_99/*"])
    with pytest.raises(SaeNotFoundError, match=r"none of 316 names\. Closest: gemma-scope-2b-pt-res/layer_9/"):
        expand_sae_names(["gemma-scope-2b-pt-res/layer_99/*"])
    with pytest.raises(SaeNotFoundError, match=r"no release matches\. Closest releases: gpt2-small-res-jb"):
        expand_sae_names(["gpt2-small-res-j*"])


def test_local_paths_come_before_releases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(GOLDEN / "sae_standard_A", tmp_path / "gemma-scope-2b-mine" / "layer_1")
    assert expand_sae_names(["gemma-scope-2b-*/layer_1"]) == ["gemma-scope-2b-mine/layer_1"]


def test_folders_are_described_without_their_weights(tmp_path: Path) -> None:
    shutil.copyfile(GOLDEN / "sae_topk_B" / "cfg.json", tmp_path / "cfg.json")
    config = json.loads((tmp_path / "cfg.json").read_text())
    row = only_row(str(tmp_path))
    assert (row["hook_name"], row["d_sae"], row["architecture"], row["release"]) == (
        config["metadata"]["hook_name"],
        config["d_sae"],
        "topk",
        None,
    )
    old = {"hook_point": "blocks.4.hook_resid_pre", "d_sae": 7, "model_name": "gpt2"}
    (tmp_path / "cfg.json").write_text(json.dumps(old))
    row = only_row(f"{tmp_path}")
    assert (row["hook_name"], row["layer"], row["d_sae"], row["model"]) == ("blocks.4.hook_resid_pre", 4, 7, "gpt2")
    assert row["published_l0"] is None
    assert only_row(f"{tmp_path}@blocks.2.hook_mlp_out")["layer"] == 2


def test_arrays_are_described_by_their_headers(tmp_path: Path) -> None:
    folder = tmp_path / "gemma-scope-2b-pt-res" / "layer_5" / "width_16k" / "average_l0_9"
    folder.mkdir(parents=True)
    shapes = {"W_enc": (4, 6), "W_dec": (6, 4), "b_enc": 6, "b_dec": 4, "threshold": 6}
    np.savez(folder / "params.npz", **{name: np.zeros(shape, dtype=np.float32) for name, shape in shapes.items()})
    for name in (folder, folder / "params.npz"):
        row = only_row(str(name))
        assert (row["hook_name"], row["d_sae"], row["architecture"]) == ("blocks.5.hook_resid_post", 6, "jumprelu")
    assert expand_sae_names([f"{tmp_path}/*/layer_*/width_16k/*"]) == [str(folder)]
    np.savez(folder / "params.npz", other=np.zeros(3))
    with pytest.raises(SaeNotFoundError, match=r"W_enc\.npy"):
        list_saes([str(folder)])


def test_bundled_saes_and_names_that_mean_nothing() -> None:
    table = list_saes(["speller/*"])
    assert set(table["architecture"]) == {"standard", "batchtopk", "matryoshka_batchtopk", "jumprelu"}
    assert (table["release"] == "speller").all()
    of_cards = json.loads((bundled_sae_path("speller/l2-standard-w512-medium") / "cfg.json").read_text())["metadata"]
    assert table.set_index("name").loc["speller/l2-standard-w512-medium", "published_l0"] == of_cards["l0"]
    assert table["published_l0"].between(1, 30).all()
    assert only_row("my_saes:load/wide")["d_sae"] is None
    with pytest.raises(SaeNotFoundError, match="Closest releases: gpt2-small-res-jb"):
        list_saes(["gpt2-small-res-jbb/x"])
