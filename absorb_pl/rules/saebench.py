"""What the rules of SAEBench have in common: their settings, and full absorption."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Bool
from torch import Tensor
from typing_extensions import override

from absorb_pl.errors import RuleError
from absorb_pl.functional import full_absorption
from absorb_pl.ranges import Cosine, Count, Fraction, Positive, check_ranges
from absorb_pl.rules.base import AbsorptionRule, Threshold

FULL_READS = ("top_score", "top_probe_cos", "probe_projection", "main_max")


@dataclass(frozen=True)
class SaeBenchRule:
    """Settings of the rules `saebench-0.6.0` and `saebench-0.3.2`; the defaults are the published ones.

    Attributes:
        full_cos_threshold: Least cosine of a sole absorber's decoder row with the probe.
        fraction_cos_threshold: Least cosine of an absorber in the fraction (0.6.0).
        proportion_threshold: Least share of the activation's projection that absorbers must hold.
        max_absorbers: Most absorbers that count in the fraction (0.6.0).
        silent: Size of activation below which a main latent counts as silent.
        stored_absorbers: How many absorbers of a word can be asked for later without scoring it again.
        min_letters: Fewest letters with a good probe for which SAEBench gives a result.
    """

    full_cos_threshold: Cosine = 0.025
    fraction_cos_threshold: Cosine = 0.1
    proportion_threshold: Fraction = 0.4
    max_absorbers: Count = 3
    silent: Positive = 1e-8
    stored_absorbers: Count = 5
    min_letters: Count = 20

    def __post_init__(self) -> None:
        check_ranges(SaeBenchRule, vars(self))
        if self.max_absorbers > self.stored_absorbers:
            raise RuleError(
                "max_absorbers",
                self.max_absorbers,
                expected=f"at most {self.stored_absorbers}, the absorbers that are stored of a word",
                remedy="Run the study again with a larger `saebench.stored_absorbers`.",
            )


class SaeBench(AbsorptionRule):
    """Base of SAEBench's rules: by projection on the probe (see `functional.saebench_verdicts`)."""

    section = "saebench"
    settings_type = SaeBenchRule
    settings: SaeBenchRule
    evidence = "projections"
    thresholds: ClassVar[Mapping[str, Threshold]] = {
        "full_cos_threshold": Threshold((0.0, 0.025, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5)),
        "proportion_threshold": Threshold((0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)),
        "silent": Threshold(),
    }

    def full(self, stored: Mapping[str, Tensor]) -> Bool[Tensor, " words"]:
        """On which words one latent took over all of the feature."""
        return full_absorption(
            stored["top_score"],
            stored["top_probe_cos"],
            stored["probe_projection"],
            stored["main_max"],
            cos_threshold=self.settings.full_cos_threshold,
            proportion_threshold=self.settings.proportion_threshold,
            silent=self.settings.silent,
        )

    @override
    def check_stored(self, candidates_silent: float) -> None:
        """Any threshold that the settings allow can be answered: no word was left out for a main latent."""
