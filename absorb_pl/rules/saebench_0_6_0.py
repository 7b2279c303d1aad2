"""SAEBench 0.6.0: the fraction counts the few latents that project most on the probe."""

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor
from typing_extensions import override

from absorb_pl.functional import fraction_by_absorbers
from absorb_pl.rules.base import Decisions, Threshold, register_rule
from absorb_pl.rules.saebench import FULL_READS, SaeBench

_FRACTION = ("absorption_fraction",)


@register_rule
class SaeBench060(SaeBench):
    """Full absorption and `functional.fraction_by_absorbers`."""

    name = "saebench-0.6.0"
    reads = (*FULL_READS, "main_projection", "absorber_projections", "absorber_probe_cos")
    thresholds: ClassVar[Mapping[str, Threshold]] = {
        **SaeBench.thresholds,
        "proportion_threshold": Threshold(
            SaeBench.thresholds["proportion_threshold"].grid, ("absorption_rate", *_FRACTION)
        ),
        "fraction_cos_threshold": Threshold((0.0, 0.025, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5), _FRACTION),
        "max_absorbers": Threshold((1, 2, 3, 4, 5), _FRACTION),
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
