"""Scores, metrics and fits of k-sparse probes in batches, against one at a time.

Scores of all words, classes and ks are one product here; the published code loops over words, classes and ks. Metrics
of all probes are computed together here, one call of scikit-learn a figure and probe there; probes are fitted together
here, one scikit-learn model each there. The plain ways run on a sample and are timed per item, which is exact for
loops. Activations are drawn at random: sparse, and firing more often on words of their class.

    python scripts/bench_probing.py --shapes 4k --json probing.json
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from benchmarking import Report, Way, compare, new_report, parse_arguments
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, precision_score, recall_score, roc_auc_score
from torch import Tensor
from torch.nn.functional import softplus

from absorb_pl.functional import DEFAULT_KS, binary_metrics, k_sparse_logits, solve_k_sparse
from absorb_pl.functional.k_sparse import KSparseSolution
from absorb_pl.functional.logistic import balanced_row_weights

SHAPES = {"1k": 1_000, "4k": 4_000, "20k": 20_000}
QUICK_WORDS = 300
CLASSES = 26
RANKS = max(DEFAULT_KS)
PLAIN_WORDS, PLAIN_PROBES, PLAIN_CLASSES = 8, 26, 2


@dataclass(frozen=True)
class Rows:
    """Activations of each class's best latents at words, and what the words are.

    Attributes:
        activations: `[words, classes, ranks]`.
        y: Which class a word is of, `[words, classes]`.
    """

    activations: Tensor
    y: Tensor


def main(args: list[str] | None = None) -> Report:
    """Run the benchmark, print its tables, and return its figures."""
    options = parse_arguments(__doc__, SHAPES, args)
    report = new_report("probing", options.device)
    for name in options.shapes:
        rows = draw_rows(options.words or (QUICK_WORDS if options.quick else SHAPES[name]), options.device)
        solution = solve_k_sparse(rows.activations.transpose(0, 1), rows.y)
        logits = k_sparse_logits(rows.activations, solution.weight, solution.bias)
        pair = partial(compare, name, repeats=options.repeats, device=options.device)
        report.comparisons += [
            pair(
                "logits of 26 classes and 17 ks",
                "word",
                Way("loops over classes and ks", partial(looped_logits, rows, solution), PLAIN_WORDS),
                Way("one product", partial(_logits, rows, solution), len(rows.y)),
            ),
            pair(
                "F1, precision, recall, AUROC",
                "probe",
                Way("scikit-learn, one by one", partial(scikit_metrics, rows, logits), PLAIN_PROBES),
                Way("all at once", partial(_metrics, rows, logits), logits[0].numel()),
            ),
            *_fits(rows, pair),
        ]
    report.show()
    report.write(options.json)
    return report


def draw_rows(words: int, device: str) -> Rows:
    """Draw words' classes and the activations of each class's latents.

    Args:
        words: Number of words; every class gets two at least.
        device: Where to put them.
    """
    generator = torch.Generator().manual_seed(0)
    frequency = 1 / torch.arange(1, CLASSES + 1)
    drawn = torch.multinomial(frequency, words, replacement=True, generator=generator)
    labels = torch.cat([torch.arange(CLASSES).repeat(2), drawn])[:words]
    y = labels[:, None] == torch.arange(CLASSES)
    on_class = 0.7 * 0.8 ** torch.arange(RANKS)
    probability = torch.where(y[:, :, None], on_class.clamp(min=0.02), 0.01)
    fires = torch.rand(words, CLASSES, RANKS, generator=generator) < probability
    strength = 0.5 + torch.rand(words, CLASSES, RANKS, generator=generator)
    return Rows((fires * strength).to(device), y.to(device))


def looped_logits(rows: Rows, solution: KSparseSolution, count: int) -> Tensor:
    """Logits of the k-sparse probes by loops over words, classes and ks.

    Args:
        rows: Words.
        solution: The probes.
        count: How many words.

    Returns:
        Logits, `[count, ks, classes]`.
    """
    weight, bias = solution.weight.float(), solution.bias.float()
    logits = torch.zeros(count, len(DEFAULT_KS), CLASSES)
    for word in range(count):
        for c in range(CLASSES):
            for i, k in enumerate(DEFAULT_KS):
                logits[word, i, c] = rows.activations[word, c, :k] @ weight[i, c, :k] + bias[i, c]
    return logits


def scikit_metrics(rows: Rows, logits: Tensor, count: int) -> Tensor:
    """F1, precision, recall and AUROC of probes by scikit-learn, `[count, 4]`.

    Args:
        rows: Words.
        logits: Logits of the probes, `[words, ks, classes]`.
        count: How many probes.
    """
    figures = []
    for probe in range(count):
        y = rows.y[:, probe % CLASSES].cpu().numpy()
        scores = logits.flatten(1)[:, probe].cpu().numpy()
        said = scores > 0
        decided = [score(y, said) for score in (f1_score, precision_score, recall_score)]
        figures.append([*decided, roc_auc_score(y, scores)])
    return torch.tensor(figures, dtype=torch.float64)


def scikit_fits(rows: Rows, options: dict[str, Any], count: int) -> Tensor:
    """Coefficients of one scikit-learn model a class and k, the intercept last, `[count, ks, ranks + 1]`.

    Args:
        rows: Words.
        options: Arguments of `LogisticRegression`.
        count: How many classes.
    """
    found = torch.zeros(count, len(DEFAULT_KS), RANKS + 1, dtype=torch.float64)
    for c in range(count):
        x, y = rows.activations[:, c].cpu().double().numpy(), rows.y[:, c].cpu().numpy()
        for i, k in enumerate(DEFAULT_KS):
            model = LogisticRegression(class_weight="balanced", **options).fit(x[:, :k], y)
            found[c, i, :k] = torch.from_numpy(model.coef_[0])
            found[c, i, -1] = float(model.intercept_[0])
    return found


def penalised_losses(rows: Rows, coefficients: Tensor) -> Tensor:
    """What a fit minimises, of each class and k.

    Args:
        rows: Words.
        coefficients: `[classes, ks, ranks + 1]`.
    """
    coefficients = coefficients.to(rows.activations.device)
    losses = []
    for c, weight in enumerate(coefficients):
        margins = rows.activations[:, c].double() @ weight[:, :-1].T + weight[:, -1]
        sign = rows.y[:, c, None].double() * 2 - 1
        row_loss = balanced_row_weights(rows.y[:, c][None])[0] @ softplus(-sign * margins)
        losses.append(row_loss + weight[:, :-1].square().sum(dim=1) / 2)
    return torch.stack(losses)


def _logits(rows: Rows, solution: KSparseSolution, count: int) -> Tensor:
    return k_sparse_logits(rows.activations[:count], solution.weight.float(), solution.bias.float())


def _metrics(rows: Rows, logits: Tensor, count: int) -> Tensor:
    columns = logits.flatten(1)[:, :count]
    targets = rows.y.repeat(1, len(DEFAULT_KS))[:, :count]
    return torch.stack(binary_metrics(columns, targets)[:4], dim=1)


def _fits(rows: Rows, pair: Any) -> list[Any]:
    def solve(count: int) -> Tensor:
        solution = solve_k_sparse(rows.activations[:, :count].transpose(0, 1), rows.y[:, :count])
        return torch.cat([solution.weight, solution.bias[:, :, None]], dim=2).transpose(0, 1)

    this = Way("all at once", solve, CLASSES)
    published = partial(scikit_fits, rows, {"max_iter": 500})
    exact = partial(scikit_fits, rows, {"solver": "newton-cholesky", "tol": 1e-10, "max_iter": 1_000})
    what = "fits of 17 ks"
    losses = partial(penalised_losses, rows)
    return [
        pair(what, "class", Way("scikit-learn, L-BFGS", published, PLAIN_CLASSES), this, figures_of=losses),
        pair(what, "class", Way("scikit-learn, Newton", exact, PLAIN_CLASSES), this),
    ]


if __name__ == "__main__":
    main()
