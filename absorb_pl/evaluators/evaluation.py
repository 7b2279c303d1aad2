"""One SAE from activations to rates: what a callback, a function call and a study have in common."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from absorb_pl.errors import RuleError
from absorb_pl.evaluators.carried import gather_carried
from absorb_pl.evaluators.projections import gather_projections
from absorb_pl.evaluators.sae_probing import EvaluationRows, Rows, SaeProbing, SplitSettings, evaluate_sae
from absorb_pl.probes.k_sparse import SaeProbe
from absorb_pl.rules.evidence import Carried, Gradients, Projections
from absorb_pl.rules.judgement import Judgement, judge
from absorb_pl.rules.rates import RateSettings
from absorb_pl.rules.registry import rules_without_model
from absorb_pl.rules.rule import AbsorptionRule
from absorb_pl.saes.interface import SparseAutoencoder
from absorb_pl.schema import stacked
from absorb_pl.words.prompting import SpellingPrompt

GatherGradients = Callable[[SaeProbing, Gradients], pd.DataFrame]
"""Gives the gradients at an SAE's candidate words."""


def evaluate_rules(
    sae: SparseAutoencoder,
    k_sparse: SaeProbe,
    rows: EvaluationRows,
    rules: Sequence[AbsorptionRule],
    splits: SplitSettings | None = None,
    rates: RateSettings | None = None,
    gather_gradients: GatherGradients | None = None,
    training: Rows | None = None,
) -> tuple[SaeProbing, list[Judgement]]:
    """Evaluate one SAE on held-out words and judge it by rules; evidence that several rules need is gathered once.

    Args:
        sae: The SAE.
        k_sparse: Its trained k-sparse probes.
        rows: The held-out words.
        rules: The rules.
        splits: How main latents and candidate words are found.
        rates: How rates are summed up.
        gather_gradients: Gives the gradients at candidate words; without it, rules that need them are refused.
        training: Activations and labels of the training words, for `selection: train`.

    Raises:
        RuleError: A rule needs gradients and there is no way to get them.
    """
    found = evaluate_sae(sae, k_sparse, rows, splits, training)
    evidence: dict[Any, pd.DataFrame] = {}
    one_main: dict[Any, pd.DataFrame] = {}
    for rule in rules:
        if rule.needs in evidence:
            continue
        if not isinstance(rule.needs, Gradients):
            evidence[rule.needs] = gather_from_rows(sae, rows, found.letters, rule.needs)
        elif gather_gradients is None:
            raise _needs_model(rule)
        else:
            evidence[rule.needs] = gather_gradients(found, rule.needs)
        if isinstance(rule.needs, Projections):
            one_main[rule.needs] = gather_one_main(sae, rows, found.letters, rule.needs, evidence[rule.needs])
    judged = [
        judge(
            rule,
            evidence[rule.needs],
            found.letters,
            found.latents,
            rates,
            rows.class_names,
            one_main.get(rule.needs),
        )
        for rule in rules
    ]
    return found, judged


def gather_one_main(
    sae: SparseAutoencoder, rows: EvaluationRows, letters: pd.DataFrame, evidence: Projections, found: pd.DataFrame
) -> pd.DataFrame:
    """The same evidence with the first main latent of each class alone.

    The walk by F1 may take an absorber for a further main latent, and without further ones a split looks like
    absorption. What is absorbed lies between the rates with all of them and with the first.

    Args:
        sae: The SAE.
        rows: The held-out words.
        letters: From `evaluate_sae`.
        evidence: What was gathered.
        found: That evidence with all main latents, which words of classes with a single one keep.
    """
    several = letters[letters["main_latents"].str.len() > 1]
    if several.empty:
        return found
    alone = gather_projections(sae, rows, several.assign(main_latents=several["main_latents"].str[:1]), evidence)
    kept = found[~found["label"].isin(several["label"])]
    return pd.concat([kept, alone], ignore_index=True).sort_values("row", kind="stable", ignore_index=True)


def gather_from_rows(
    sae: SparseAutoencoder, rows: EvaluationRows, letters: pd.DataFrame, evidence: Projections | Carried
) -> pd.DataFrame:
    """Gather evidence for which cached activations are enough.

    Args:
        sae: The SAE.
        rows: The held-out words.
        letters: From `evaluate_sae`.
        evidence: What to gather.
    """
    if isinstance(evidence, Carried):
        return gather_carried(sae, rows, letters, evidence)
    return gather_projections(sae, rows, letters, evidence)


def sae_tables(
    sae: str, found: SaeProbing, judgements: Sequence[Judgement], about: Mapping[str, Any], hook_name: str = ""
) -> dict[str, pd.DataFrame]:
    """All that is found of one SAE, as tables (see `absorb_pl.schema.TABLES`).

    Args:
        sae: Name of the SAE.
        found: What was found before any rule.
        judgements: What each rule says.
        about: What the summary says of the SAE besides.
        hook_name: Hook that it reads.

    Returns:
        `latents`, `k_sparse` and `candidates`; with rules also `summary`, `letters`, `words` and `sensitivity`.
    """

    def named(table: pd.DataFrame, **columns: str) -> pd.DataFrame:
        kept = table.drop(columns=[name for name in columns if name in table])
        for place, (name, value) in enumerate(columns.items()):
            kept.insert(place, name, value)
        return kept

    of_hook = {"sae": sae, "hook_name": hook_name} if hook_name else {"sae": sae}
    tables = {name: named(getattr(found, name), **of_hook) for name in ("latents", "k_sparse", "candidates")}
    if not judgements:
        return tables
    return {
        "summary": pd.DataFrame([{"sae": sae, **about, **judgement.figures} for judgement in judgements]),
        "letters": stacked(named(judgement.letters, **of_hook) for judgement in judgements),
        "words": stacked(judgement.words.assign(sae=sae) for judgement in judgements),
        "sensitivity": stacked(named(judgement.sensitivity, sae=sae) for judgement in judgements),
        **tables,
    }


def with_texts(table: pd.DataFrame, texts: Sequence[SpellingPrompt]) -> pd.DataFrame:
    """A table with the word and the prompt of each row.

    Args:
        table: One row per word; `row` is its number in the task.
        texts: The prompt of each word of the task.
    """
    prompts = [texts[row] for row in table["row"]]
    return table.assign(word=[prompt.word for prompt in prompts], prompt=[prompt.base for prompt in prompts])


def check_rules_without_model(rules: Sequence[AbsorptionRule]) -> None:
    """Refuse rules that activations are not enough for.

    Args:
        rules: The rules.

    Raises:
        RuleError: One of them reads gradients of a language model.
    """
    if unfit := next((rule for rule in rules if rule.evidence is Gradients), None):
        raise _needs_model(unfit)


def _needs_model(rule: AbsorptionRule) -> RuleError:
    return RuleError(
        "rules",
        rule.name,
        expected=f"rules that activations are enough for: {', '.join(rules_without_model())}",
        remedy="Use `run_study`, or the callback `Evaluate`, for rules that read gradients of the language model.",
    )
