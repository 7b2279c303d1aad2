import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from absorb_pl.errors import LabelError, NonFiniteError, RangeError, ShapeError
from absorb_pl.functional import rank_latents, solve_k_sparse
from absorb_pl.functional.logistic import solve_logistic_regressions


def reference(x, y, c=1.0):
    model = LogisticRegression(C=c, class_weight="balanced", solver="newton-cholesky", tol=1e-12, max_iter=100_000)
    model.fit(x.double().numpy(), y.numpy())
    return torch.from_numpy(model.coef_[0]), float(model.intercept_[0])


def sparse_activations(classes, rows, ranks, density, seed=0):
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(0, classes, (rows,), generator=generator)
    y = torch.nn.functional.one_hot(y, classes).bool()
    fires = torch.rand(classes, rows, ranks, generator=generator) < density
    activations = fires * torch.rand(classes, rows, ranks, generator=generator) * 5
    informative = torch.rand(classes, rows, 3, generator=generator) * (y.T[:, :, None] * 4.0)
    activations[:, :, :3] += informative * (torch.rand(classes, rows, 3, generator=generator) < 0.5)
    return activations, y


@pytest.mark.parametrize("l2", [1.0, 0.01])
def test_solutions_equal_converged_scikit_learn(l2):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(5, 300, 7, generator=generator)
    y = x[:, :, 0] + torch.randn(5, 300, generator=generator) > 1
    weight, bias = solve_logistic_regressions(x, y, l2=l2)
    for i in range(5):
        expected_weight, expected_bias = reference(x[i], y[i], 1 / l2)
        torch.testing.assert_close(weight[i], expected_weight, atol=1e-6, rtol=1e-6)
        assert bias[i].item() == pytest.approx(expected_bias, abs=1e-6)


def test_separable_constant_zero_and_repeated_features_converge_to_the_optimum():
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(1, 120, 5, generator=generator)
    x[:, :, 1] = 0.0
    x[:, :, 2] = 3.0
    x[:, :, 3] = x[:, :, 0]
    x *= torch.tensor([50.0, 1, 1, 50, 1e-3])
    y = x[:, :, 0] > 20
    weight, bias = solve_logistic_regressions(x, y)
    assert weight[0, 1] == 0
    assert weight[0, 0] == pytest.approx(weight[0, 3])
    # At the optimum the gradient vanishes, computed here from scratch.
    s = (y[0].double() * 2 - 1).numpy()
    xd = x[0].double().numpy()
    positives = int(y.sum())
    c = np.where(s > 0, 120 / (2 * positives), 120 / (2 * (120 - positives)))
    p = 1 / (1 + np.exp(s * (xd @ weight[0].numpy() + bias.item())))
    gradient = weight[0].numpy() - (c * s * p) @ xd
    assert np.abs(gradient).max() < 1e-6
    assert abs((c * s * p).sum()) < 1e-6


@pytest.mark.parametrize("density", [0.01, 0.2, 1.0])
def test_k_sparse_solutions_equal_scikit_learn(density):
    activations, y = sparse_activations(4, 500, 20, density)
    ks = [1, 2, 3, 7, 20]
    weight, bias = solve_k_sparse(activations, y, ks)
    for i, k in enumerate(ks):
        for c in range(4):
            expected_weight, expected_bias = reference(activations[c, :, :k], y[:, c])
            torch.testing.assert_close(weight[i, c, :k], expected_weight, atol=1e-4, rtol=0)
            assert bias[i, c].item() == pytest.approx(expected_bias, abs=1e-4)
            assert not weight[i, c, k:].any()


def test_k_sparse_with_latents_that_never_fire_predicts_nothing():
    y = torch.zeros(10, 1, dtype=torch.bool)
    y[:3] = True
    weight, bias = solve_k_sparse(torch.zeros(1, 10, 2), y, [1, 2])
    assert not weight.any()
    torch.testing.assert_close(bias, torch.zeros(2, 1, dtype=torch.float64), atol=1e-9, rtol=0)


def test_unusable_input_is_refused_by_name():
    x = torch.zeros(1, 4, 2)
    y = torch.tensor([[True, False, False, True]])
    with pytest.raises(LabelError, match=r"\[0\]"):
        solve_logistic_regressions(x, torch.ones_like(y))
    with pytest.raises(NonFiniteError):
        solve_logistic_regressions(x.clone().fill_(torch.nan), y)
    with pytest.raises(RangeError, match=r"`l2` was 0\.0, expected a number, above 0 and at most 1000000\."):
        solve_logistic_regressions(x, y, l2=0.0)
    with pytest.raises(ShapeError):
        solve_k_sparse(x, y.T, [3])


def test_weights_that_are_not_finite_rank_nothing():
    with pytest.raises(NonFiniteError, match="`weight`"):
        rank_latents(torch.tensor([[1.0, torch.nan, 2.0]]), 1)


def test_latents_rank_by_signed_weight():
    weight = torch.tensor([[-5.0, 1.0, 0.0, 3.0, 1.0]])
    assert rank_latents(weight, 4).tolist() == [[3, 1, 4, 2]]
