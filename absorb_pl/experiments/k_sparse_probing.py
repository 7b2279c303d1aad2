"""k-sparse probing: how well the k best latents of a letter tell it, and how many it takes (arXiv 2409.14507, 4.1)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
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
from absorb_pl.functional.k_sparse import DEFAULT_KS
from absorb_pl.functional.metrics import binary_metrics
from absorb_pl.functional.similarity import cosine_similarity_matrix
from absorb_pl.functional.splits import main_latents
from absorb_pl.probes.latents import encode_latents
from absorb_pl.probes.linear import LinearProbe
from absorb_pl.probes.training import KSparseProbe
from absorb_pl.ranges import Count, Fraction, check_ranges
from absorb_pl.saes.interface import SparseAutoencoder
from absorb_pl.saes.rows import encoder_parts
from absorb_pl.words.vocab import LETTERS

SPARSE_PROBING_EXPERIMENT_NAME = "k_sparse_probing"
KS = DEFAULT_KS
EPS = 1e-6
"""Sum of activations above which the latents of a k-sparse probe count as firing."""

MetricName = Literal["f1", "precision", "recall"]
KSparseProbes = Mapping[int, Mapping[int, KSparseProbe]]
"""A probe for each k and number of a class, as `train_k_sparse_probes` gives them."""


@torch.no_grad()
def sae_k_sparse_metadata(
    sae: SparseAutoencoder,
    probe: LinearProbe,
    k_sparse_probes: KSparseProbes,
    sae_info: SaeInfo,
    *,
    class_names: Sequence[str] = LETTERS,
) -> pd.DataFrame:
    """What the k-sparse probes are made of.

    Args:
        sae: The SAE.
        probe: The linear probe, one output per class.
        k_sparse_probes: The k-sparse probes.
        sae_info: What the SAE is called.
        class_names: Names of the classes.

    Returns:
        One row per class and k: `layer, sae_l0, sae_width, letter, k, feats, cos_probe_sae_enc, cos_probe_sae_dec,
        weights, bias`. Classes without a probe are left out.
    """
    encoder, _, _ = encoder_parts(sae)
    weight = probe.weights.detach().to(encoder.device)
    cosines = {
        "cos_probe_sae_enc": cosine_similarity_matrix(weight, encoder.T).cpu(),
        "cos_probe_sae_dec": cosine_similarity_matrix(weight, sae.W_dec.detach()).cpu(),
    }
    return pd.DataFrame(
        [
            {
                "layer": sae_info.layer,
                "sae_l0": sae_info.l0,
                "sae_width": sae_info.width,
                "letter": name,
                "k": k,
                "feats": of_class[c].feature_ids.cpu().numpy(),
                **{side: cosine[c, of_class[c].feature_ids.cpu()].numpy() for side, cosine in cosines.items()},
                "weights": of_class[c].weight.detach().cpu().numpy(),
                "bias": of_class[c].bias.item(),
            }
            for c, name in enumerate(class_names)
            for k, of_class in k_sparse_probes.items()
            if c in of_class
        ]
    )


@torch.no_grad()
def eval_probe_and_sae_k_sparse_raw_scores(
    sae: SparseAutoencoder,
    probe: LinearProbe,
    k_sparse_probes: KSparseProbes,
    eval_labels: Sequence[tuple[str, int]],
    eval_activations: Float[Tensor, "rows d_model"],
    *,
    class_names: Sequence[str] = LETTERS,
) -> pd.DataFrame:
    """Scores of the linear probe and of the k-sparse probes, a row per word.

    Args:
        sae: The SAE.
        probe: The linear probe, one output per class.
        k_sparse_probes: The k-sparse probes.
        eval_labels: Word and class number of each row.
        eval_activations: Residual activations at the words.
        class_names: Names of the classes.

    Returns:
        `token, answer_letter`, and for each class `score_probe_X`; for each k of those that have k-sparse probes
        `score_sparse_sae_X_k_K, sum_sparse_sae_X_k_K, sparse_sae_X_k_K_acts`.
    """
    logits = probe(eval_activations.to(probe.weights))
    probes = [one for of_class in k_sparse_probes.values() for one in of_class.values()]
    ids = torch.cat([one.feature_ids.cpu() for one in probes]).unique()
    latents = encode_latents(sae, eval_activations, ids)
    columns: dict[str, Any] = {
        "token": [word for word, _ in eval_labels],
        "answer_letter": [class_names[label] for _, label in eval_labels],
    }
    for c, name in enumerate(class_names):
        columns[f"score_probe_{name}"] = logits[:, c].tolist()
        for k, of_class in k_sparse_probes.items():
            if c in of_class:
                one, end = of_class[c], f"{name}_k_{k}"
                chosen = latents[:, torch.searchsorted(ids, one.feature_ids.cpu())].to(one.weight)
                columns[f"score_sparse_sae_{end}"] = (chosen @ one.weight + one.bias).tolist()
                columns[f"sum_sparse_sae_{end}"] = chosen.sum(dim=1).tolist()
                columns[f"sparse_sae_{end}_acts"] = list(chosen.cpu().numpy())
    return pd.DataFrame(columns)


def build_f1_and_auroc_df(results_df: pd.DataFrame, metadata_df: pd.DataFrame) -> pd.DataFrame:
    """F1, precision, recall and AUROC of the linear probe and of the k-sparse probes, a row per class.

    Args:
        results_df: From `eval_probe_and_sae_k_sparse_raw_scores`.
        metadata_df: From `sae_k_sparse_metadata`.

    Returns:
        One row per class that occurs and has k-sparse probes: `auc_probe, f1_probe, recall_probe, precision_probe`,
        `letter, layer, sae_width, sae_l0`; for each k `auc_sparse_sae_K, f1_…, recall_…, precision_…`, the same as
        `…_sum_sparse_sae_K` of the summed activations, and `sparse_sae_k_K_feats, cos_probe_sae_enc_k_K,
        cos_probe_sae_dec_k_K, sparse_sae_k_K_weights, sparse_sae_k_K_bias`.
    """
    of_probes = {(row["letter"], row["k"]): row for row in metadata_df.to_dict("records")}
    probed, ks = {letter for letter, _ in of_probes}, list(dict.fromkeys(metadata_df["k"].tolist()))
    names = [name for name in occurring_classes(results_df) if name in probed]
    targets = targets_of(results_df, names)

    def scored(prefix: str, end: str = "", threshold: float = 0.0) -> dict[str, Tensor]:
        found = binary_metrics(
            column_matrix(results_df, [f"{prefix}_{name}{end}" for name in names]), targets, threshold
        )
        return {"auc": found.auroc, "f1": found.f1, "recall": found.recall, "precision": found.precision}

    of_probe = scored("score_probe")
    of_ks = {k: scored("score_sparse_sae", f"_k_{k}") for k in ks}
    of_sums = {k: scored("sum_sparse_sae", f"_k_{k}", EPS) for k in ks}
    rows = []
    for i, name in enumerate(names):
        row: dict[str, Any] = {f"{metric}_probe": values[i].item() for metric, values in of_probe.items()}
        row["letter"] = name
        row |= {about: of_probes[name, ks[0]][about] for about in ("layer", "sae_width", "sae_l0")}
        for k in ks:
            made_of = of_probes[name, k]
            row |= {f"{metric}_sparse_sae_{k}": values[i].item() for metric, values in of_ks[k].items()}
            row |= {f"{metric}_sum_sparse_sae_{k}": values[i].item() for metric, values in of_sums[k].items()}
            row[f"sparse_sae_k_{k}_feats"] = made_of["feats"]
            row |= {f"cos_probe_sae_{side}_k_{k}": made_of[f"cos_probe_sae_{side}"] for side in ("enc", "dec")}
            row |= {f"sparse_sae_k_{k}_{part}": made_of[part] for part in ("weights", "bias")}
        rows.append(row)
    return pd.DataFrame(rows)


def add_feature_splits_to_auroc_f1_df(
    df: pd.DataFrame, f1_jump_threshold: Fraction = 0.03, ks: Sequence[Count] = tuple(range(1, 16))
) -> None:
    """Add `split_feats`, the latents that a class takes, and `num_split_features`, their number less one, in place.

    Args:
        df: From `build_f1_and_auroc_df`.
        f1_jump_threshold: Gain in F1 that a further latent must exceed.
        ks: The ks to walk; those that `df` lacks are left out.

    Example:
        >>> df = pd.DataFrame({"letter": ["a"], "f1_sparse_sae_1": [0.5], "f1_sparse_sae_2": [0.7]})
        >>> df["sparse_sae_k_1_feats"], df["sparse_sae_k_2_feats"] = [[9]], [[9, 4]]
        >>> add_feature_splits_to_auroc_f1_df(df)
        >>> df["split_feats"].tolist(), df["num_split_features"].tolist()
        ([[9, 4]], [1])
    """
    check_ranges(add_feature_splits_to_auroc_f1_df, locals())
    ks = [k for k in ks if f"f1_sparse_sae_{k}" in df]
    feats = [
        main_latents(
            [float(row[f"f1_sparse_sae_{k}"]) for k in ks],
            ks,
            [int(latent) for latent in row[f"sparse_sae_k_{ks[-1]}_feats"]],
            f1_jump_threshold,
            ks[-1],
        )
        for row in df.to_dict("records")
    ]
    df["split_feats"] = feats
    df["num_split_features"] = [len(latents) - 1 for latents in feats]


def get_sparse_probing_raw_results_filename(sae_info: SaeInfo) -> str:
    """Name of the file of raw scores in the folder of an SAE.

    Example:
        >>> get_sparse_probing_raw_results_filename(SaeInfo(13, 0, 16_000, "…"))
        'layer_0_16000_13_raw_results.parquet'
    """
    return f"{_stem(sae_info)}_raw_results.parquet"


def get_sparse_probing_metadata_filename(sae_info: SaeInfo) -> str:
    """Name of the file that says what the k-sparse probes of an SAE are made of.

    Example:
        >>> get_sparse_probing_metadata_filename(SaeInfo(13, 0, 16_000, "…"))
        'layer_0_16000_13_metadata.parquet'
    """
    return f"{_stem(sae_info)}_metadata.parquet"


def get_sparse_probing_auroc_f1_results_filename(sae_info: SaeInfo) -> str:
    """Name of the file of metrics in the folder of an SAE.

    Example:
        >>> get_sparse_probing_auroc_f1_results_filename(SaeInfo(13, 0, 16_000, "…"))
        'layer_0_16000_13_auroc_f1.parquet'
    """
    return f"{_stem(sae_info)}_auroc_f1.parquet"


class KSparseFrameStage(FrameStage):
    """Makes the raw scores, the metadata and the metrics of each SAE's k-sparse probes."""

    name = SPARSE_PROBING_EXPERIMENT_NAME

    @override
    def basis(self, unit: str) -> dict[str, Any]:
        return {"probing": self.stages.probing.identity(unit)}

    @override
    def frames(self, unit: str, sae: SparseAutoencoder, info: SaeInfo) -> Frames:
        x, labels = self.held_out(unit)
        probe = self.stages.probes.probe(self.stages.subject.saes[unit].hook_name)
        probes, names = self.stages.probing.probes_of(unit), self.stages.subject.words.task.classes
        raw = eval_probe_and_sae_k_sparse_raw_scores(sae, probe, probes, labels, x, class_names=names)
        metadata = sae_k_sparse_metadata(sae, probe, probes, info, class_names=names)
        return {
            get_sparse_probing_raw_results_filename(info): raw,
            get_sparse_probing_metadata_filename(info): metadata,
            get_sparse_probing_auroc_f1_results_filename(info): build_f1_and_auroc_df(raw, metadata),
        }


