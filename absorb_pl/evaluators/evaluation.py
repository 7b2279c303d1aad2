"""One SAE from activations to rates: what a callback, a function call and a study have in common."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import one_hot

from absorb_pl.data.splits import check_split, stratified_split
from absorb_pl.errors import LabelError, RuleError
from absorb_pl.evaluators.carried import gather_carried
from absorb_pl.evaluators.projections import gather_projections
from absorb_pl.evaluators.sae_probing import EvaluationRows, SaeProbing, SplitSettings, evaluate_sae
from absorb_pl.evaluators.training import train_linear_probe, train_sae_probe
from absorb_pl.probes.k_sparse import SaeProbe
from absorb_pl.probes.settings import KSparseSettings, LinearProbeSettings
from absorb_pl.ranges import InnerFraction, Seed, check_ranges
from absorb_pl.rules.evidence import Carried, Gradients, Projections
from absorb_pl.rules.judgement import Judgement, judge
from absorb_pl.rules.rates import RateSettings
from absorb_pl.rules.registry import RuleChoice, configured_rules, rules_without_model
from absorb_pl.rules.rule import AbsorptionRule
from absorb_pl.saes.adapters import AdaptedSae
from absorb_pl.saes.interface import SparseAutoencoder
from absorb_pl.saes.loading import load_sae
from absorb_pl.saes.properties import require_rows, require_width
from absorb_pl.saes.scale import to_unit_norms
from absorb_pl.schema import ordered_words, stacked
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
    chosen_on: EvaluationRows | None = None,
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
        chosen_on: Words by which main latents are chosen; the held-out words when None, as published.

    Raises:
        RuleError: A rule needs gradients and there is no way to get them.
    """
    found = evaluate_sae(sae, k_sparse, rows, splits, chosen_on)
    evidence: dict[Any, pd.DataFrame] = {}
    for rule in rules:
        if rule.needs in evidence:
            continue
        if not isinstance(rule.needs, Gradients):
            evidence[rule.needs] = gather_from_rows(sae, rows, found.letters, rule.needs)
        elif gather_gradients is None:
            raise _needs_model(rule)
        else:
            evidence[rule.needs] = gather_gradients(found, rule.needs)
    judged = [
        judge(rule, evidence[rule.needs], found.letters, found.latents, rates, rows.class_names) for rule in rules
    ]
    return found, judged


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


def evaluate_activations(
    sae: str | SparseAutoencoder,
    activations: Float[Tensor, "words d_model"],
    labels: Sequence[str],
    rules: RuleChoice = "saebench-0.6.0",
    *,
    words: Sequence[str] | None = None,
    test_fraction: InnerFraction = 0.2,
    seed: Seed = 42,
    linear_probe: LinearProbeSettings | None = None,
    k_sparse: KSparseSettings | None = None,
    splits: SplitSettings | None = None,
    rates: RateSettings | None = None,
    device: torch.device | str = "cpu",
) -> dict[str, pd.DataFrame]:
    """Measure splitting and absorption in one SAE on activations that you already have, without a language model.

    Trains a linear probe and k-sparse probes on a stratified share of the words and judges the SAE on the others, as a
    study does. Rules that need gradients (`paper` and its variants) need the model: use `run_study`.

    Args:
        sae: Name for `load_sae`, or an SAE.
        activations: Residual activations at the words, as the SAE reads them.
        labels: Class of each word, such as its first letter.
        rules: The rules to judge by, perhaps with settings.
        words: The words themselves, for the table of words.
        test_fraction: Share of each class's words held out for evaluation.
        seed: Seed of the split and of probe training.
        linear_probe: Training of the linear probe.
        k_sparse: Training of the k-sparse probes.
        splits: How main latents and candidate words are found.
        rates: How rates are summed up.
        device: Where to compute.

    Returns:
        The tables `summary`, `letters`, `words`, `sensitivity`, `latents`, `k_sparse` and `candidates` (see
        `absorb_pl.schema`).

    Raises:
        RuleError: A rule needs gradients, or is unknown.
        LabelError: There is not one label per row, fewer than two classes, or the split leaves no words on one side.
        NonFiniteError: An activation is NaN or infinite.
        SaeWidthError: The SAE reads activations of another width.

    Example:
        >>> class Identity:
        ...     W_dec = torch.eye(4)
        ...     def encode(self, x):
        ...         return x.relu()
        ...     def decode(self, latents):
        ...         return latents
        >>> x = torch.eye(4).repeat(20, 1)
        >>> x[::20, 0] = 0.0
        >>> tables = evaluate_activations(Identity(), x, list("abcd") * 20)
        >>> tables["summary"][["rule", "evaluable", "num_splits"]].to_dict("records")
        [{'rule': 'saebench-0.6.0', 'evaluable': True, 'num_splits': 0.0}]
    """
    check_ranges(evaluate_activations, locals())
    judges = configured_rules(rules)
    check_rules_without_model(judges)
    names = tuple(sorted(set(map(str, labels))))
    if len(labels) != len(activations) or len(names) < 2 or (words is not None and len(words) != len(labels)):
        raise LabelError(
            "labels",
            f"{len(labels)} labels of {len(names)} classes",
            expected=f"one label per row of activations ({len(activations)}) and per word, of two classes or more",
            remedy="Pass activations, labels and words of the same texts.",
        )
    named = isinstance(sae, str)
    module = load_sae(sae) if named else sae if isinstance(sae, nn.Module) else AdaptedSae(sae, "activations")
    unit: Any = to_unit_norms(module, in_place=named)
    scored: SparseAutoencoder = unit.to(device)
    require_rows(scored)
    require_width(scored, activations.shape[1])
    numbers = torch.tensor([names.index(str(label)) for label in labels])
    check_split(numbers, test_fraction, seed)
    train, test = stratified_split(numbers, (1 - test_fraction, test_fraction), seed)
    x, y = activations.detach().float().cpu(), one_hot(numbers, len(names))
    probe, _ = train_linear_probe(x[train], y[train], linear_probe or LinearProbeSettings(), names, seed, device)
    sparse, _ = train_sae_probe(scored, x[train], y[train], k_sparse or KSparseSettings(), names, seed, device)
    rows = EvaluationRows.of(x[test], y[test], test, probe.weights.detach(), probe.biases.detach(), names)
    found, judgements = evaluate_rules(scored, sparse, rows, judges, splits, rates)
    tables = sae_tables(sae if isinstance(sae, str) else "sae", found, judgements, found.statistics)
    if words is not None:
        for name in ("words", "candidates"):
            tables[name]["word"] = [words[row] for row in tables[name]["row"]]
    return {**tables, "words": ordered_words(tables["words"])}


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
