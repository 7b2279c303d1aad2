"""Cross-fitting: every word is judged with probes, rankings and main latents that were found without it.

With K folds a word is held out once, and what judges it comes from the other folds. Repeats draw folds and seeds
anew, so that the interval holds what the choice of words and seeds adds (`functional.rates.repeated_rate`).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor

from absorb_pl.evaluators.evaluation import check_rules_without_model, gather_from_rows
from absorb_pl.evaluators.folds import CrossfitSettings, Folds, ProbeOfFold
from absorb_pl.evaluators.sae_probing import EvaluationRows, SplitSettings, aligned_mains
from absorb_pl.evaluators.training import train_fold_ranking
from absorb_pl.functional.k_sparse import rank_latents, tracking_ranks
from absorb_pl.functional.metrics import f1_scores
from absorb_pl.functional.rates import Rate, letter_rate, repeated_rate, sae_rate
from absorb_pl.functional.splits import walked_main_latents
from absorb_pl.probes.fold_ranking import FoldRanking
from absorb_pl.probes.k_sparse import TRACKED_RANKS
from absorb_pl.probes.latents import encode_latents
from absorb_pl.probes.settings import KSparseSettings
from absorb_pl.rules.evidence import Gradients
from absorb_pl.rules.rates import RateSettings, outcomes_of
from absorb_pl.rules.rule import AbsorptionRule
from absorb_pl.saes.interface import SparseAutoencoder
from absorb_pl.saes.portions import rows_at_once
from absorb_pl.saes.rows import encode_rows
from absorb_pl.saes.scale import to_unit_norms
from absorb_pl.schema import CROSSFIT, CROSSFIT_WORDS


def crossfit(
    sae: SparseAutoencoder,
    folds: Folds,
    rules: Sequence[AbsorptionRule],
    *,
    probe_of_fold: ProbeOfFold | None = None,
    k_sparse: KSparseSettings | None = None,
    splits: SplitSettings | None = None,
    rates: RateSettings | None = None,
    device: torch.device | str = "cpu",
) -> dict[str, pd.DataFrame]:
    """Judge every word of one SAE out of sample, once per repeat.

    Args:
        sae: The SAE.
        folds: The labelled rows and how they are held out.
        rules: Rules for which activations are enough.
        probe_of_fold: Gives the linear probes; trained here when None.
        k_sparse: Training of the k-sparse probes.
        splits: How main latents and candidate words are found.
        rates: How rates are summed up.
        device: Where to compute.

    Returns:
        The tables `crossfit` and `crossfit_words` (see `absorb_pl.schema`), without the SAE's name.

    Raises:
        RuleError: A rule needs gradients.

    Example:
        >>> from absorb_pl.rules import configured_rules
        >>> from absorb_pl.truth import PlantedAbsorption, WorldSettings, make_world, planted_sae
        >>> world = make_world(WorldSettings(classes=3, words_per_class=20, unrelated=0, unrelated_active=0))
        >>> _, made = planted_sae(world, PlantedAbsorption(rate=0.25))
        >>> y = torch.nn.functional.one_hot(world.classes).bool()
        >>> folds = Folds(world.activations, y, world.class_names, CrossfitSettings(2, 2), seed=0)
        >>> found = crossfit(made.sae, folds, configured_rules("absorb-pl-1"))
        >>> len(found["crossfit_words"]), float(found["crossfit"]["absorption_rate"].iloc[0])
        (120, 0.25)
    """
    check_rules_without_model(rules)
    sae, rates, splits = to_unit_norms(sae), rates or RateSettings(), splits or SplitSettings()
    probe_of_fold = probe_of_fold or folds.probe_of_fold(device=device)
    words: list[pd.DataFrame] = []
    letters: list[pd.DataFrame] = []
    firing = _firing(sae, folds.x)
    for repeat in range(folds.settings.repeats):
        ranking = train_fold_ranking(
            sae,
            folds.x,
            folds.y.long(),
            folds.held_out(repeat),
            k_sparse or KSparseSettings(),
            folds.seed + repeat,
            device,
            firing,
        )
        for fold, (train, test) in enumerate(folds.of_repeat(repeat)):
            chosen = _chosen_latents(sae, ranking, fold, folds.x[train], folds.y[train], splits)
            weight, bias = probe_of_fold(repeat, fold, train)
            rows = EvaluationRows.of(folds.x[test], folds.y[test], test, weight, bias, folds.class_names)
            of_fold = _letters(sae, rows, chosen, splits)
            about = {"repeat": repeat, "fold": fold}
            evidence: dict[Any, pd.DataFrame] = {}
            for rule in rules:
                if not isinstance(rule.needs, Gradients) and rule.needs not in evidence:
                    evidence[rule.needs] = gather_from_rows(sae, rows, of_fold, rule.needs)
                words.append(rule.judge(evidence[rule.needs]).assign(**about))
                letters.append(rule.count_candidates(of_fold).assign(rule=rule.name, **about))
    verdicts, by_fold = pd.concat(words, ignore_index=True), pd.concat(letters, ignore_index=True)
    by_fold["sae_fires"] = len(firing) > 0
    table = pd.concat([_rates(rule, verdicts, by_fold, folds.settings, rates) for rule in rules], ignore_index=True)
    kept = verdicts.reindex(columns=[name for name in CROSSFIT_WORDS if name != "sae"])
    return {"crossfit": table, "crossfit_words": kept}


class _Chosen(NamedTuple):
    """What was chosen for a class without the words that are held out."""

    main_latents: list[int]
    tracking_latent: int


@torch.no_grad()
def _chosen_latents(
    sae: SparseAutoencoder, ranking: FoldRanking, fold: int, x: Tensor, y: Tensor, splits: SplitSettings
) -> dict[int, _Chosen]:
    """Main latents and tracking latents of the classes, by number, from the words that a fold does not hold out."""
    classes = ranking.learnable[fold].nonzero().squeeze(1).cpu()
    count = min(max(splits.max_k, TRACKED_RANKS), len(sae.W_dec))
    ids = rank_latents(ranking.weight[fold][classes].cpu(), count)
    activations = encode_latents(sae, x, ids.flatten()).unflatten(1, ids.shape).transpose(0, 1)
    targets = y[:, classes].bool()
    mains = walked_main_latents(activations, targets, ids, splits.f1_jump, splits.max_k)
    ranks, _ = tracking_ranks(activations[:, :, :TRACKED_RANKS], targets)
    tracking = ids.gather(1, ranks[:, None]).squeeze(1).tolist()
    return {c: _Chosen(own, latent) for c, own, latent in zip(classes.tolist(), mains, tracking, strict=True)}


def _letters(
    sae: SparseAutoencoder, rows: EvaluationRows, chosen: dict[int, _Chosen], splits: SplitSettings
) -> pd.DataFrame:
    """The held-out words of each class, counted, with what was chosen for the class."""
    f1, labels = f1_scores(rows.probe_logits, rows.y), rows.class_names
    present = [c for c in chosen if bool(rows.y[:, c].any())]
    mains = aligned_mains(sae, rows, {labels[c]: chosen[c].main_latents for c in present}, splits)
    return pd.DataFrame(
        [
            {
                "label": labels[c],
                "main_latents": mains[labels[c]],
                "tracking_latent": chosen[c].tracking_latent,
                "num_words": int(rows.y[:, c].sum()),
                "num_probe_true_positives": int((rows.probe_logits[rows.y[:, c], c] > 0).sum()),
                "probe_f1": float(f1[c]),
            }
            for c in present
        ]
    )


def _firing(sae: SparseAutoencoder, x: Tensor) -> Tensor:
    """Latents that fire on some word."""
    parts = [(encode_rows(sae, part) != 0).any(dim=0) for part in x.split(rows_at_once(len(sae.W_dec)))]
    return torch.stack(parts).any(dim=0).nonzero().squeeze(1).cpu()


def _rates(
    rule: AbsorptionRule,
    words: pd.DataFrame,
    letters: pd.DataFrame,
    folds: CrossfitSettings,
    rates: RateSettings,
) -> pd.DataFrame:
    """Rates of an SAE and of each class by one rule: means over repeats, with their intervals."""
    words, letters = words[words["rule"] == rule.name], letters[letters["rule"] == rule.name]
    mode, confidence = rule.letters or rates.letters, rates.confidence
    has_fraction = "absorption_fraction" in words and bool(words["absorption_fraction"].notna().all())
    amounts = ["is_absorption", "absorption_fraction"] if has_fraction else ["is_absorption"]
    found: dict[str, dict[str, list[Rate]]] = {amount: {} for amount in (*amounts, "pooled")}
    for repeat in range(folds.repeats):
        of_repeat = _joined(letters[letters["repeat"] == repeat])
        judged = words[words["repeat"] == repeat]
        for amount in amounts:
            outcomes = outcomes_of(of_repeat, judged, amount, rates)
            found[amount].setdefault("", []).append(sae_rate(outcomes, mode=mode, confidence=confidence))
            for label, outcome in zip(of_repeat["label"], outcomes, strict=True):
                found[amount].setdefault(str(label), []).append(letter_rate(outcome, confidence=confidence))
            if amount == "is_absorption":
                pooled = sae_rate(outcomes, mode=mode, confidence=confidence, pooled=True)
                found["pooled"].setdefault("", []).append(pooled)
    rows = []
    for label, repeats in found["is_absorption"].items():
        rate = repeated_rate(repeats, confidence=confidence)
        row: dict[str, Any] = {
            "rule": rule.name,
            "label": label,
            "folds": folds.folds,
            "repeats": folds.repeats,
            "num_words": rate.num_words,
            "absorption_rate": rate.value,
            **{name: getattr(rate, name) for name in ("ci_low", "ci_high", "evaluable", "reason")},
            **{f"se_{name}": getattr(rate, f"se_{name}") for name in ("words", "absorbers", "sampling", "selection")},
        }
        for amount, names in (
            ("absorption_fraction", ("absorption_fraction", "fraction_ci_low", "fraction_ci_high")),
            ("pooled", ("pooled_rate", "pooled_ci_low", "pooled_ci_high")),
        ):
            if label in found.get(amount, {}):
                other = repeated_rate(found[amount][label], confidence=confidence)
                row |= dict(zip(names, (other.value, other.ci_low, other.ci_high), strict=True))
        rows.append(row)
    return pd.DataFrame(rows).reindex(columns=[name for name in CROSSFIT if name != "sae"])


def _joined(letters: pd.DataFrame) -> pd.DataFrame:
    """The folds of one repeat as one table of letters: counts added up, F1 of probes averaged."""
    grouped = letters.groupby("label", sort=False)
    table = grouped[["num_words", "num_probe_true_positives"]].sum()
    return table.assign(
        sample_portion=1.0, probe_f1=grouped["probe_f1"].mean(), sae_fires=grouped["sae_fires"].any()
    ).reset_index()
