"""Latent evaluation: how well the latents nearest to a letter's probe tell it (arXiv 2409.14507, section 4)."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import pandas as pd
import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor
from typing_extensions import override

from absorb_pl.experiments.classes import column_matrix, occurring_classes, targets_of
from absorb_pl.experiments.common import EXPERIMENTS_DIR, SaeInfo
from absorb_pl.experiments.plots import mean_over_letters, metric_name, save_plot, vs_l0_figure, vs_layer_figure
from absorb_pl.experiments.runs import Frames, FrameStage, Results, run_experiment
from absorb_pl.functional.latents import LATENT_DECISION_THRESHOLD, latent_scores, top_latents_by_encoder
from absorb_pl.functional.metrics import binary_metrics
from absorb_pl.functional.similarity import cosine_similarity_matrix
from absorb_pl.probes.linear import LinearProbe
from absorb_pl.ranges import Count, check_ranges
from absorb_pl.saes.interface import SparseAutoencoder
from absorb_pl.saes.rows import encoder_parts
from absorb_pl.study.stages import StudyStages
from absorb_pl.words.vocab import LETTERS

LATENT_EVALUATION_EXPERIMENT_NAME = "latent_evaluation"

MetricName = Literal["f1", "precision", "recall"]


@torch.no_grad()
def eval_probe_and_top_sae_raw_scores(
    sae: SparseAutoencoder,
    probe: LinearProbe,
    eval_labels: Sequence[tuple[str, int]],
    eval_activations: Float[Tensor, "rows d_model"],
    topk: Count = 5,
    metadata: Mapping[str, str | float | int] = MappingProxyType({}),
    *,
    class_names: Sequence[str] = LETTERS,
) -> pd.DataFrame:
    """Scores of the linear probe and of the latents nearest to it, a row per word.

    Args:
        sae: The SAE.
        probe: The linear probe, one output per class.
        eval_labels: Word and class number of each row.
        eval_activations: Residual activations at the words.
        topk: Latents a class, by cosine of encoder column and probe.
        metadata: Further columns, one value each.
        class_names: Names of the classes.

    Returns:
        `token, answer_letter`, the metadata, and for each class `score_probe_X`; for each rank of its latents
        `score_sae_X_top_R, sae_X_top_R_feat, cos_probe_sae_enc_X_top_R, cos_probe_sae_dec_X_top_R`.

    Example:
        >>> from types import SimpleNamespace
        >>> sae = SimpleNamespace(W_enc=torch.eye(2), W_dec=torch.eye(2), b_enc=torch.zeros(2))
        >>> probe = LinearProbe(2, 2)
        >>> _ = probe.weights.data.copy_(torch.eye(2))
        >>> raw = eval_probe_and_top_sae_raw_scores(
        ...     sae, probe, [(" ant", 0)], torch.tensor([[3.0, 1.0]]), topk=1, class_names="ab"
        ... )
        >>> raw["sae_b_top_0_feat"].tolist(), raw["score_sae_b_top_0"].tolist()
        ([1], [1.0])
    """
    check_ranges(eval_probe_and_top_sae_raw_scores, locals())
    encoder, bias, threshold = encoder_parts(sae)
    weight = probe.weights.detach().to(encoder.device)
    latents, cos_encoder = top_latents_by_encoder(weight, encoder, topk)
    cos_decoder = cosine_similarity_matrix(weight, sae.W_dec.detach()).gather(1, latents)
    scores = latent_scores(eval_activations.to(encoder.device), encoder, bias, latents, threshold)
    logits = probe(eval_activations.to(probe.weights))
    columns: dict[str, Any] = {
        "token": [word for word, _ in eval_labels],
        "answer_letter": [class_names[label] for _, label in eval_labels],
        **metadata,
    }
    for c, name in enumerate(class_names):
        columns[f"score_probe_{name}"] = logits[:, c].tolist()
        for rank in range(latents.shape[1]):
            columns[f"score_sae_{name}_top_{rank}"] = scores[:, c, rank].tolist()
            columns[f"sae_{name}_top_{rank}_feat"] = latents[c, rank].item()
            columns[f"cos_probe_sae_enc_{name}_top_{rank}"] = cos_encoder[c, rank].item()
            columns[f"cos_probe_sae_dec_{name}_top_{rank}"] = cos_decoder[c, rank].item()
    return pd.DataFrame(columns)


def build_evaluation_df(results_df: pd.DataFrame, sae_info: SaeInfo, topk: Count = 5) -> pd.DataFrame:
    """F1, precision, recall and AUROC of the probe and of its nearest latents, a row per class.

    Args:
        results_df: From `eval_probe_and_top_sae_raw_scores`.
        sae_info: What the SAE is called.
        topk: Ranks to score; those that `results_df` lacks are left out.

    Returns:
        One row per class that occurs: `auc_probe, f1_probe, recall_probe, precision_probe, letter, sae_l0, sae_width`;
        for each rank `auc_sae_top_R, f1_sae_top_R, recall_sae_top_R, precision_sae_top_R, sae_top_R_feat` beside the
        cosines under the names that they have in `results_df`.
    """
    check_ranges(build_evaluation_df, locals())
    names = occurring_classes(results_df)
    targets = targets_of(results_df, names)
    of_probe = binary_metrics(column_matrix(results_df, [f"score_probe_{name}" for name in names]), targets)
    ranks = [rank for rank in range(topk) if all(f"score_sae_{name}_top_{rank}" in results_df for name in names)]
    of_ranks = {
        rank: binary_metrics(
            column_matrix(results_df, [f"score_sae_{name}_top_{rank}" for name in names]),
            targets,
            LATENT_DECISION_THRESHOLD,
        )
        for rank in ranks
    }
    rows = []
    for i, name in enumerate(names):
        row: dict[str, Any] = {
            "auc_probe": of_probe.auroc[i].item(),
            "f1_probe": of_probe.f1[i].item(),
            "recall_probe": of_probe.recall[i].item(),
            "precision_probe": of_probe.precision[i].item(),
            "letter": name,
            "sae_l0": sae_info.l0,
            "sae_width": sae_info.width,
        }
        for rank, found in of_ranks.items():
            row[f"auc_sae_top_{rank}"] = found.auroc[i].item()
            row[f"f1_sae_top_{rank}"] = found.f1[i].item()
            row[f"recall_sae_top_{rank}"] = found.recall[i].item()
            row[f"precision_sae_top_{rank}"] = found.precision[i].item()
            row[f"sae_top_{rank}_feat"] = results_df[f"sae_{name}_top_{rank}_feat"].iloc[0]
            for side in ("enc", "dec"):
                column = f"cos_probe_sae_{side}_{name}_top_{rank}"
                row[column] = results_df[column].iloc[0]
        rows.append(row)
    return pd.DataFrame(rows)


class LatentFrameStage(FrameStage):
    """Makes `layer_L_W_N_raw_results.parquet` and `layer_L_W_N_auroc_f1.parquet` of each SAE.

    Args:
        stages: The stages of the study.
        infos: What the caller says of SAEs.
        topk: Latents a class.
    """

    name = LATENT_EVALUATION_EXPERIMENT_NAME

    def __init__(self, stages: StudyStages, infos: Mapping[str, SaeInfo], topk: int) -> None:
        super().__init__(stages, infos)
        self.topk = topk

    @override
    def basis(self, unit: str) -> dict[str, Any]:
        sae = self.stages.subject.saes[unit]
        probe = self.stages.probes.identity(sae.hook_name)
        return {"linear_probe": probe, "sae": sae.identity, "dtype": sae.dtype, "topk": self.topk}

    @override
    def frames(self, unit: str, sae: SparseAutoencoder, info: SaeInfo) -> Frames:
        x, labels = self.held_out(unit)
        raw = eval_probe_and_top_sae_raw_scores(
            sae,
            self.stages.probes.probe(self.stages.subject.saes[unit].hook_name),
            labels,
            x,
            self.topk,
            {"layer": info.layer, "sae_l0": info.l0, "sae_width": info.width},
            class_names=self.stages.subject.words.task.classes,
        )
        stem = f"layer_{info.layer}_{info.width}_{info.l0:g}"
        return {
            f"{stem}_raw_results.parquet": raw,
            f"{stem}_auroc_f1.parquet": build_evaluation_df(raw, info, self.topk),
        }


def run_latent_evaluation_experiments(
    saes: Sequence[str | SaeInfo],
    experiment_dir: Path | str = EXPERIMENTS_DIR / LATENT_EVALUATION_EXPERIMENT_NAME,
    *,
    topk: Count = 5,
    **settings: Any,
) -> Results:
    """Evaluate the latents nearest to the linear probe in each SAE, on the held-out words.

    Runs a study up to its linear probes. What is finished in `cache_dir` is not made again.

    Args:
        saes: Names for `load_sae`, patterns, or `SaeInfo` with such a name as `path`.
        experiment_dir: Where the frames go.
        topk: Latents a class.
        settings: Settings of `StudyConfig`: `model`, `task`, `cache_dir`, `seed`, `trainer`, …

    Returns:
        From `build_evaluation_df`, with what each SAE is called, by layer.

    Raises:
        AbsorbError: One of the named errors of `absorb_pl.errors`.

    `docs/experiments.md` has an example.
    """
    check_ranges(run_latent_evaluation_experiments, locals())
    return run_experiment(partial(LatentFrameStage, topk=topk), "linear-probes", saes, experiment_dir, settings)


def plot_metric_vs_l0(
    results: Results,
    metric: MetricName = "f1",
    experiment_dir: Path | str = EXPERIMENTS_DIR / LATENT_EVALUATION_EXPERIMENT_NAME,
    layers_range: tuple[int, int] | None = None,
) -> Figure:
    """Mean over letters of a metric of the nearest latent against L0, a point per SAE.

    Args:
        results: From `run_latent_evaluation_experiments`.
        metric: What to draw.
        experiment_dir: Where `METRIC_vs_l0.pdf` and `.png` go.
        layers_range: First layer to draw, and the one after the last.

    Returns:
        The figure.
    """
    title, name = f"SAE {metric_name(metric)} vs L0", f"{metric}_vs_l0"
    if layers_range is not None:
        first, last = layers_range[0], layers_range[1] - 1
        results = {layer: found for layer, found in results.items() if first <= layer <= last}
        title, name = f"{title} (layers {first}-{last})", f"{name}_layers_{first}_{last}"
    points = mean_over_letters(results, f"{metric}_sae_top_0")
    return save_plot(vs_l0_figure(points, title, f"Mean {metric_name(metric)}"), experiment_dir, name)


def plot_metric_vs_layer(
    results: Results,
    metric: MetricName = "f1",
    experiment_dir: Path | str = EXPERIMENTS_DIR / LATENT_EVALUATION_EXPERIMENT_NAME,
) -> Figure:
    """Mean over letters of a metric of the nearest latent in each layer, beside that of the linear probe.

    Args:
        results: From `run_latent_evaluation_experiments`.
        metric: What to draw.
        experiment_dir: Where `METRIC_vs_layer.pdf` and `.png` go.

    Returns:
        The figure.
    """
    points, probe = mean_over_letters(results, f"{metric}_sae_top_0"), mean_over_letters(results, f"{metric}_probe")
    title = f"SAE {metric_name(metric)} vs layer"
    return save_plot(
        vs_layer_figure(points, title, f"Mean {metric_name(metric)}", probe), experiment_dir, f"{metric}_vs_layer"
    )
