"""How far a rule's verdicts are from the truth."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch

from absorb_pl.functional.metrics import binary_metrics
from absorb_pl.schema import CALIBRATION_SUMMARY, dtypes

TRAINING = "training"
"""What the summary calls the looks at SAEs in training."""
ALL_WORLDS = "all worlds"
"""What the summary calls all trained SAEs together."""
_BY = ["family", "setting", "rule"]


def score_against_truth(tables: Mapping[str, pd.DataFrame], truth: pd.DataFrame) -> pd.DataFrame:
    """Hold the rules of an evaluation against what is true of the same words.

    Args:
        tables: From `evaluate_activations`: `summary`, `words`, `letters`.
        truth: One row per word: `row, is_absorbed, share`.

    Returns:
        One row per rule with the columns of `absorb_pl.schema.CALIBRATION` that say something of one evaluation. Rates
        and shares are means over classes that can be evaluated; the truth is taken over the same words, and `all_rate`
        over all words that there are.

    Example:
        >>> from absorb_pl.evaluators import evaluate_activations
        >>> from absorb_pl.truth import PlantedAbsorption, WorldSettings, make_world, planted_sae
        >>> world = make_world(WorldSettings(classes=3, unrelated=0, unrelated_active=0))
        >>> _, made = planted_sae(world, PlantedAbsorption(rate=0.25))
        >>> tables = evaluate_activations(made.sae, world.activations, world.labels, "absorb-pl-1")
        >>> scored = score_against_truth(tables, made.truth)
        >>> scored[["true_rate", "absorption_rate", "word_auroc"]].round(3).to_dict("records")
        [{'true_rate': 0.25, 'absorption_rate': 0.25, 'word_auroc': 1.0}]
    """
    by_row = truth.set_index("row")
    rows = []
    for row in tables["summary"].to_dict("records"):
        letters = tables["letters"][tables["letters"]["rule"] == row["rule"]]
        counted = set(letters.loc[letters["evaluable"], "label"])
        words = tables["words"][tables["words"]["rule"] == row["rule"]]
        words = words[words["label"].isin(counted)]
        true = by_row.loc[words["row"]]
        by_class = true.groupby(words["label"].to_numpy())
        everywhere = truth[truth["label"].isin(counted)].groupby("label")["is_absorbed"].mean()
        rows.append(
            {
                "rule": row["rule"],
                "num_words": len(words),
                "num_absorbed": int(true["is_absorbed"].sum()),
                "num_classes": len(counted),
                "true_rate": by_class["is_absorbed"].mean().mean(),
                "absorption_rate": row["absorption_rate"],
                "ci_low": row["ci_low"],
                "ci_high": row["ci_high"],
                "all_rate": everywhere.mean(),
                "true_share": by_class["share"].mean().mean(),
                "absorption_fraction": row["absorption_fraction"],
                "word_auroc": _auroc(words, true["is_absorbed"].to_numpy(bool)),
            }
        )
    return pd.DataFrame(rows)


def _auroc(words: pd.DataFrame, absorbed: np.ndarray) -> float:
    """How well a rule orders words by whether they are absorbed: those that count first, by their fractions."""
    score = words["is_absorption"].to_numpy(float) + words["absorption_fraction"].fillna(0.0).to_numpy(float)
    if absorbed.all() or not absorbed.any():
        return float("nan")
    return float(binary_metrics(torch.tensor(score)[:, None], torch.tensor(absorbed)[:, None]).auroc[0])


def summarise_scores(scores: pd.DataFrame) -> pd.DataFrame:
    """Sum up how far rules are from the truth: by planted setting, by world, and over all worlds.

    Args:
        scores: Rows of `absorb_pl.schema.CALIBRATION`.

    Returns:
        The columns of `absorb_pl.schema.CALIBRATION_SUMMARY`.

    Example:
        >>> scores = pd.DataFrame({
        ...     "family": "planted", "setting": "clean", "seed": [0, 1], "rule": "absorb-pl-1", "true_rate": [0.3, 0.3],
        ...     "absorption_rate": [0.31, 0.35], "ci_low": 0.2, "ci_high": 0.4, "all_rate": 0.3, "true_share": 0.3,
        ...     "absorption_fraction": 0.3, "word_auroc": 1.0, "num_absorbed": 60})
        >>> summarise_scores(scores)[["rate_bias", "coverage"]].round(3).to_dict("records")
        [{'rate_bias': 0.03, 'coverage': 1.0}]
    """
    planted = scores["family"] == "planted"
    parts = [_summed(scores[planted].assign(sae=""))] if planted.any() else []
    trained = scores[~planted]
    if len(trained):
        trained = trained.assign(sae=trained["family"] + "/" + trained["setting"], setting="")
        parts += [_summed(trained)]
        if trained["family"].nunique() > 1:
            parts += [_summed(trained.assign(family=ALL_WORLDS))]
    return pd.concat(parts, ignore_index=True)


def score_progress(checks: pd.DataFrame) -> pd.DataFrame:
    """How well a rule's rates tell the stages of a training apart: their rank correlation with the steps taken.

    Nothing is known of what the SAEs absorb, so all else is missing. Source: the third lens of arXiv 2605.18229.

    Args:
        checks: What `AbsorptionMonitor` found, see `absorb_pl.schema.CHECKS`.

    Returns:
        One row per SAE and rule with the columns of `absorb_pl.schema.CALIBRATION_SUMMARY`.

    Example:
        >>> checks = pd.DataFrame({"sae": "a", "rule": "mine", "step": [1, 2, 3], "absorption_rate": [0.1, 0.3, 0.2]})
        >>> score_progress(checks.assign(absorption_fraction=float("nan")))["rate_spearman"].round(3).tolist()
        [0.5]
    """
    rows = []
    for (sae, rule), looks in checks.groupby(["sae", "rule"], sort=False):
        known = looks[looks["absorption_rate"].notna()]
        rows.append(
            {
                "family": TRAINING,
                "setting": sae,
                "rule": rule,
                "evaluations": len(known),
                "not_evaluable": len(looks) - len(known),
                "rate_spearman": _rank_correlation(known["absorption_rate"], known["step"]),
                "share_spearman": _rank_correlation(known["absorption_fraction"], known["step"]),
            }
        )
    return pd.DataFrame(rows).reindex(columns=list(CALIBRATION_SUMMARY)).astype(dtypes(CALIBRATION_SUMMARY))


def _summed(scores: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for names, group in scores.groupby(_BY, sort=False):
        known = group[group["absorption_rate"].notna()]
        rate = known["absorption_rate"].astype(float) - known["true_rate"]
        share = known["absorption_fraction"].astype(float) - known["true_share"]
        held = (known["ci_low"] <= known["all_rate"]) & (known["all_rate"] <= known["ci_high"])
        rows.append(
            {
                **dict(zip(_BY, names, strict=True)),
                "evaluations": len(known),
                "not_evaluable": len(group) - len(known),
                "true_rate": known["true_rate"].mean(),
                "rate_bias": rate.mean(),
                "rate_rmse": (rate**2).mean() ** 0.5,
                "rate_spearman": _spearman(known, "absorption_rate", "true_rate"),
                "coverage": held.mean(),
                "true_share": known["true_share"].mean(),
                "share_bias": share.mean(),
                "share_rmse": (share**2).mean() ** 0.5,
                "share_spearman": _spearman(known, "absorption_fraction", "true_share"),
                "word_auroc": known["word_auroc"].mean(),
                "absorbed_word_auroc": _weighted_mean(known["word_auroc"], known["num_absorbed"]),
            }
        )
    return pd.DataFrame(rows)


def _weighted_mean(values: pd.Series, weights: pd.Series) -> float:
    """Mean of the values that are known; missing if none is."""
    known = values.notna()
    return float((values * weights)[known].sum() / weights[known].sum()) if known.any() else float("nan")


def _spearman(scores: pd.DataFrame, measured: str, true: str) -> float:
    """Rank correlation over SAEs, of means over seeds; missing for a single one."""
    means = scores.astype({measured: float}).groupby("sae")[[measured, true]].mean()
    return _rank_correlation(means[measured], means[true])


def _rank_correlation(a: pd.Series, b: pd.Series) -> float:
    return float(a.astype(float).rank().corr(b.rank()))
