"""How many sequences run together."""

from types import SimpleNamespace

import pytest
import torch

from absorb_pl.engine import run_size
from absorb_pl.engine.run_size import fitting_size, sequence_bytes, size_within
from absorb_pl.models import load_language_model

GEMMA = SimpleNamespace(n_layers=26, d_model=2304, d_mlp=9216, n_heads=8, d_vocab=256_000)


def test_sizes_are_powers_of_two_within_the_budget():
    for budget in (1.0, 10.0, 99.0, 1e3, 12_345.0, 1e9):
        size = size_within(budget, 10.0)
        assert size & (size - 1) == 0
        assert size == 1 or size * 10 <= budget
        assert size == 4096 or 2 * size * 10 > budget


def test_longer_sequences_and_wider_dtypes_take_more():
    short, long = (sequence_bytes(GEMMA, tokens, 100, "bfloat16") for tokens in (10, 100))
    assert long > 8 * short
    assert sequence_bytes(GEMMA, 10, 1000, "bfloat16") > short
    assert sequence_bytes(GEMMA, 100, 100, "float32") > 1.9 * long
    assert sequence_bytes(GEMMA, 100, 100, "nf4") == long


@pytest.mark.parametrize("mib", [1, 20, 500, 100_000])
def test_on_a_gpu_the_size_follows_its_free_memory(monkeypatch: pytest.MonkeyPatch, mib: int):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (mib * 2**20, 140 * 2**30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 3 * 2**19)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 2**19)
    sizes = {}
    for dtype in ("bfloat16", "float32"):
        model = load_language_model("speller", dtype=dtype)
        sizes[dtype] = fitting_size(model, 5, 90, torch.device("cuda"))
        budget, each = run_size._SHARE * (mib + 1) * 2**20, sequence_bytes(model.cfg, 5, 90, dtype)
        assert sizes[dtype] == 1 or sizes[dtype] * each <= budget
        assert sizes[dtype] == 4096 or 2 * sizes[dtype] * each > budget
    assert sizes["float32"] <= sizes["bfloat16"]


def test_on_a_cpu_it_is_a_number():
    assert fitting_size(load_language_model("speller"), 5, 90, torch.device("cpu")) == run_size.CPU_SIZE
