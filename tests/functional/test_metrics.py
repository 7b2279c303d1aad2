import pytest
import torch
from sklearn import metrics

from absorb_pl.errors import NonFiniteError
from absorb_pl.functional import auroc, binary_metrics, optimal_f1_threshold


@pytest.fixture
def tied():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(-3, 4, (200, 40), generator=generator).float()
    targets = torch.rand(200, 40, generator=generator) < 0.15
    scores += 2.0 * targets * (torch.rand(200, 40, generator=generator) < 0.5)
    scores[:, 1] = 0.0
    scores[:, 2] = -1.0
    return scores, targets


def test_metrics_equal_scikit_learn_with_ties(tied):
    scores, targets = tied
    found = binary_metrics(scores, targets)
    assert bool(found.defined.all())
    for c in range(scores.shape[1]):
        y, s = targets[:, c].numpy(), scores[:, c].numpy()
        assert found.f1[c].item() == pytest.approx(metrics.f1_score(y, s > 0, zero_division=0), rel=1e-12)
        assert found.precision[c].item() == pytest.approx(metrics.precision_score(y, s > 0, zero_division=0), rel=1e-12)
        assert found.recall[c].item() == pytest.approx(metrics.recall_score(y, s > 0), rel=1e-12)
        assert found.auroc[c].item() == pytest.approx(metrics.roc_auc_score(y, s), rel=1e-12)
    assert found.auroc[1] == 0.5


def test_threshold_is_exclusive():
    scores, targets = torch.tensor([[0.0], [1e-8], [1.0]]), torch.tensor([[True], [True], [False]])
    assert binary_metrics(scores, targets).recall.item() == 0.5
    assert binary_metrics(scores, targets, threshold=1e-8).recall.item() == 0.0


def test_best_f1_threshold_equals_the_precision_recall_curve(tied):
    scores, targets = tied
    thresholds, best = optimal_f1_threshold(scores, targets)
    for c in range(scores.shape[1]):
        y, s = targets[:, c].numpy(), scores[:, c].numpy()
        precision, recall, candidates = metrics.precision_recall_curve(y, s)
        f1 = (2 * precision * recall / (precision + recall).clip(min=1e-300))[:-1]
        assert best[c].item() == pytest.approx(f1.max(), rel=1e-12)
        assert thresholds[c].item() in candidates
        assert metrics.f1_score(y, s >= thresholds[c].item()) == pytest.approx(f1.max(), rel=1e-12)


def test_one_sided_columns_are_marked_and_only_their_auroc_is_nan():
    scores = torch.randn(6, 2, generator=torch.Generator().manual_seed(1))
    targets = torch.zeros(6, 2, dtype=torch.bool)
    targets[:, 1] = True
    found = binary_metrics(scores, targets)
    assert found.defined.tolist() == [False, False]
    assert found.f1[0] == found.recall[0] == 0
    assert bool(found.auroc.isnan().all())
    assert not torch.stack([found.f1, found.precision, found.recall]).isnan().any()
    assert bool(auroc(scores, targets).isnan().all())
    thresholds, f1 = optimal_f1_threshold(scores, targets)
    assert bool(thresholds.isfinite().all())
    assert f1.tolist() == [0.0, 1.0]


def test_non_finite_scores_are_refused():
    with pytest.raises(NonFiniteError, match="1 of 2"):
        binary_metrics(torch.tensor([[0.0], [torch.nan]]), torch.tensor([[True], [False]]))
