"""Encoding by chunks: no more memory than said, however wide the SAE."""

import subprocess
import sys
from typing import Any

import pytest
import torch
from sae_lens import StandardSAE, StandardSAEConfig

from absorb_pl.functional import SaeStatistics, cosine_similarity_matrix, similarity
from absorb_pl.probes import encode_latents, latents
from absorb_pl.probes.latents import CHUNK_BYTES, chunks_for

MILLION = 2**20
MEASURE = """
import resource
import torch
from sae_lens import StandardSAE, StandardSAEConfig
from absorb_pl.functional import SaeStatistics
from absorb_pl.probes import encode_latents, latents
latents.CHUNK_BYTES = 2**26
torch.set_num_threads(1)
sae = StandardSAE(StandardSAEConfig(d_in=16, d_sae=2**20))
sae.requires_grad_(False)
x = torch.randn(36, 16)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
stats = SaeStatistics.empty(16, 2**20)
chosen = encode_latents(sae, x, torch.tensor([0, 2**20 - 1]), stats)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024, tuple(chosen.shape), stats.num_rows)
"""


def test_a_million_latents_take_a_few_chunks_of_memory():
    """Four matrices of a chunk's size at most: pre-activations, latents, and what is asked of them."""
    found = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True, timeout=120)
    used, shape = found.stdout.split(maxsplit=1)
    assert shape.strip() == "(36, 2) 36"
    assert 0 < int(used) < 4 * 2**26 < 36 * 4 * MILLION * 2


@pytest.mark.parametrize(("width", "itemsize"), [(MILLION, 4), (MILLION, 8), (65_536, 4), (10**9, 4)])
def test_chunks_are_cut_by_bytes(width: int, itemsize: int):
    parts = chunks_for(torch.empty(4_000, 0), width, itemsize)
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
        monkeypatch.setattr(latents, "CHUNK_BYTES", chunk)
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
