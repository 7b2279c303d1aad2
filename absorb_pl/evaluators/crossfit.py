"""Cross-fitting: every word is judged with probes, rankings and main latents that were found without it.

With K folds a word is held out once, and what judges it comes from the other folds. Repeats draw folds and seeds
anew, so that the interval holds what the choice of words and seeds adds (`functional.rates.repeated_rate`).
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any

import pandas as pd
import torch

from absorb_pl.errors import AbsorbError, RuleError
from absorb_pl.evaluators.evaluation import check_rules_without_model, gather_from_rows
from absorb_pl.evaluators.fold_mains import FoldMains, fold_mains
from absorb_pl.evaluators.folds import CrossfitSettings, Folds, ProbeOfFold
from absorb_pl.evaluators.sae_probing import EvaluationRows, SplitSettings
from absorb_pl.functional.absorption import written_cosines
from absorb_pl.functional.precision import at_least_float32
from absorb_pl.functional.rates import Rate, letter_rate, repeated_rate, sae_rate
from absorb_pl.functional.similarity import unit_rows
from absorb_pl.probes.latents import encode_latents
from absorb_pl.probes.settings import KSparseSettings
from absorb_pl.rules.evidence import Evidence, Gradients, stored_scores
from absorb_pl.rules.rates import RateSettings, outcomes_of
from absorb_pl.rules.rule import AbsorptionRule
from absorb_pl.saes.interface import SparseAutoencoder
from absorb_pl.saes.scale import to_unit_norms
from absorb_pl.schema import CROSSFIT, CROSSFIT_LETTERS, CROSSFIT_WORDS, GRADIENTS, Columns, empty_table

ScoreWords = Callable[[pd.DataFrame, Gradients], pd.DataFrame]
"""Gives the scores (`absorb_pl.schema.SCORES`) of words, `row, label`, each named once; more than these do no harm."""


def crossfit(
    sae: SparseAutoencoder,
    folds: Folds,
    rules: Sequence[AbsorptionRule],
    *,
    probe_of_fold: ProbeOfFold | None = None,
    k_sparse: KSparseSettings | None = None,
    splits: SplitSettings | None = None,
    rates: RateSettings | None = None,
    score_words: ScoreWords | None = None,
    device: torch.device | str = "cpu",
) -> dict[str, pd.DataFrame]:
    """Judge every word of one SAE out of sample, once per repeat.

    Args:
        sae: The SAE.
        folds: The labelled rows and how they are held out.
        rules: The rules.
        probe_of_fold: Gives the linear probes; trained here when None.
        k_sparse: Training of the k-sparse probes.
        splits: How main latents and candidate words are found.
        rates: How rates are summed up.
        score_words: Gives integrated gradients at words; without it, rules that need them are refused.
        device: Where to compute.

    Returns:
        The tables `crossfit`, `crossfit_letters` and `crossfit_words` (see `absorb_pl.schema`), without the SAE's name.

    Raises:
        RuleError: A rule needs gradients and there is no way to get them, reads the scores of main latents, or asks for
            candidate words that `splits` leaves out.
        AbsorbError: A candidate word has no scores.

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
    if score_words is None:
        check_rules_without_model(rules)
    splits = splits or SplitSettings()
    check_rules_of_folds(rules)
    for rule in rules:
        rule.check_stored(splits.silent)
    sae = to_unit_norms(sae)
    probe_of_fold = probe_of_fold or folds.probe_of_fold(device=device)
    mains = fold_mains(sae, folds, probe_of_fold, k_sparse or KSparseSettings(), splits, device)
    scores = {}
    for needs in dict.fromkeys(rule.needs for rule in rules):
        if isinstance(needs, Gradients) and score_words is not None:
            scores[needs] = score_words(mains.to_score, needs)
    return judge_folds(sae, folds, mains, rules, probe_of_fold, scores, rates or RateSettings())


def check_rules_of_folds(rules: Sequence[AbsorptionRule]) -> None:
    """Refuse rules that cannot judge words of folds.

    Args:
        rules: The rules.

    Raises:
        RuleError: A rule reads the scores of main latents, which differ by fold where only the best latents' are kept.
    """
    for rule in rules:
        if "main_scores" in rule.reads:
            raise RuleError(
                "crossfit",
                rule.name,
                expected="rules that do without `main_scores`: of a word's latents the best ones' scores are kept, and "
                "main latents differ by fold",
                remedy="Leave the rule or `crossfit` out.",
            )


