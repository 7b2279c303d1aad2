"""Hedging, against the published way: projections on random spaces, one draw after another."""

import pytest
import torch

from absorb_pl.errors import ShapeError
from absorb_pl.functional import hedging_degree


def decoders(old=6, new=3, width=20, seed=0):
    generator = torch.Generator().manual_seed(seed)
    control = torch.randn(old, width, generator=generator, dtype=torch.float64)
    added = torch.randn(new, width, generator=generator, dtype=torch.float64)
    mixing = torch.rand(old, new, generator=generator, dtype=torch.float64)
    return control, torch.cat([control - mixing @ added, added])


def published(control, extended, draws, seed=0):
    """Mean projections as the code of the paper takes them: by QR, and on random spaces."""
    old = len(control)
    control, extended = (rows / rows.norm(dim=1, keepdim=True) for rows in (control, extended))
    moved = extended[:old] - control

    def inside(vectors):
        q, _ = torch.linalg.qr(vectors.T)
        return float((q @ (q.T @ moved.T)).T.norm(dim=1).mean())

    generator = torch.Generator().manual_seed(seed)
    drawn = [inside(torch.randn(extended[old:].shape, generator=generator, dtype=torch.float64)) for _ in range(draws)]
    return inside(extended[old:]), torch.tensor(drawn)


@pytest.mark.parametrize(("new", "width"), [(1, 12), (3, 20), (8, 9)])
def test_movement_and_chance_are_those_of_the_published_code(new, width):
    control, extended = decoders(new=new, width=width)
    found = hedging_degree(control, extended)
    moved, drawn = published(control, extended, draws=4_000)
    assert found.moved == pytest.approx(moved, rel=1e-10)
    # The exact mean lies within five standard errors of the mean of the draws.
    assert abs(found.by_chance - float(drawn.mean())) < 5 * float(drawn.std()) / 4_000**0.5
    assert found.degree == pytest.approx(max(0.0, (moved - found.by_chance) / (1 - found.by_chance)))


def test_lengths_order_and_rotation_do_not_change_it():
    control, extended = decoders()
    expected = hedging_degree(control, extended)
    scales = torch.rand(len(extended), 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 0.5
    rotation, _ = torch.linalg.qr(torch.randn(20, 20, generator=torch.Generator().manual_seed(2), dtype=torch.float64))
    ways = [
        (3 * control, scales * extended),
        (control, torch.cat([extended[:6], extended[6:].flip(0)])),
        (control @ rotation, extended @ rotation),
        (control, torch.cat([extended, extended[6:7]])),  # a new latent twice spans nothing more
    ]
    for way in ways:
        assert tuple(hedging_degree(*way)) == pytest.approx(tuple(expected), rel=1e-9)


def test_latents_that_do_not_move_have_not_hedged():
    control, _ = decoders()
    assert hedging_degree(control, torch.cat([control, torch.eye(20, dtype=torch.float64)[:2]])).degree == 0.0


def test_decoders_that_do_not_go_together_are_refused():
    control, extended = decoders()
    for other in (control, extended[:, :10]):
        with pytest.raises(ShapeError, match=r"`extended` was \(\d+, \d+\), expected more than 6 rows of 20 values"):
            hedging_degree(control, other)
