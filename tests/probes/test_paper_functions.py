"""The paper's functions that train probes: what they promise under the published arguments and defaults."""

import inspect

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, cosine_similarity

from absorb_pl.errors import AbsorbError
from absorb_pl.probes import (
    KSparseProbe,
    LinearProbe,
    train_binary_probe,
    train_k_sparse_probes,
    train_multi_probe,
    train_sparse_multi_probe,
)


def two_blobs(seed, distance, deviation):
    """Rows around two opposite centres, 1 024 and 368, in a drawn order; and the line between the centres."""
    generator = torch.Generator().manual_seed(seed)
    line = torch.full((64,), -distance)
    x = torch.cat([torch.randn(1024, 64, generator=generator), torch.randn(368, 64, generator=generator)])
    y = torch.cat([torch.zeros(1024), torch.ones(368)])
    order = torch.randperm(len(x), generator=generator)
    return (deviation * x + (2 * y[:, None] - 1) * line)[order], y[order], line


@pytest.mark.parametrize(
    ("seed", "distance", "deviation", "rows", "bound"),
    [(seed, 5.0, 1.0, 768, 0.98) for seed in range(5)] + [(0, 1.0, 3.0, 600, 0.85)],
)
def test_the_direction_between_two_blobs_is_found(seed, distance, deviation, rows, bound):
    x, y, line = two_blobs(seed, distance, deviation)
    probe = train_binary_probe(
        x[:rows],
        y[:rows],
        num_epochs=100,
        batch_size=128,
        weight_decay=1e-7,
        lr=1.0,
        show_progress=False,
        device="cpu",
    )
    assert cosine_similarity(line[None], probe.weights.detach()).item() > bound
    for part in (slice(rows), slice(rows, None)):
        assert ((probe(x[part])[:, 0] > 0) == y[part].bool()).float().mean() > 0.9


@pytest.mark.parametrize("optimizer", ["Adam", "SGD", "AdamW"])
def test_training_is_what_its_settings_say(optimizer):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(50, 6, generator=generator)
    y = (x[:, :3] + torch.randn(50, 3, generator=generator) > 0.5).float()
    settings = {"lr": 0.3, "weight_decay": 0.02}
    probe = train_multi_probe(
        x, y, num_epochs=7, end_lr=0.01, optimizer=optimizer, show_progress=False, device="cpu", **settings
    )

    weight, bias = torch.zeros(3, 6, requires_grad=True), torch.zeros(3, requires_grad=True)
    steps = getattr(torch.optim, optimizer)([weight, bias], **settings)
    odds = (50 - y.sum(0)) / y.sum(0)
    for epoch in range(7):
        steps.param_groups[0]["lr"] = 0.3 * (0.01 / 0.3) ** (epoch / 7)
        steps.zero_grad()
        binary_cross_entropy_with_logits(x @ weight.T + bias, y, pos_weight=odds).backward()
        steps.step()
    torch.testing.assert_close(probe.weights.detach(), weight.detach(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(probe.biases.detach(), bias.detach(), atol=1e-5, rtol=1e-5)


def test_the_optimum_is_asked_for():
    x, y, _ = two_blobs(0, 0.3, 1.0)
    found = {}
    for solver in ("adam", "optimum"):
        probe = train_binary_probe(x, y, num_epochs=2, solver=solver, show_progress=False, device="cpu")
        logits = probe(x)[:, 0].double()
        odds = ((1 - y).sum() / y.sum()).double()
        found[solver] = binary_cross_entropy_with_logits(logits, y.double(), pos_weight=odds).item()
    assert found["optimum"] < 0.9 * found["adam"]
    solvers = {
        name: inspect.signature(function).parameters["solver"].default
        for name, function in (("multi", train_multi_probe), ("binary", train_binary_probe), ("module", LinearProbe))
    }
    assert solvers == {"multi": "adam", "binary": "adam", "module": "optimum"}


@pytest.mark.parametrize("settings", [{"optimizer": "AdamW"}, {"l1_decay": 0.1}, {"extra_loss_fn": lambda *_: 0.0}])
def test_another_objective_has_no_optimum_to_ask_for(settings):
    x = torch.eye(2).repeat(8, 1)
    with pytest.raises(AbsorbError, match="`solver` was 'optimum', expected 'adam' with an extra loss"):
        train_multi_probe(x, x, solver="optimum", show_progress=False, device="cpu", **settings)


def test_a_stronger_penalty_leaves_more_weights_at_zero():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(1000, 100, generator=generator)
    y = torch.randint(2, (1000, 3), generator=generator)
    zeros = [
        (train_sparse_multi_probe(x, y, l1_decay=decay, show_progress=False, device="cpu").weights.abs() < 1e-5).sum()
        for decay in (0.01, 0.1)
    ]
    assert 0 < zeros[0] < zeros[1]


def test_a_k_sparse_probe_reads_its_latents():
    probe = KSparseProbe(torch.tensor([2.0, -1.0]), torch.tensor(0.5), torch.tensor([3, 1]))
    latents = torch.tensor([[9.0, 1.0, 9.0, 2.0], [9.0, 0.0, 9.0, 0.0]])
    assert probe.k == 2
    assert probe(latents).tolist() == [3.5, 0.5]
    assert probe(latents[0]).item() == 3.5


def test_k_sparse_probes_of_the_published_ks():
    class Relu(torch.nn.Module):
        W_dec = torch.eye(60)

        def encode(self, x):
            return x.relu()

        def decode(self, latents):
            return latents

    x = torch.randn(90, 60, generator=torch.Generator().manual_seed(1))
    labels = [(f" w{i}", i % 3) for i in range(90)]
    probes = train_k_sparse_probes(Relu(), labels, x)
    assert list(probes) == [*range(1, 16), 20, 50]
    for k, by_label in probes.items():
        assert sorted(by_label) == [0, 1, 2]
        assert all(probe.k == k == len(probe.feature_ids) for probe in by_label.values())