def judge_folds(
    sae: SparseAutoencoder,
    folds: Folds,
    mains: FoldMains,
    rules: Sequence[AbsorptionRule],
    probe_of_fold: ProbeOfFold,
    scores: Mapping[Gradients, pd.DataFrame],
    rates: RateSettings,
) -> dict[str, pd.DataFrame]:
    """Judge the words that each fold holds out, by the main latents that were found without them.

    Args:
        sae: The SAE, in the scale of unit-norm decoder rows.
        folds: The labelled rows and how they are held out.
        mains: What `fold_mains` found.
        rules: The rules.
        probe_of_fold: Gives the linear probes.
        scores: Integrated gradients at the candidate words of all folds, by how rules want them.
        rates: How rates are summed up.

    Returns:
        The tables of `crossfit`.

    Raises:
        AbsorbError: A candidate word has no scores.
    """
    words: dict[str, list[pd.DataFrame]] = {rule.name: [] for rule in rules}
    letters: list[pd.DataFrame] = []
    for repeat in range(folds.settings.repeats):
        for fold, (_, rows) in enumerate(folds.judged(repeat, probe_of_fold)):
            of_fold = mains.of_fold(repeat, fold)
            evidence: dict[Evidence, pd.DataFrame] = {}
            for rule in rules:
                needs = rule.needs
                if needs not in evidence:
                    evidence[needs] = (
                        _gradients(sae, rows, of_fold, scores[needs])
                        if isinstance(needs, Gradients)
                        else gather_from_rows(sae, rows, of_fold.letters, needs)
                    )
                words[rule.name].append(rule.judge(evidence[needs]).assign(repeat=repeat, fold=fold))
                letters.append(rule.count_candidates(of_fold.letters).assign(rule=rule.name))
    verdicts = {name: pd.concat(judged, ignore_index=True) for name, judged in words.items()}
    by_repeat = _of_repeats(pd.concat(letters, ignore_index=True))
    table = [_rates(rule, verdicts[rule.name], by_repeat, folds.settings, rates) for rule in rules]
    return {
        "crossfit": _without_name(pd.concat(table, ignore_index=True), CROSSFIT),
        "crossfit_letters": _without_name(by_repeat, CROSSFIT_LETTERS),
        "crossfit_words": _without_name(pd.concat(verdicts.values(), ignore_index=True), CROSSFIT_WORDS),
    }


@torch.no_grad()
def _gradients(sae: SparseAutoencoder, rows: EvaluationRows, of_fold: FoldMains, scores: pd.DataFrame) -> pd.DataFrame:
    """What the paper's rules are decided on at a fold's candidate words: their scores beside its probe and mains."""
    words = of_fold.candidates[["row", "label"]].merge(scores, on=["row", "label"], validate="one_to_one")
    if len(words) < len(of_fold.candidates):
        raise AbsorbError(
            "scores",
            f"{len(words)} words",
            expected=f"scores of all {len(of_fold.candidates)} candidate words of a fold",
            remedy="Score every word of `FoldMains.to_score`.",
        )
    if words.empty:
        return empty_table(GRADIENTS)
    stored = stored_scores(words, ["latents", "scores", "activations"])
    classes = [rows.class_names.index(label) for label in words["label"]]
    places = torch.searchsorted(rows.index, torch.tensor(words["row"].to_numpy(int)))
    latents, activations = stored["latents"].long(), stored["activations"]
    decoder = unit_rows(at_least_float32(sae.W_dec.detach()[latents.flatten().to(sae.W_dec.device)]).cpu())
    probes = unit_rows(rows.probe_weight.float())[classes]
    cosines = (decoder.unflatten(0, latents.shape) * probes[:, None]).sum(dim=2)
    main_latents = of_fold.letters.set_index("label")["main_latents"].to_dict()
    chosen = [main_latents[label] for label in words["label"]]
    ids = sorted(set(chain.from_iterable(chosen)))
    fired = encode_latents(sae, rows.x[places], torch.tensor(ids, dtype=torch.long))
    of_words = [fired[number, [ids.index(latent) for latent in own]] for number, own in enumerate(chosen)]
    return words.assign(
        top_latent=latents[:, 0].numpy(),
        top_score=stored["scores"][:, 0].numpy(),
        top_probe_cos=written_cosines(activations[:, 0], cosines[:, 0]).numpy(),
        second_latent=latents[:, 1].numpy(),
        second_score=stored["scores"][:, 1].numpy(),
        main_activation=[float(own.sum()) for own in of_words],
        main_max=[float(own.abs().max()) for own in of_words],
        main_latents=chosen,
        probe_cos=cosines.tolist(),
    )


def _of_repeats(letters: pd.DataFrame) -> pd.DataFrame:
    """The folds of each repeat as one row per rule and class: counts added up, F1 of probes averaged."""
    grouped = letters.groupby(["rule", "repeat", "label"], sort=False)
    table = grouped[["num_words", "num_probe_true_positives", "num_candidates"]].sum()
    return table.assign(
        main_latents=grouped["main_latents"].agg(_most_common_first),
        sample_portion=grouped["sample_portion"].first(),
        probe_f1=grouped["probe_f1"].mean(),
        sae_fires=grouped["sae_fires"].any(),
    ).reset_index()


def _most_common_first(main_latents: pd.Series) -> list[int]:
    return [latent for latent, _ in Counter(chain.from_iterable(main_latents)).most_common()]


def _without_name(table: pd.DataFrame, columns: Columns) -> pd.DataFrame:
    """A table with the columns that it will have, but for the SAE's name."""
    return table.reindex(columns=[name for name in columns if name != "sae"])


def _rates(
    rule: AbsorptionRule,
    words: pd.DataFrame,
    letters: pd.DataFrame,
    folds: CrossfitSettings,
    rates: RateSettings,
) -> pd.DataFrame:
    """Rates of an SAE and of each class by one rule: means over repeats, with their intervals."""
    letters = letters[letters["rule"] == rule.name]
    mode, confidence = rule.letters or rates.letters, rates.confidence
    amounts = [name for name in ("is_absorption", "absorption_fraction") if name in words]
    found: dict[str, dict[str, list[Rate]]] = {amount: {} for amount in (*amounts, "pooled")}
    for repeat in range(folds.repeats):
        of_repeat = letters[letters["repeat"] == repeat]
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
    return pd.DataFrame(rows)
