"""The walk over k that solves only the probes it reaches."""

import numpy as np
import torch
from sklearn.metrics import f1_score

from absorb_pl.functional.k_sparse import k_sparse_logits, solve_k_sparse
from absorb_pl.functional.splits import main_latents, walked_main_latents


def test_it_ends_where_the_walk_over_all_probes_does():
    generator = torch.Generator().manual_seed(2)
    y = torch.rand(400, 6, generator=generator) < 0.3
    # latents that each fire on a part of a class's words, so that F1 rises with k for some classes and not for others
    shares = torch.tensor([1.0, 0.5, 0.3, 0.2, 0.1, 0.02])
    fires = torch.rand(6, 400, 20, generator=generator) < (y.T[:, :, None] * shares[:, None, None])
    activations = fires * torch.rand(6, 400, 20, generator=generator)
    ids = torch.arange(120).view(6, 20)
    for threshold, max_k in ((0.03, 15), (0.001, 20), (0.0, 7), (0.5, 15), (0.03, 1)):
        ks = range(1, max_k + 1)
        solution = solve_k_sparse(activations, y, ks)
        logits = k_sparse_logits(activations.transpose(0, 1), solution.weight, solution.bias)
        f1 = [[float(f1_score(y[:, c], logits[:, k, c] > 0)) for k in range(max_k)] for c in range(6)]
        expected = [
            main_latents(values, ks, own, threshold, max_k) for values, own in zip(f1, ids.tolist(), strict=True)
        ]
        found = walked_main_latents(activations, y, ids, threshold, max_k)
        assert [own.latents for own in found] == expected
        for c, own in enumerate(found):
            k = len(own.latents)
            np.testing.assert_allclose(own.weight, solution.weight[k - 1, c, :k], rtol=1e-9, atol=1e-9)
            np.testing.assert_allclose(own.bias, solution.bias[k - 1, c], rtol=1e-9, atol=1e-9)
    assert len({len(found.latents) for found in walked_main_latents(activations, y, ids, 0.001, 20)}) > 2
