"""One SAE on activations that somebody already has: from activations and labels to rates, without a language model."""

from collections.abc import Collection, Sequence
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from absorb_pl.data.splits import check_split, stratified_split
from absorb_pl.errors import LabelError
from absorb_pl.evaluators.crossfit import crossfit as crossfit_rules
from absorb_pl.evaluators.evaluation import check_rules_without_model, evaluate_rules, sae_tables
from absorb_pl.evaluators.folds import CrossfitSettings, Folds
from absorb_pl.evaluators.sae_probing import EvaluationRows, SplitSettings
from absorb_pl.evaluators.shuffles import Copies, check_shuffles, shuffled_rates, shuffles_table
from absorb_pl.evaluators.training import train_linear_probe, train_sae_probes
from absorb_pl.probes.settings import KSparseSettings, LinearProbeSettings
from absorb_pl.ranges import InnerFraction, Seed, check_ranges
from absorb_pl.rules.rates import RateSettings
from absorb_pl.rules.registry import RuleChoice, configured_rules
from absorb_pl.saes.interface import SparseAutoencoder
from absorb_pl.saes.loading import unit_norm_sae
from absorb_pl.saes.properties import require_rows, require_width
from absorb_pl.schema import ordered_words


def evaluate_activations(
    sae: str | SparseAutoencoder,
    activations: Float[Tensor, "words d_model"],
    labels: Sequence[str] | Sequence[Collection[str]],
    rules: RuleChoice = "saebench-0.6.0",
    *,
    words: Sequence[str] | None = None,
    test_fraction: InnerFraction = 0.2,
    seed: Seed = 42,
    linear_probe: LinearProbeSettings | None = None,
    k_sparse: KSparseSettings | None = None,
    splits: SplitSettings | None = None,
    rates: RateSettings | None = None,
    shuffles: Copies = 0,
    crossfit: CrossfitSettings | None = None,
    device: torch.device | str = "cpu",
) -> dict[str, pd.DataFrame]:
    """Measure splitting and absorption in one SAE on activations that you already have, without a language model.

    Trains a linear probe and k-sparse probes on a stratified share of the words and judges the SAE on the others, as a
    study does. Rules that need gradients (`paper` and its variants) need the model: use `run_study`.

    Args:
        sae: Name for `load_sae`, or an SAE.
        activations: Residual activations at the words, as the SAE reads them.
        labels: Class of each word, such as its first letter; or its classes, if it may have several.
        rules: The rules to judge by, perhaps with settings.
        words: The words themselves, for the table of words.
        test_fraction: Share of each class's words held out for evaluation.
        seed: Seed of the split and of probe training.
        linear_probe: Training of the linear probe.
        k_sparse: Training of the k-sparse probes.
        splits: How main latents and candidate words are found.
        rates: How rates are summed up.
        shuffles: Copies of the SAE with shuffled decoder rows that its rates are held against; 0 for none.
        crossfit: Judges every word out of sample as well, several times over; left out when None.
        device: Where to compute.

    Returns:
        The tables `summary`, `letters`, `words`, `sensitivity`, `latents`, `k_sparse` and `candidates`, and
        `shuffles`, `crossfit`, `crossfit_letters` and `crossfit_words` if they are asked for (see `absorb_pl.schema`).

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
    check_shuffles(shuffles, judges)
    classes = [tuple(map(str, one if _is_several(one) else [one])) for one in labels]
    names = tuple(sorted({name for each in classes for name in each}))
    if len(labels) != len(activations) or len(names) < 2 or (words is not None and len(words) != len(labels)):
        raise LabelError(
            "labels",
            f"{len(labels)} labels of {len(names)} classes",
            expected=f"one label or list of labels per row of activations ({len(activations)}) and per word, of two "
            "classes or more",
            remedy="Pass activations, labels and words of the same texts.",
        )
    if () in classes:
        raise LabelError(
            "labels",
            f"no label for row {classes.index(())}",
            expected="at least one label per row",
            remedy="Leave such rows out, or give them a class of their own.",
        )
    scored: SparseAutoencoder = unit_norm_sae(sae, hook_name="activations").to(device)
    require_rows(scored)
    require_width(scored, activations.shape[1])
    y = torch.tensor([[name in each for name in names] for each in classes])
    first = y.int().argmax(dim=1)
    check_split(first, test_fraction, seed)
    train, test = stratified_split(first, (1 - test_fraction, test_fraction), seed)
    x = activations.detach().float().cpu()
    probe, _ = train_linear_probe(x[train], y[train].long(), linear_probe or LinearProbeSettings(), names, seed, device)
    settings = k_sparse or KSparseSettings()
    [(sparse, _)] = train_sae_probes([scored], x[train], y[train].long(), settings, names, seed, device)
    rows = EvaluationRows.of(x[test], y[test], test, probe.weights.detach(), probe.biases.detach(), names)
    found, judgements = evaluate_rules(scored, sparse, rows, judges, splits, rates, training=(x[train], y[train]))
    name_of_sae = sae if isinstance(sae, str) else "sae"
    tables = sae_tables(name_of_sae, found, judgements, found.statistics)
    if words is not None:
        for name in ("words", "candidates"):
            tables[name]["word"] = [words[row] for row in tables[name]["row"]]
    tables["words"] = ordered_words(tables["words"])
    if shuffles:
        copies = shuffled_rates(scored, rows, found.letters, judges, shuffles, rates)
        figures = [judgement.figures for judgement in judgements]
        tables["shuffles"] = shuffles_table(copies, figures, (rates or RateSettings()).confidence)
        tables["shuffles"].insert(0, "sae", name_of_sae)
    if crossfit is not None:
        folds = Folds(x, y, names, crossfit, seed)
        found_by_folds = crossfit_rules(
            scored,
            folds,
            judges,
            probe_of_fold=folds.probe_of_fold(linear_probe, device),
            k_sparse=k_sparse,
            splits=splits,
            rates=rates,
            device=device,
        )
        for name, table in found_by_folds.items():
            table.insert(0, "sae", name_of_sae)
            tables[name] = table
    return tables


def _is_several(label: Any) -> bool:
    return isinstance(label, Collection) and not isinstance(label, str)
