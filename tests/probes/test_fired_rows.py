"""Rows of latents without their zeros: the same rows, and little memory however wide the SAE."""

import pytest
import torch
from memory import MostBytes
from sae_lens import StandardSAE, StandardSAEConfig

from absorb_pl.probes import SaeProbe, fit_probe
from absorb_pl.probes.fired_rows import FiredRows
from absorb_pl.saes import portions


def _latents(rows: int, width: int, share: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, width, generator=generator) * (torch.rand(rows, width, generator=generator) < share)


@pytest.mark.parametrize(("width", "share"), [(40, 0.3), (40, 1.0), (900, 0.002), (7, 0.0)])
def test_rows_come_back_as_they_were(width: int, share: float):
    latents = _latents(50, width, share)
    found = FiredRows.of(latents.split(8))
    assert found is not None
    ids = torch.arange(width) if found.ids is None else found.ids
    assert found.width == len(ids)
    for index in (torch.arange(50), torch.tensor([49, 0, 0, 7]), torch.zeros(0, dtype=torch.long)):
        whole = torch.zeros(len(index), width).index_copy(1, ids, found.rows(index))
        assert torch.equal(whole, latents[index])


def test_latents_have_a_column_if_most_of_them_fire():
    few, most = FiredRows.of([_latents(50, 900, 0.002)]), FiredRows.of([_latents(50, 40, 0.3)])
    assert few is not None
    assert most is not None
    assert few.ids is not None
    assert few.width == int((_latents(50, 900, 0.002) != 0).any(dim=0).sum()) < 450
    assert (most.ids, most.width) == (None, 40)


def test_what_fires_too_often_is_not_kept(monkeypatch: pytest.MonkeyPatch):
    latents = _latents(50, 40, 1.0)
    monkeypatch.setattr(portions, "CHUNK_BYTES", 8 * latents.numel())
    assert FiredRows.of(latents.split(8)) is not None
    monkeypatch.setattr(portions, "CHUNK_BYTES", 8 * latents.numel() - 1)
    assert FiredRows.of(latents.split(8)) is None


def test_a_fit_takes_a_few_chunks_of_memory(monkeypatch: pytest.MonkeyPatch):
    """Beside the weights of the probe and what its optimiser keeps of them."""
    chunk, width = 2**22, 2**16
    monkeypatch.setattr(portions, "CHUNK_BYTES", chunk)
    sae = StandardSAE(StandardSAEConfig(d_in=8, d_sae=width)).requires_grad_(False)
    with torch.no_grad():
        sae.b_enc.fill_(-2.0)
    labels = torch.arange(96) % 2
    x = torch.randn(96, 8, generator=torch.Generator().manual_seed(0)) + 2 * labels[:, None]
    probe = SaeProbe(sae, 2, ks=[1, 2])
    weights = 2 * width * 4
    with MostBytes(*sae.parameters(), *probe.parameters(), x) as tensors:
        fit_probe(probe, x, torch.nn.functional.one_hot(labels, 2), max_epochs=2)
    assert bool(probe.solved)
    assert tensors.most < 4 * chunk + 10 * weights < 96 * width * 4


@pytest.mark.parametrize(("width", "share", "is_sparse"), [(900, 0.002, True), (40, 0.04, True), (40, 0.3, False)])
def test_products_and_their_gradients_are_those_of_whole_rows(width: int, share: float, is_sparse: bool):
    latents = _latents(50, width, share)
    found = FiredRows.of(latents.split(8))
    assert found is not None
    assert (found.sparse is not None) == is_sparse
    ids = torch.arange(width) if found.ids is None else found.ids
    weight = torch.randn(3, found.width, generator=torch.Generator().manual_seed(1), requires_grad=True)
    index = torch.tensor([49, 0, 0, 7, 30])
    product = found.product(index, weight)
    product.square().sum().backward()
    rows, exact = latents[index][:, ids].double(), weight.detach().double()
    # A sum of n terms in float32 is within n rounding errors of its terms' sizes.
    bound = width * torch.finfo(torch.float32).eps * (rows.abs() @ exact.abs().T)
    assert ((product - rows @ exact.T).abs() <= bound).all()
    assert weight.grad is not None
    expected = 2 * product.detach().double().T @ rows
    bound = 4 * len(index) * torch.finfo(torch.float32).eps * (product.detach().double().abs().T @ rows.abs())
    assert ((weight.grad - expected).abs() <= bound).all()
