"""Cross-fitting: every word is judged with probes, rankings and main latents that were found without it.

With K folds a word is held out once, and what judges it comes from the other folds. Repeats draw folds and seeds
anew, so that the interval holds what the choice of words and seeds adds (`functional.rates.repeated_rate`).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import one_hot

from absorb_pl.data.splits import stratified_split
from absorb_pl.errors import LabelError
from absorb_pl.evaluators.evaluation import evaluate_rules
from absorb_pl.evaluators.sae_probing import EvaluationRows, SplitSettings
from absorb_pl.evaluators.training import train_linear_probe, train_sae_probe
from absorb_pl.functional.rates import Rate, letter_rate, repeated_rate, sae_rate
from absorb_pl.probes.settings import KSparseSettings, LinearProbeSettings
from absorb_pl.ranges import Count, Range, check_ranges
from absorb_pl.rules.rates import RateSettings, outcomes_of
from absorb_pl.rules.rule import AbsorptionRule
from absorb_pl.saes.interface import SparseAutoencoder
from absorb_pl.schema import CROSSFIT, CROSSFIT_WORDS

ProbeOfFold = Callable[[int, int, Tensor], tuple[Tensor, Tensor]]
"""Gives weight and bias of the linear probe for a repeat, a fold, and the rows to train on."""
_COUNTS = ("num_words", "num_probe_true_positives", "num_candidates")


@dataclass(frozen=True)
class CrossfitSettings:
    """How words are held out in turn.

    Attributes:
        folds: Parts of the words; each is held out once per repeat.
        repeats: How many times folds and seeds are drawn anew. An interval needs two or more to hold what that adds.
    """

    folds: Annotated[int, Range(2, 100)] = 5
    repeats: Count = 3

    def __post_init__(self) -> None:
        check_ranges(CrossfitSettings, vars(self))


@dataclass(frozen=True)
class Folds:
    """Labelled rows and how they are held out in turn.

    Attributes:
        x: Activations, one row per word.
        classes: Class of each word, by number.
        class_names: Names of the classes.
        settings: How words are held out.
        seed: Seed of the first repeat's folds and training; the others count up from it.

    Raises:
        LabelError: There are folds without words.
    """

    x: Float[Tensor, "words d_model"]
    classes: Int[Tensor, " words"]
    class_names: tuple[str, ...]
    settings: CrossfitSettings
    seed: int

    def __post_init__(self) -> None:
        largest = int(torch.bincount(self.classes).max()) if len(self.classes) else 0
        if largest < self.settings.folds:
            raise LabelError(
                "folds",
                self.settings.folds,
                expected=f"no more folds than words of the largest class, which has {largest}",
                remedy="Take fewer folds, or more words.",
            )

    def __iter__(self) -> Iterator[tuple[int, int, Tensor, Tensor]]:
        """Repeat, fold, rows to train on, rows to judge."""
        shares = (1 / self.settings.folds,) * self.settings.folds
        for repeat in range(self.settings.repeats):
            parts = stratified_split(self.classes, shares, self.seed + repeat)
            for fold, held_out in enumerate(parts):
                rest = torch.cat([part for number, part in enumerate(parts) if number != fold]).sort().values
                yield repeat, fold, rest, held_out

    def probe_of_fold(
        self, settings: LinearProbeSettings | None = None, device: torch.device | str = "cpu"
    ) -> ProbeOfFold:
        """Trains linear probes, each once, so that several SAEs of a hook can share them.

        Args:
            settings: How to train.
            device: Where to train.
        """
        trained: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

        def probe(repeat: int, fold: int, rows: Tensor) -> tuple[Tensor, Tensor]:
            if (repeat, fold) not in trained:
                y = one_hot(self.classes[rows], len(self.class_names))
                found, _ = train_linear_probe(
                    self.x[rows], y, settings or LinearProbeSettings(), self.class_names, self.seed + repeat, device
                )
                trained[repeat, fold] = found.weights.detach().cpu(), found.biases.detach().cpu()
            return trained[repeat, fold]

        return probe


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
        >>> folds = Folds(world.activations, world.classes, world.class_names, CrossfitSettings(2, 2), seed=0)
        >>> found = crossfit(made.sae, folds, configured_rules("absorb-pl-1"))
        >>> len(found["crossfit_words"]), float(found["crossfit"]["absorption_rate"].iloc[0])
        (120, 0.25)
    """
    rates, probe_of_fold = rates or RateSettings(), probe_of_fold or folds.probe_of_fold(device=device)
    y = one_hot(folds.classes, len(folds.class_names))
    words: list[pd.DataFrame] = []
    letters: list[pd.DataFrame] = []
    for repeat, fold, train, test in folds:
        weight, bias = probe_of_fold(repeat, fold, train)
        sparse, _ = train_sae_probe(
            sae,
            folds.x[train],
            y[train],
            k_sparse or KSparseSettings(),
            folds.class_names,
            folds.seed + repeat,
            device,
        )
        judged, chosen_on = (
            EvaluationRows.of(folds.x[rows], y[rows], rows, weight, bias, folds.class_names) for rows in (test, train)
        )
        _, judgements = evaluate_rules(sae, sparse, judged, rules, splits, rates, chosen_on=chosen_on)
        about = {"repeat": repeat, "fold": fold}
        words += [judgement.words.assign(**about) for judgement in judgements]
        letters += [judgement.letters.assign(**about) for judgement in judgements]
    verdicts, by_fold = pd.concat(words, ignore_index=True), pd.concat(letters, ignore_index=True)
    table = pd.concat([_rates(rule, verdicts, by_fold, folds.settings, rates) for rule in rules], ignore_index=True)
    kept = verdicts.reindex(columns=[name for name in CROSSFIT_WORDS if name != "sae"])
    return {"crossfit": table, "crossfit_words": kept}


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
    """The folds of one repeat as one table of letters: counts added up, what probes say averaged."""
    letters = letters[letters["probe_f1"].notna()]
    grouped = letters.groupby("label", sort=False)
    table = grouped[list(_COUNTS)].sum()
    judged = grouped["num_judged"].sum()
    table["sample_portion"] = (judged / table["num_candidates"]).where(table["num_candidates"] > 0, 1.0).clip(upper=1.0)
    table["probe_f1"] = grouped["probe_f1"].mean()
    table["sae_fires"] = grouped["sae_fires"].any()
    return table.reset_index()
