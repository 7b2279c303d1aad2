"""Feature absorption: which latents act where a letter's main latents are silent (arXiv 2409.14507, section 5)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from absorb_pl.evaluators.calculator import FeatureAbsorptionCalculator, MetricFn
from absorb_pl.evaluators.sae_probing import SplitSettings
from absorb_pl.experiments.absorption_frames import COLUMNS, AbsorptionFrameStage, frame_row
from absorb_pl.experiments.common import EXPERIMENTS_DIR, SaeInfo, load_experiment_df
from absorb_pl.experiments.k_sparse_probing import (
    SPARSE_PROBING_EXPERIMENT_NAME,
    get_sparse_probing_raw_results_filename,
)
from absorb_pl.experiments.plots import points_of, save_plot, vs_l0_figure, vs_layer_figure
from absorb_pl.experiments.runs import Results, run_experiment
from absorb_pl.functional.answer_metric import letter_metric
from absorb_pl.functional.rates import LetterOutcome, sae_rate
from absorb_pl.probes.linear import LinearProbe
from absorb_pl.ranges import Count, Fraction, check_ranges
from absorb_pl.rules.registry import configured_rules
from absorb_pl.saes.interface import SparseAutoencoder
from absorb_pl.words.vocab import LETTERS

FEATURE_ABSORPTION_EXPERIMENT_NAME = "feature_absorption"
ABSORPTION_PROBE_COS_THRESHOLD = 0.025
"""Least cosine of the top latent's decoder row with the probe."""
ABSORPTION_FEATURE_DELTA_THRESHOLD = 1.0
"""Least lead of the top latent's score over the second's."""


@dataclass
class StatsAndLikelyFalseNegativeResults:
    """What k-sparse probing found on a letter.

    Attributes:
        probe_true_positives: Words of the letter that the linear probe tells.
        split_feats_true_positives: Those of them that the main latents tell too.
        split_feats: The main latents.
        potential_false_negatives: Those of them that the main latents do not tell.
    """

    probe_true_positives: int
    split_feats_true_positives: int
    split_feats: list[int]
    potential_false_negatives: list[str]


def letter_delta_metric(tokenizer: PreTrainedTokenizerBase, pos_letter: str) -> MetricFn:
    """The metric that the ablation scores of a letter are of: its logit less the mean of the other letters'.

    Args:
        tokenizer: The model's tokenizer.
        pos_letter: The right answer, read by its last token: `"a"` in the published runs, `" A"` as prompts have it.
            The other letters are capitals after a space.

    Returns:
        From logits `[prompts, tokens, vocab]` to one value per prompt.
    """
    answers = torch.tensor([tokenizer.encode(f" {letter.upper()}")[-1] for letter in LETTERS])
    label = LETTERS.index(pos_letter[-1].lower())
    positive = answers.clone()
    positive[label] = tokenizer.encode(pos_letter)[-1]

    def metric_fn(logits: Float[Tensor, "prompts tokens vocab"]) -> Float[Tensor, " prompts"]:
        last = logits[:, -1]
        labels = torch.full((len(last),), label, device=last.device)
        return letter_metric(last, labels, answers.to(last.device), positive.to(last.device))

    return metric_fn


def get_stats_and_likely_false_negative_tokens(
    auroc_f1_df: pd.DataFrame, sae_info: SaeInfo, sparse_probing_task_output_dir: Path | str
) -> dict[str, StatsAndLikelyFalseNegativeResults]:
    """Find the words that the linear probe tells and the main latents' k-sparse probe does not.

    Args:
        auroc_f1_df: From `build_f1_and_auroc_df`, with splits.
        sae_info: What the SAE is called.
        sparse_probing_task_output_dir: The folder with the raw scores of its k-sparse probes.

    Returns:
        What was found by letter, of the letters in `auroc_f1_df`.

    Raises:
        AbsorbError: The file with the raw scores is not there.
    """
    file = Path(sparse_probing_task_output_dir) / get_sparse_probing_raw_results_filename(sae_info)
    raw = load_experiment_df(SPARSE_PROBING_EXPERIMENT_NAME, file)
    found = {}
    for letter, latents in zip(auroc_f1_df["letter"], auroc_f1_df["split_feats"], strict=True):
        seen = raw[(raw["answer_letter"] == letter) & (raw[f"score_probe_{letter}"] > 0)]
        told = seen[f"score_sparse_sae_{letter}_k_{len(latents)}"] > 0
        found[str(letter)] = StatsAndLikelyFalseNegativeResults(
            probe_true_positives=len(seen),
            split_feats_true_positives=int(told.sum()),
            split_feats=[int(latent) for latent in latents],
            potential_false_negatives=seen.loc[~told, "token"].tolist(),
        )
    return found


