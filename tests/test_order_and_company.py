"""Whole studies do not see the order of an SAE's latents, nor which other SAEs are measured beside it."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sae_lens import SAE

from absorb_pl.data import ActivationDataModule
from absorb_pl.saes import encode_rows, load_sae, sae_hook_name
from absorb_pl.study import run_study

pytestmark = pytest.mark.usefixtures("at_root", "_one_thread")

GOLDEN = "tests/golden/gpt2-micro"
HOOK = "blocks.1.hook_resid_post"
OF_LATENTS = ("b_enc", "b_gate", "b_mag", "r_mag", "threshold", "W_dec")


@torch.no_grad()
def reordered(sae, order):
    """The same SAE with its latents in another order: latent i is what latent order[i] was."""
    made = type(sae)(type(sae.cfg).from_dict(sae.cfg.to_dict()))
    tensors = {name: tensor.clone() for name, tensor in sae.state_dict().items()}
    for name in tensors.keys() & {*OF_LATENTS}:
        tensors[name] = tensors[name][order]
    if "W_enc" in tensors:
        tensors["W_enc"] = tensors["W_enc"][:, order]
    made.load_state_dict(tensors)
    return made.eval()


@pytest.fixture(scope="module")
def orders(study, study_config, make_sae, _without_figures, tmp_path_factory):
    """Tables with SAEs as they are, tables with their latents in another order, and of each pair its names and order.

    The trained SAEs are those of the session's study; the others are measured both ways.
    """
    folder = tmp_path_factory.mktemp("orders")
    pairs = {}
    for name in ("sae_standard_A", "sae_jumprelu_A", "sae_topk_B"):
        sae, given = SAE.load_from_disk(f"{GOLDEN}/{name}"), f"{GOLDEN}/{name}"
        order = torch.randperm(sae.cfg.d_sae, generator=torch.Generator().manual_seed(2))
        reordered(sae, order).save_model(folder / name)
        pairs[name] = (given, str(folder / name), order.numpy())
    for name in ("matching_pursuit", "gated"):
        sae, order = make_sae(name, HOOK, d_in=48), torch.randperm(48, generator=torch.Generator().manual_seed(3))
        with torch.no_grad():
            sae.W_dec.data = torch.nn.functional.normalize(sae.W_dec.data, dim=1)
        sae.save_model(folder / f"{name}_as_it_is")
        reordered(sae, order).save_model(folder / name)
        pairs[name] = (str(folder / f"{name}_as_it_is"), str(folder / name), order.numpy())
    asked = [other for _, other, _ in pairs.values()] + [given for given, _, _ in pairs.values() if GOLDEN not in given]
    shutil.copytree(study[0].cache_dir, folder / "cache")
    tables = run_study(study_config(folder, f"--saes={asked}")).tables
    return study[1].tables, tables, pairs


COLUMNS = {
    "summary": ["rule", "l0", "explained_variance", "dead_fraction", "num_splits", "absorption_rate", "num_words"],
    "letters": ["rule", "label", "main_latents", "num_candidates", "absorption_rate", "probe_f1"],
    "words": ["rule", "row", "is_absorption", "top_latent", "main_activation", "top_score", "second_score"],
    "k_sparse": ["label", "k", "f1"],
    "latents": ["label", "rank", "latent", "f1", "auroc"],
}


def of_sae(table, name, columns, order=None, silent=()):
    """Rows of an SAE, latents by their numbers before; those that no training word fires are alike to probes."""
    rows = table.loc[table["sae"] == name, columns].reset_index(drop=True)

    def was(latent):
        number = int(latent) if order is None else int(order[int(latent)])
        return -1 if number in silent else number

    for column in {"main_latents"} & {*columns}:
        rows[column] = [[was(latent) for latent in found] if found is not None else None for found in rows[column]]
    for column in {"latent", "top_latent"} & {*columns}:
        rows[column] = [was(latent) if pd.notna(latent) and latent >= 0 else -2 for latent in rows[column]]
    return rows


@pytest.mark.parametrize("table", COLUMNS)
@pytest.mark.parametrize("name", ["sae_standard_A", "sae_jumprelu_A", "sae_topk_B", "matching_pursuit", "gated"])
def test_latents_in_another_order_have_the_same_tables(orders, study, gpt2, name, table):
    before, after, pairs = orders
    given, other, order = pairs[name]
    sae = load_sae(given)
    data = ActivationDataModule(
        gpt2, sae_hook_name(sae), study[0].task, study[0].cache_dir, val_fraction=0.0, split_seed=study[0].seed
    )
    fires = (encode_rows(sae, data.cache.rows(data.splits["train"])) != 0).any(dim=0)
    silent = set((~fires).nonzero().flatten().tolist())
    assert fires.sum() > 20
    expected = of_sae((before if GOLDEN in given else after)[table], given, COLUMNS[table], silent=silent)
    found = of_sae(after[table], other, COLUMNS[table], order, silent)
    assert len(expected)
    pd.testing.assert_frame_equal(found, expected, rtol=1e-4, atol=1e-6)


def test_the_orders_differ(orders):
    for _, after, (given, other, order) in ((*orders[:2], pair) for pair in orders[2].values()):
        assert (order != np.arange(len(order))).mean() > 0.9
        assert given != other
        assert other in set(after["summary"]["sae"])


@pytest.fixture(scope="module")
def alone(study, study_config, _without_figures, tmp_path_factory):
    """Tables of a study of one SAE of the session's study, with its activations and linear probes, and no more."""
    folder = tmp_path_factory.mktemp("alone")
    for stage in ("activations", "linear_probes"):
        shutil.copytree(Path(study[0].cache_dir) / stage, folder / "cache" / stage)
    return run_study(study_config(folder, f"--saes=['{ALONE}']")).tables


ALONE = f"{GOLDEN}/sae_jumprelu_A"


@pytest.mark.parametrize("table", COLUMNS)
def test_an_sae_alone_has_the_tables_that_it_has_in_company(alone, study, table):
    expected = of_sae(study[1].tables[table], ALONE, COLUMNS[table])
    found = of_sae(alone[table], ALONE, COLUMNS[table])
    assert len(expected)
    pd.testing.assert_frame_equal(found, expected, rtol=1e-4, atol=1e-6)
    assert alone[table]["sae"].unique().tolist() == [ALONE]
