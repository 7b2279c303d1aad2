"""How many sequences run together."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from absorb_pl.engine import run_size
from absorb_pl.engine.run_size import fitting_size, sequence_bytes, size_within

GEMMA = SimpleNamespace(n_layers=26, d_model=2304, d_mlp=9216, n_heads=8, d_vocab=256_000)


def test_sizes_are_powers_of_two_within_the_budget():
    for budget in (1, 10, 99, 1_000, 12_345, 10**9):
        size = size_within(budget, 10)
        assert size & (size - 1) == 0
        assert size == 1 or size * 10 <= budget
        assert size == 4096 or 2 * size * 10 > budget


def test_longer_sequences_and_wider_dtypes_take_more():
    short, long = (sequence_bytes(GEMMA, tokens, 100, "bfloat16") for tokens in (10, 100))
    assert long > 8 * short
    assert sequence_bytes(GEMMA, 10, 1000, "bfloat16") > short
    assert sequence_bytes(GEMMA, 100, 100, "float32") > 1.9 * long
    assert sequence_bytes(GEMMA, 100, 100, "nf4") == long


@pytest.mark.parametrize("gib", [1, 20, 120])
def test_on_a_gpu_the_size_follows_its_free_memory(monkeypatch: pytest.MonkeyPatch, gib: int):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (gib * 2**30, 140 * 2**30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 3 * 2**20)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 2**20)

    def allowed(dtype: torch.dtype) -> int:
        model: Any = torch.nn.Linear(1, 1).to(dtype)
        model.cfg = GEMMA
        return fitting_size(model, 5, 90, torch.device("cuda"))

    budget = run_size._SHARE * (gib * 2**30 + 2 * 2**20)
    each = sequence_bytes(GEMMA, 5, 90, "bfloat16")
    assert allowed(torch.bfloat16) * each <= budget
    assert 2 * allowed(torch.bfloat16) * each > budget or allowed(torch.bfloat16) == 4096
    assert allowed(torch.float32) <= allowed(torch.bfloat16)


def test_on_a_cpu_it_is_a_number():
    assert fitting_size(SimpleNamespace(), 5, 90, torch.device("cpu")) == run_size.CPU_SIZE
