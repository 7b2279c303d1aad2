"""The optimum of linear probes: against scikit-learn, by its gradient, and what must not change it."""

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch.nn.functional import binary_cross_entropy_with_logits

from absorb_pl.errors import ConvergenceError
from absorb_pl.functional import minimise_probe_loss
from absorb_pl.functional.probe_loss import positive_weights

CLASSES = 6


def problem(kind="plain", rows=400, width=20):
    """Rows with a class each, of six kinds of difficulty."""
    draw = torch.Generator().manual_seed(3)
    centres = torch.randn(CLASSES, width, generator=draw)
    labels = torch.arange(rows) % CLASSES
    x = centres[labels] + torch.randn(rows, width, generator=draw)
    if kind == "scales":
        x = x * torch.logspace(-3, 3, width)
    elif kind == "repeated":
        x[:, 10:] = x[:, :10]
        x[:, 4] = 0.0
        x[:, 5] = 7.0
    elif kind == "separable":
        x = 9 * centres[labels] + 0.01 * x
    elif kind == "rare":
        labels = torch.where(labels == 5, 0, labels)
        labels[7] = 5
    elif kind == "wide":
        x = torch.randn(60, 300, generator=draw)
        labels = labels[:60]
    y = torch.nn.functional.one_hot(labels, CLASSES)
    return x, y, positive_weights(y.sum(dim=0), len(y))


KINDS = ["plain", "scales", "repeated", "separable", "rare", "wide"]


def objective(x, y, pos_weight, weight, bias, weight_decay):
    loss = binary_cross_entropy_with_logits(x.double() @ weight.T + bias, y.double(), pos_weight=pos_weight.double())
    return loss + weight_decay / 2 * (weight.square().sum() + bias.square().sum())


@pytest.mark.parametrize("weight_decay", [1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize("kind", KINDS)
def test_no_direction_leads_further_down(kind, weight_decay):
    x, y, pos_weight = problem(kind)
    found = minimise_probe_loss(x, y, pos_weight, weight_decay=weight_decay)
    weight, bias = (part.clone().requires_grad_() for part in found)
    loss = objective(x, y, pos_weight, weight, bias, weight_decay)
    by_weight, by_bias = torch.autograd.grad(loss, [weight, bias])
    with_ones = torch.cat([x, torch.ones(len(x), 1)], dim=1).double()
    for c in range(CLASSES):
        share = torch.sigmoid(x.double() @ weight[c] + bias[c]).detach()
        curvature = torch.where(y[:, c] == 1, pos_weight[c], 1.0) * share * (1 - share) / y.numel()
        hessian = with_ones.T @ (with_ones * curvature[:, None]) + weight_decay * torch.eye(x.shape[1] + 1)
        gradient = torch.cat([by_weight[c], by_bias[c : c + 1]])
        decrement = (gradient @ torch.linalg.solve(hessian, gradient)).sqrt()
        # One step leads from at most 1e-6 to at most 0.05 times that, the accuracy of a step's equations.
        assert float(decrement) <= 5e-8
    assert weight.dtype == bias.dtype == torch.float64


@pytest.mark.parametrize("kind", ["plain", "repeated", "rare"])
def test_weights_are_those_of_scikit_learn(kind):
    x, y, pos_weight = problem(kind)
    weight, bias = minimise_probe_loss(x, y, pos_weight, weight_decay=1e-3)
    with_ones = torch.cat([x, torch.ones(len(x), 1)], dim=1).double().numpy()
    for c in range(CLASSES):
        rows = torch.where(y[:, c] == 1, pos_weight[c], 1.0).double().numpy()
        solver = LogisticRegression(
            C=1 / (1e-3 * y.numel()), fit_intercept=False, solver="newton-cholesky", tol=1e-12, max_iter=500
        )
        [expected] = solver.fit(with_ones, y[:, c].numpy(), sample_weight=rows).coef_
        found = torch.cat([weight[c], bias[c : c + 1]])
        torch.testing.assert_close(found, torch.from_numpy(expected), atol=1e-7, rtol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_order_of_rows_and_company_of_classes_do_not_change_it(kind):
    x, y, pos_weight = problem(kind)
    weight, bias = minimise_probe_loss(x, y, pos_weight)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))
    turned = minimise_probe_loss(x[order], y[order], pos_weight)
    torch.testing.assert_close(turned[0], weight, atol=1e-7, rtol=1e-7)
    # Alone, a class's loss is not a sixth of the mean over classes, so that its penalty counts six times as much.
    alone = minimise_probe_loss(x, y[:, 2:3], pos_weight[2:3], weight_decay=CLASSES * 1e-4)
    torch.testing.assert_close(alone[0][0], weight[2], atol=1e-7, rtol=1e-7)
    torch.testing.assert_close(alone[1][0], bias[2], atol=1e-7, rtol=1e-7)


def test_too_few_steps_are_refused():
    with pytest.raises(
        ConvergenceError, match=r"`max_iterations` was 2, expected enough for a Newton decrement of 1e-06"
    ):
        minimise_probe_loss(*problem(), max_iterations=2)