def run_k_sparse_probing_experiments(
    saes: Sequence[str | SaeInfo],
    experiment_dir: Path | str = EXPERIMENTS_DIR / SPARSE_PROBING_EXPERIMENT_NAME,
    f1_jump_threshold: Fraction = 0.03,
    **settings: Any,
) -> Results:
    """Train and score k-sparse probes on each SAE.

    Runs a study up to its k-sparse probes. What is finished in `cache_dir` is not made again.

    Args:
        saes: Names for `load_sae`, patterns, or `SaeInfo` with such a name as `path`.
        experiment_dir: Where the frames go.
        f1_jump_threshold: Gain in F1 that a further latent must exceed to count as a split.
        settings: Settings of `StudyConfig`: `model`, `task`, `k_sparse`, `cache_dir`, `seed`, `trainer`, …

    Returns:
        From `build_f1_and_auroc_df`, with splits and what each SAE is called, by layer.

    Raises:
        AbsorbError: One of the named errors of `absorb_pl.errors`.

    `docs/experiments.md` has an example.
    """
    check_ranges(run_k_sparse_probing_experiments, locals())
    results = run_experiment(KSparseFrameStage, "k-sparse-probes", saes, experiment_dir, settings)
    for found in results.values():
        for frame, _ in found:
            add_feature_splits_to_auroc_f1_df(frame, f1_jump_threshold)
    return results


