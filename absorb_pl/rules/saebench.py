"""The rules of SAEBench, by projection on the probe (see `absorb_pl.functional.saebench`)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Bool
from torch import Tensor
from typing_extensions import override

from absorb_pl.errors import RuleError
from absorb_pl.functional.absorption import SILENT
from absorb_pl.functional.conditions import all_met
from absorb_pl.functional.saebench import fraction_by_absorbers, fraction_by_all, full_absorption_conditions
from absorb_pl.ranges import Cosine, Count, Fraction, Positive, check_ranges
from absorb_pl.rules.evidence import Projections
from absorb_pl.rules.registry import register_rule
from absorb_pl.rules.rule import AbsorptionRule, Decisions

_FULL = ("top_score", "top_probe_cos", "probe_projection", "main_max")
_COSINES = (0.0, 0.025, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5)
_PROPORTIONS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)


@dataclass(frozen=True)
class SaeBenchSettings:
    """Settings of the rules `saebench-0.6.0` and `saebench-0.3.2`; the defaults are the published ones.

    Attributes:
        full_cos_threshold: Least cosine of a sole absorber's decoder row with the probe.
        fraction_cos_threshold: Least cosine of an absorber in the fraction (0.6.0).
        proportion_threshold: Least share of the activation's projection that absorbers must hold.
        max_absorbers: Most absorbers that count in the fraction (0.6.0).
        silent: Size of activation below which a main latent counts as silent.
        stored_absorbers: How many absorbers per word can be asked for later without scoring the word again.
        min_letters: Fewest letters with a good probe for which SAEBench gives a result.
    """

    full_cos_threshold: Cosine = 0.025
    fraction_cos_threshold: Cosine = 0.1
    proportion_threshold: Fraction = 0.4
    max_absorbers: Count = 3
    silent: Positive = SILENT
    stored_absorbers: Count = 5
    min_letters: Count = 20

    def __post_init__(self) -> None:
        check_ranges(SaeBenchSettings, vars(self))
        if self.max_absorbers > self.stored_absorbers:
            raise RuleError(
                "max_absorbers",
                self.max_absorbers,
                expected=f"at most {self.stored_absorbers}, the absorbers that are stored per word",
                remedy="Run the study again with a larger `stored_absorbers` of the rule.",
            )


class SaeBenchRule(AbsorptionRule):
    """What the rules of SAEBench share: full absorption, in which one latent took over all of the feature."""

    settings_type = SaeBenchSettings
    settings: SaeBenchSettings
    evidence = Projections
    thresholds: ClassVar[Mapping[str, tuple[float | int, ...]]] = {
        "full_cos_threshold": _COSINES,
        "proportion_threshold": _PROPORTIONS,
        "silent": (),
    }

    sentences: ClassVar[Mapping[str, str]] = {
        "counted": "The main latents are silent, and latent {top_latent} projects {top_score} on the probe, the "
        "whole activation {probe_projection}; cosine {top_probe_cos}.",
        "silent": "A main latent fires: {main_max}.",
        "aligned": "The latent that projects most, {top_latent}, hardly points the probe's way: cosine "
        "{top_probe_cos}, must be at least {settings.full_cos_threshold}.",
        "present": "The activation projects {probe_projection} on the probe, not more than 0.",
        "share": "No latent holds enough: latent {top_latent} projects {top_score} of {probe_projection}, must be a "
        "share of at least {settings.proportion_threshold}.",
    }

    def full(self, stored: Mapping[str, Tensor]) -> Bool[Tensor, " words"]:
        """On which words one latent took over all of the feature."""
        return all_met(self.conditions(stored))

    @override
    def conditions(self, stored: Mapping[str, Tensor]) -> Mapping[str, Bool[Tensor, " words"]]:
        return full_absorption_conditions(
            *(stored[name] for name in _FULL),
            cos_threshold=self.settings.full_cos_threshold,
            proportion_threshold=self.settings.proportion_threshold,
            silent=self.settings.silent,
        )


@register_rule
class SaeBench032Rule(SaeBenchRule):
    """SAEBench 0.3.2: the fraction counts all latents."""

    name = "saebench-0.3.2"
    reads = (*_FULL, "main_projection", "all_projection")

    @override
    def decide(self, stored: Mapping[str, Tensor]) -> Decisions:
        fraction = fraction_by_all(stored["all_projection"], stored["probe_projection"], stored["main_projection"])
        return Decisions(self.full(stored), fraction)


@register_rule
class SaeBench060Rule(SaeBenchRule):
    """SAEBench 0.6.0: the fraction counts the few latents that project most on the probe."""

    name = "saebench-0.6.0"
    reads = (*_FULL, "main_projection", "absorber_projections", "absorber_probe_cos")
    thresholds: ClassVar[Mapping[str, tuple[float | int, ...]]] = {
        **SaeBenchRule.thresholds,
        "fraction_cos_threshold": _COSINES,
        "max_absorbers": (1, 2, 3, 4, 5),
    }

    @override
    def decide(self, stored: Mapping[str, Tensor]) -> Decisions:
        fraction = fraction_by_absorbers(
            stored["absorber_projections"],
            stored["absorber_probe_cos"],
            stored["probe_projection"],
            stored["main_projection"],
            cos_threshold=self.settings.fraction_cos_threshold,
            proportion_threshold=self.settings.proportion_threshold,
            max_absorbers=self.settings.max_absorbers,
        )
        return Decisions(self.full(stored), fraction)
