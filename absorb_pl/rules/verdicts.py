"""From stored scores to verdicts: what a rule says of each candidate word, as a table."""

from dataclasses import replace
from typing import Any

import pandas as pd

from absorb_pl.rules.base import AbsorptionRule, stored_scores
from absorb_pl.rules.rate_tables import RateSettings, letters_table, summary_row

WORD_COLUMNS = (
    "sae",
    "rule",
    "row",
    "word",
    "label",
    "child",
    "prompt",
    "is_absorption",
    "absorption_fraction",
    "positive_token",
    "engine",
    "top_latent",
    "top_score",
    "top_probe_cos",
    "second_latent",
    "second_score",
    "main_activation",
    "main_max",
    "main_latents",
    "main_scores",
    "latents",
    "scores",
    "activations",
    "probe_cos",
    "probe_projection",
    "main_projection",
    "all_projection",
    "absorber_latents",
    "absorber_projections",
    "absorber_probe_cos",
)
"""Columns of the table of words, in order. `top_score` is the score by which a rule ranks latents: integrated
gradients for the paper's, projection on the probe for SAEBench's. `engine` says whether gradients came from suffixes
behind a kept prefix or from whole sequences (see `engine.compute_prefix`). What a rule does not use is missing;
`child` stands only where the task has finer labels."""

_LIST_COLUMNS = (
    "main_latents",
    "main_scores",
    "latents",
    "scores",
    "activations",
    "probe_cos",
    "absorber_latents",
    "absorber_projections",
    "absorber_probe_cos",
)


def judge_words(rule: AbsorptionRule, words: pd.DataFrame) -> pd.DataFrame:
    """The verdicts of a rule.

    Args:
        rule: The rule.
        words: Stored scores, one row a candidate word; earlier verdicts among them are replaced.

    Returns:
        `words` with `rule`, `is_absorption`, and `absorption_fraction` where the rule gives one.
    """
    found = rule.decide(stored_scores(words, rule.reads))
    words = words.drop(columns="absorption_fraction", errors="ignore").assign(
        rule=rule.name, is_absorption=found.is_absorption.numpy()
    )
    if found.fraction is not None:
        words["absorption_fraction"] = found.fraction.numpy()
    return words


def order_columns(words: pd.DataFrame) -> pd.DataFrame:
    """Words of one or several rules with all columns of `WORD_COLUMNS`, in their order; `child` where they have it.

    A missing list is None, whether or not other words have one.
    """
    words = words.reindex(columns=[name for name in WORD_COLUMNS if name != "child" or name in words])
    lists = words[list(_LIST_COLUMNS)].astype(object)
    words[list(_LIST_COLUMNS)] = lists.where(lists.notna(), None)
    return words


def rate_tables(
    rule: AbsorptionRule,
    letters: pd.DataFrame,
    words: pd.DataFrame,
    latents: pd.DataFrame,
    rates: RateSettings,
    class_names: tuple[str, ...],
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Rates of one SAE by one rule.

    Args:
        rule: The rule.
        letters: From `evaluate_sae`.
        words: From `judge_words`.
        latents: From `latent_table`.
        rates: How rates are summed up.
        class_names: All classes of the task.

    Returns:
        The table of letters, and the figures of the SAE (see `letters_table`, `summary_row`).
    """
    rates = replace(rates, letters=rule.letters or rates.letters)
    letters = rule.count_candidates(letters)
    row = {
        "rule": rule.name,
        "positive_token": getattr(rule.settings, "positive_token", None),
        "letters": rates.letters,
        **summary_row(letters, words, latents, rates),
    }
    return letters_table(letters, words, rule.name, rates, class_names), row
