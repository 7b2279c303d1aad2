"""Encoding by chunks: no more memory than said, however wide the SAE."""

import os
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import StandardSAE, StandardSAEConfig

from absorb_pl.functional import SaeStatistics, cosine_similarity_matrix, similarity
from absorb_pl.probes import encode_latents, latents
from absorb_pl.probes.latents import CHUNK_BYTES, chunks_for

MILLION = 2**20


@contextmanager
def most_memory_used():
    """Watches the process's resident memory; gives a list that at the end holds the growth at its peak, in bytes."""
    page = os.sysconf("SC_PAGE_SIZE")
    stopped, seen, growth = threading.Event(), [], []

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * page

    def watch() -> None:
        while not stopped.wait(0.002):
            seen.append(resident())

    before = resident()
    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield growth
    finally:
        stopped.set()
        thread.join()
        growth.append(max(seen) - before)


def test_a_million_latents_take_a_few_chunks_of_memory(monkeypatch: Any):
    """Four matrices of a chunk's size at most: pre-activations, latents, and what is asked of them."""
    monkeypatch.setattr(latents, "CHUNK_BYTES", 2**26)
    sae = StandardSAE(StandardSAEConfig(d_in=16, d_sae=MILLION))
    sae.requires_grad_(False)
    stats = SaeStatistics.empty(16, MILLION)
    with most_memory_used() as growth:
        chosen = encode_latents(sae, torch.randn(40, 16), torch.tensor([0, MILLION - 1]), stats)
    assert (chosen.shape, stats.num_rows) == ((40, 2), 40)
    marks = 2 * MILLION  # a byte a latent, whether it fired: in the chunk and so far, first written to here
    assert 2**26 < growth[0] < 4 * 2**26 + marks < 2 * 40 * 4 * MILLION


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
