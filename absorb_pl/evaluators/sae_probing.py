"""All that is asked of one SAE before any causal scoring: statistics, latent evaluation, splits, candidates."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from absorb_pl.errors import AbsorbError
from absorb_pl.evaluators.k_sparse_table import k_sparse_table, main_latents_by_label
from absorb_pl.evaluators.latent_table import latent_table
from absorb_pl.functional.absorption import SILENT, paper_candidates, sample_candidates
from absorb_pl.functional.k_sparse import k_sparse_logits
from absorb_pl.functional.metrics import binary_metrics, f1_scores
from absorb_pl.functional.precision import at_least_float32
from absorb_pl.functional.sae_stats import SaeStatistics
from absorb_pl.functional.similarity import cosine_similarity_matrix
from absorb_pl.functional.splits import aligned_main_latents, main_latents
from absorb_pl.probes.k_sparse import SaeProbe
from absorb_pl.probes.latents import encode_latents
from absorb_pl.ranges import Count, Fraction, Portion, Positive, Range, Seed, check_ranges
from absorb_pl.saes.interface import SparseAutoencoder

Rows = tuple[Float[Tensor, "rows d_model"], Shaped[Tensor, "rows classes"]]
"""Activations and one-hot labels."""


@dataclass(frozen=True)
class EvaluationRows:
    """The held-out words of a task at one hook, with the linear probe's opinion of them.

    Attributes:
        x: Residual rows, `[rows, d_model]`.
        y: Which classes each word is of, `[rows, classes]`; one of them, or several.
        index: Row number of each word in the task.
        probe_weight: Weights of the linear probe, `[classes, d_model]`.
        probe_logits: Its logits, `[rows, classes]`.
        class_names: Names of the classes.
    """

    x: Float[Tensor, "rows d_model"]
    y: Bool[Tensor, "rows classes"]
    index: Int[Tensor, " rows"]
    probe_weight: Float[Tensor, "classes d_model"]
    probe_logits: Float[Tensor, "rows classes"]
    class_names: tuple[str, ...]

    @classmethod
    def of(
        cls,
        x: Float[Tensor, "rows d_model"],
        y: Shaped[Tensor, "rows classes"],
        index: Int[Tensor, " rows"],
        weight: Float[Tensor, "classes d_model"],
        bias: Float[Tensor, " classes"],
        class_names: Sequence[str],
    ) -> "EvaluationRows":
        """Ask a linear probe about held-out words.

        Args:
            x: Residual rows.
            y: Labels, 0 or 1.
            index: Row number of each word in the task.
            weight: Weights of the probe.
            bias: Its biases.
            class_names: Names of the classes.
        """
        weight, bias = weight.cpu(), bias.cpu()
        return cls(x, y.bool(), index, weight, x @ weight.T + bias, tuple(class_names))

    @property
    def seen(self) -> Int[Tensor, "seen 2"]:
        """Place and class of each word on which the linear probe sees that class of the word."""
        return (self.y & (self.probe_logits > 0)).nonzero()


@dataclass(frozen=True)
class SplitSettings:
    """How main latents and candidate words are found.

    Attributes:
        f1_jump: Gain in F1 that a further main latent must exceed.
        max_k: Most main latents per class; the paper's probes have at most 50.
        selection: Words whose F1 chooses the main latents: `test`, the held-out words that are judged with them, as
            published; or `train`, the words that the k-sparse probes were trained on. Cross-fitting chooses on the
            words that a fold does not hold out, whatever this says.
        min_alignment: Least cosine of a further main latent with the class's probe, as a share of the first's; all that
            the walk finds are kept when None, as published.
        silent: Summed size of activation below which main latents count as silent.
        max_words_per_letter: Most candidate words per class; more are sampled. In cross-fitting that is per class and
            repeat, over all folds.
        seed: Seed of that sample.
    """

    f1_jump: Fraction = 0.03
    max_k: Annotated[int, Range(1, 50)] = 15
    selection: Literal["test", "train"] = "test"
    min_alignment: Portion | None = None
    silent: Positive = SILENT
    max_words_per_letter: Count = 200
    seed: Seed = 42

    def __post_init__(self) -> None:
        check_ranges(SplitSettings, vars(self))


@dataclass(frozen=True)
class SaeProbing:
    """What was found, as tables.

    Attributes:
        statistics: `d_sae, l0, explained_variance, dead_fraction` on the held-out words.
        latents: From `latent_table`.
        k_sparse: From `k_sparse_table`.
        letters: One row per class: `label, main_latents, num_splits, num_words, num_probe_true_positives,
            num_candidates, sample_portion, probe_f1, probe_precision, probe_recall, main_latent_recall,
            main_f1, tracking_latent, tracking_f1, sae_fires`; see `absorb_pl.schema.LETTERS`.
        candidates: One row per candidate word kept: `row, label, probe_logit, k_sparse_logit`.
    """

    statistics: dict[str, float | int]
    latents: pd.DataFrame
    k_sparse: pd.DataFrame
    letters: pd.DataFrame
    candidates: pd.DataFrame


@torch.no_grad()
def evaluate_sae(
    sae: SparseAutoencoder,
    k_sparse: SaeProbe,
    rows: EvaluationRows,
    settings: SplitSettings | None = None,
    training: Rows | None = None,
) -> SaeProbing:
    """Evaluate one SAE on the held-out words, encoding them once.

    Args:
        sae: The SAE.
        k_sparse: Its trained k-sparse probes.
        rows: The held-out words.
        settings: How main latents and candidates are found.
        training: Activations and labels of the words that the k-sparse probes were trained on, for `selection: train`.
    """
    settings = settings or SplitSettings()
    statistics = SaeStatistics.empty(rows.x.shape[1], sae.W_dec.shape[0])
    ids = k_sparse.latent_ids.cpu()
    activations = encode_latents(sae, rows.x, ids.flatten(), statistics).unflatten(1, ids.shape)
    logits = k_sparse_logits(activations, k_sparse.weight.cpu(), k_sparse.bias.cpu())
    table = k_sparse_table(logits, rows.y, k_sparse.ks, k_sparse.latent_ids, rows.class_names)
    walked = _chosen_mains(sae, k_sparse, table, settings, training)
    mains = aligned_mains(sae, rows, walked, settings)
    letters, candidates = _letters_and_candidates(
        rows, table, walked, mains, activations, logits, k_sparse.ks, settings
    )
    return SaeProbing(
        statistics={
            "d_sae": sae.W_dec.shape[0],
            "l0": statistics.l0,
            "explained_variance": statistics.explained_variance,
            "dead_fraction": statistics.dead_fraction,
        },
        latents=latent_table(sae, rows.x, rows.y, rows.probe_weight, rows.probe_logits, rows.class_names),
        k_sparse=table,
        letters=_tracked(letters, k_sparse, rows.class_names).assign(sae_fires=statistics.num_active > 0),
        candidates=candidates,
    )


def _chosen_mains(
    sae: SparseAutoencoder,
    k_sparse: SaeProbe,
    held_out: pd.DataFrame,
    settings: SplitSettings,
    training: Rows | None,
) -> dict[str, list[int]]:
    """Main latents of the classes that occur among the held-out words."""
    if settings.selection == "test":
        return main_latents_by_label(held_out, settings.f1_jump, settings.max_k)
    if training is None:
        raise AbsorbError(
            "selection", settings.selection, expected="training words to choose on", remedy="Pass `training`."
        )
    mains = walked_mains(sae, k_sparse, training, settings)
    return {label: mains[label] for label in held_out["label"].unique() if label in mains}


def walked_mains(
    sae: SparseAutoencoder, k_sparse: SaeProbe, rows: Rows, settings: SplitSettings
) -> dict[str, list[int]]:
    """The main latents that the walk by F1 finds on some rows, of the classes that occur there.

    Args:
        sae: The SAE.
        k_sparse: Its trained k-sparse probes.
        rows: Activations and labels.
        settings: How main latents are found.
    """
    x, y = rows
    ids = k_sparse.latent_ids.cpu()
    activations = encode_latents(sae, x, ids.flatten()).unflatten(1, ids.shape)
    logits = k_sparse_logits(activations, k_sparse.weight.cpu(), k_sparse.bias.cpu())
    targets, ks = y.bool().cpu(), k_sparse.ks
    f1 = f1_scores(logits.flatten(1), targets.repeat(1, len(ks))).view(len(ks), -1)
    return {
        name: main_latents(f1[:, c].tolist(), ks, ids[c].tolist(), settings.f1_jump, settings.max_k)
        for c, name in enumerate(k_sparse.class_names)
        if bool(targets[:, c].any())
    }


def aligned_mains(
    sae: SparseAutoencoder, rows: EvaluationRows, walked: dict[str, list[int]], settings: SplitSettings
) -> dict[str, list[int]]:
    """The main latents that point the way the first does; all of them where the settings do not ask for that.

    Args:
        sae: The SAE.
        rows: Words, with the linear probe.
        walked: What the walk by F1 found of each class.
        settings: How main latents are found.
    """
    if settings.min_alignment is None:
        return walked
    cosines = cosine_similarity_matrix(rows.probe_weight.float(), at_least_float32(sae.W_dec.detach()).cpu())
    return {
        label: aligned_main_latents(latents, cosines[rows.class_names.index(label)], settings.min_alignment)
        for label, latents in walked.items()
    }


def _tracked(letters: pd.DataFrame, k_sparse: SaeProbe, class_names: tuple[str, ...]) -> pd.DataFrame:
    numbers = [class_names.index(label) for label in letters["label"]]
    return letters.assign(
        tracking_latent=k_sparse.tracking.cpu()[numbers].numpy(),
        tracking_f1=k_sparse.tracking_f1.cpu()[numbers].numpy(),
    )


def _letters_and_candidates(
    rows: EvaluationRows,
    table: pd.DataFrame,
    walked: dict[str, list[int]],
    mains: dict[str, list[int]],
    activations: Float[Tensor, "rows classes ranks"],
    logits: Float[Tensor, "rows ks classes"],
    ks: tuple[int, ...],
    settings: SplitSettings,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    probe = binary_metrics(rows.probe_logits, rows.y)
    sparse_f1 = table.set_index(["label", "k"])["f1"]
    letters, candidates = [], []
    for c, label in enumerate(rows.class_names):
        if label not in mains:
            continue
        k = ks.index(len(walked[label]))
        ranks = [walked[label].index(latent) for latent in mains[label]]
        own = rows.y[:, c].nonzero().squeeze(-1)
        probe_logit, sparse_logit = rows.probe_logits[own, c], logits[own, k, c]
        main_activation = activations[own, c][:, ranks].abs().sum(dim=1)
        eligible = own[paper_candidates(probe_logit, sparse_logit, main_activation, silent=settings.silent)]
        generator = torch.Generator().manual_seed(settings.seed * 1_000 + c)
        kept, portion = sample_candidates(eligible, settings.max_words_per_letter, generator)
        letters.append(
            {
                "label": label,
                "main_latents": mains[label],
                "num_splits": len(ranks) - 1,
                "num_words": len(own),
                "num_probe_true_positives": int((probe_logit > 0).sum()),
                "num_candidates": len(eligible),
                "sample_portion": portion,
                "probe_f1": float(probe.f1[c]),
                "probe_precision": float(probe.precision[c]),
                "probe_recall": float(probe.recall[c]),
                "main_latent_recall": float((main_activation >= settings.silent).float().mean()),
                "main_f1": float(sparse_f1[label, ks[k]]),
            }
        )
        candidates.append(
            pd.DataFrame(
                {
                    "row": rows.index[kept].numpy(),
                    "label": pd.Series([label] * len(kept), dtype=str),
                    "probe_logit": rows.probe_logits[kept, c].numpy(),
                    "k_sparse_logit": logits[kept, k, c].numpy(),
                }
            )
        )
    return pd.DataFrame(letters), pd.concat(candidates, ignore_index=True)