def calculate_ig_ablation_and_cos_sims(
    calculator: FeatureAbsorptionCalculator,
    sae: SparseAutoencoder,
    probe: LinearProbe,
    likely_negs: Mapping[str, StatsAndLikelyFalseNegativeResults],
    max_prompts_per_letter: Count = 200,
) -> pd.DataFrame:
    """Judge the words on which main latents may have failed, letter by letter.

    `run_feature_absortion_experiments` gives the same frame for many SAEs in one pass.

    Args:
        calculator: Builds the prompts and judges the words.
        sae: The SAE.
        probe: The linear probe, one output per letter.
        likely_negs: From `get_stats_and_likely_false_negative_tokens`.
        max_prompts_per_letter: Most words to judge of a letter; more are sampled.

    Returns:
        One row per word on which the main latents are silent, with the columns of `COLUMNS`.
    """
    check_ranges(calculate_ig_ablation_and_cos_sims, locals())
    rows = []
    for letter, stats in likely_negs.items():
        found = calculator.calculate_absorption_sampled(
            sae,
            stats.potential_false_negatives,
            probe.weights.detach()[LETTERS.index(letter)],
            letter_delta_metric(calculator.model.tokenizer, letter),
            stats.split_feats,
            max_ablation_samples=max_prompts_per_letter,
            show_progress=False,
        )
        about = (letter, found.sample_portion, stats.probe_true_positives)
        rows += [frame_row(*about, result) for result in found.sample_results]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def run_feature_absortion_experiments(
    saes: Sequence[str | SaeInfo],
    experiment_dir: Path | str = EXPERIMENTS_DIR / FEATURE_ABSORPTION_EXPERIMENT_NAME,
    feature_split_f1_jump_threshold: Fraction = 0.03,
    *,
    rule_name: str = "paper-published",
    **settings: Any,
) -> Results:
    """Score and judge the words on which the main latents of each SAE fail (the name is spelled as published).

    Runs a study up to its absorption stage, k-sparse probes included. What is finished in `cache_dir` is not made
    again.

    Args:
        saes: Names for `load_sae`, patterns, or `SaeInfo` with such a name as `path`.
        experiment_dir: Where the frames go.
        feature_split_f1_jump_threshold: Gain in F1 that a further main latent must exceed, in place of
            `splits.f1_jump`.
        rule_name: Which of the paper's rules judges: `paper-published` takes the bare lower-case letter for the right
            answer, as the released code does, `paper` the letter as the prompts have it.
        settings: Settings of `StudyConfig`: `model`, `task`, `rules` (one, with
            settings), `splits`, `cache_dir`, `seed`, `trainer`, …

    Returns:
        Frames with the columns of `COLUMNS`, with what each SAE is called, by layer.

    Raises:
        RuleError: `rule_name` is none of the paper's.
        AbsorbError: Another of the named errors of `absorb_pl.errors`.

    `docs/experiments.md` has an example.
    """
    check_ranges(run_feature_absortion_experiments, locals())
    splits = replace(settings.pop("splits", SplitSettings()), f1_jump=feature_split_f1_jump_threshold)
    settings = {"rules": rule_name, **settings, "splits": splits}
    (rule,) = configured_rules(settings["rules"])
    make_stage = partial(AbsorptionFrameStage, rule=rule)
    return run_experiment(make_stage, "absorption", saes, experiment_dir, settings)


def plot_absorption_rate_vs_l0(
    results: Results, experiment_dir: Path | str = EXPERIMENTS_DIR / FEATURE_ABSORPTION_EXPERIMENT_NAME
) -> Figure:
    """Absorption rate, the mean over letters with judged words, against L0, a point per SAE.

    Args:
        results: From `run_feature_absortion_experiments`.
        experiment_dir: Where `absorption_rate_vs_l0.pdf` and `.png` go.

    Returns:
        The figure.
    """
    points, label = points_of(results, absorption_rate), "Mean absorption rate"
    figure = vs_l0_figure(points, f"{label} vs L0", label)
    return save_plot(figure, experiment_dir, "absorption_rate_vs_l0")


def plot_absorption_rate_vs_layer(
    results: Results, experiment_dir: Path | str = EXPERIMENTS_DIR / FEATURE_ABSORPTION_EXPERIMENT_NAME
) -> Figure:
    """Absorption rate, the mean over letters with judged words, in each layer, a point per SAE.

    Args:
        results: From `run_feature_absortion_experiments`.
        experiment_dir: Where `absorption_rate_vs_layer.pdf` and `.png` go.

    Returns:
        The figure.
    """
    points, label = points_of(results, absorption_rate), "Mean absorption rate"
    figure = vs_layer_figure(points, f"{label} vs layer", label)
    return save_plot(figure, experiment_dir, "absorption_rate_vs_layer")


def absorption_rate(df: pd.DataFrame) -> float:
    """Absorption rate of an SAE, as the published plots have it: letters without judged words are left out.

    Args:
        df: From `run_feature_absortion_experiments` or `calculate_ig_ablation_and_cos_sims`.

    Returns:
        The mean over letters of absorbed ÷ sample portion ÷ probe true positives; NaN if no word was judged.

    Example:
        >>> df = pd.DataFrame({"letter": ["a", "a", "b"], "is_absorption": [True, False, False]})
        >>> absorption_rate(df.assign(sample_portion=0.5, num_probe_true_positives=10))
        0.1
    """
    letters = [
        LetterOutcome(
            torch.tensor(rows["is_absorption"].to_numpy(float)),
            num_true_positives=int(rows["num_probe_true_positives"].iloc[0]),
            sample_portion=float(rows["sample_portion"].iloc[0]),
        )
        for _, rows in df.groupby("letter")
    ]
    value = sae_rate(letters, mode="published").value
    return float("nan") if value is None else value
