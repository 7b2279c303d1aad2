"""Encoding by chunks: no more memory than said, however wide the SAE."""

from typing import Any

import pytest
import torch
from memory import MostBytes
from sae_lens import StandardSAE, StandardSAEConfig

from absorb_pl.functional import SaeStatistics, cosine_similarity_matrix, similarity
from absorb_pl.probes import encode_latents
from absorb_pl.saes import portions
from absorb_pl.saes.portions import CHUNK_BYTES, rows_at_once

MILLION = 2**20


def test_a_million_latents_take_a_few_chunks_of_memory(monkeypatch: Any):
    """Three matrices of a chunk's size at most: pre-activations, latents, and what is asked of them."""
    monkeypatch.setattr(portions, "CHUNK_BYTES", 2**26)
    sae = StandardSAE(StandardSAEConfig(d_in=16, d_sae=MILLION))
    sae.requires_grad_(False)
    stats = SaeStatistics.empty(16, MILLION)
    x, ids = torch.randn(40, 16), torch.tensor([0, MILLION - 1])
    with MostBytes(*sae.parameters(), stats.fired, x) as tensors:
        chosen = encode_latents(sae, x, ids, stats)
    assert (chosen.shape, stats.num_rows) == ((40, 2), 40)
    of_rows = 2 * MILLION  # a byte per latent, whether it fires; and sums and rows, which are small
    assert 2**26 < tensors.most < 3 * 2**26 + of_rows < 2 * 40 * 4 * MILLION


@pytest.mark.parametrize(("width", "itemsize"), [(MILLION, 4), (MILLION, 8), (65_536, 4), (10**9, 4)])
def test_chunks_are_cut_by_bytes(width: int, itemsize: int):
    parts = torch.empty(4_000, 0).split(rows_at_once(width, itemsize))
    assert sum(len(part) for part in parts) == 4_000
    assert all(len(part) * width * itemsize <= CHUNK_BYTES or len(part) == 1 for part in parts)
    assert (len(parts[0]) + 1) * width * itemsize > CHUNK_BYTES or len(parts) == 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_statistics_do_not_depend_on_chunks(monkeypatch: Any, dtype: str):
    torch.manual_seed(0)
    sae = StandardSAE(StandardSAEConfig(d_in=16, d_sae=64, dtype=dtype))
    x, ids = torch.randn(50, 16), torch.tensor([3, 60])
    found = []
    for chunk in (2**29, 8 * 64 * 7):
        monkeypatch.setattr(portions, "CHUNK_BYTES", chunk)
        stats = SaeStatistics.empty(16, 64)
        found.append((encode_latents(sae, x, ids, stats), stats.l0, stats.explained_variance))
    assert found[0][0].dtype == torch.float32
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-6, atol=1e-2 if dtype.endswith("16") else 1e-6)
    assert found[0][1:] == pytest.approx(found[1][1:], rel=1e-2 if dtype.endswith("16") else 1e-6)


def test_cosines_of_a_wide_sae_are_those_of_its_rows(monkeypatch: Any):
    torch.manual_seed(0)
    probe, decoder = torch.randn(3, 16), torch.randn(1_000, 16)
    monkeypatch.setattr(similarity, "_PART_VALUES", 16 * 77)
    expected = torch.nn.functional.cosine_similarity(probe[:, None], decoder[None], dim=2)
    torch.testing.assert_close(cosine_similarity_matrix(probe, decoder), expected)
    torch.testing.assert_close(cosine_similarity_matrix(probe, decoder.to(torch.bfloat16)), expected, rtol=0, atol=1e-2)
    assert cosine_similarity_matrix(probe, torch.zeros(0, 16)).shape == (3, 0)