def plot_feature_splits_vs_l0(
    k_sparse_results: Results, experiment_dir: Path | str = EXPERIMENTS_DIR / SPARSE_PROBING_EXPERIMENT_NAME
) -> Figure:
    """Mean number of splits of a letter against L0, a point per SAE.

    Args:
        k_sparse_results: From `run_k_sparse_probing_experiments`.
        experiment_dir: Where `feature_splitting_vs_l0.pdf` and `.png` go.

    Returns:
        The figure.
    """
    points = mean_over_letters(k_sparse_results, "num_split_features")
    figure = vs_l0_figure(points, "Mean feature splits per letter vs L0", "Num feature splits")
    return save_plot(figure, experiment_dir, "feature_splitting_vs_l0")


def plot_k1_metric_vs_l0(
    k_sparse_results: Results,
    metric: MetricName = "f1",
    experiment_dir: Path | str = EXPERIMENTS_DIR / SPARSE_PROBING_EXPERIMENT_NAME,
) -> Figure:
    """Mean over letters of a metric of the best latent, taken as firing or not, against L0.

    Args:
        k_sparse_results: From `run_k_sparse_probing_experiments`.
        metric: What to draw.
        experiment_dir: Where `k1_METRIC_vs_l0.pdf` and `.png` go.

    Returns:
        The figure.
    """
    points = mean_over_letters(k_sparse_results, f"{metric}_sum_sparse_sae_1")
    figure = vs_l0_figure(points, f"SAE {metric_name(metric)} (k = 1) vs L0", f"Mean {metric_name(metric)}")
    return save_plot(figure, experiment_dir, f"k1_{metric}_vs_l0")


def plot_k1_metric_vs_layer(
    k_sparse_results: Results,
    metric: MetricName = "f1",
    experiment_dir: Path | str = EXPERIMENTS_DIR / SPARSE_PROBING_EXPERIMENT_NAME,
) -> Figure:
    """Mean over letters of a metric of the best latent in each layer, beside that of the linear probe.

    Args:
        k_sparse_results: From `run_k_sparse_probing_experiments`.
        metric: What to draw.
        experiment_dir: Where `k1_METRIC_vs_layer.pdf` and `.png` go.

    Returns:
        The figure.
    """
    points = mean_over_letters(k_sparse_results, f"{metric}_sum_sparse_sae_1")
    probe = mean_over_letters(k_sparse_results, f"{metric}_probe")
    figure = vs_layer_figure(
        points, f"SAE {metric_name(metric)} (k = 1) vs layer", f"Mean {metric_name(metric)}", probe
    )
    return save_plot(figure, experiment_dir, f"k1_{metric}_vs_layer")


def _stem(sae_info: SaeInfo) -> str:
    return f"layer_{sae_info.layer}_{sae_info.width}_{sae_info.l0:g}"
