"""SAEBench 0.3.2: the fraction counts all latents."""

from collections.abc import Mapping

from torch import Tensor
from typing_extensions import override

from absorb_pl.functional import fraction_by_all
from absorb_pl.rules.base import Decisions, register_rule
from absorb_pl.rules.saebench import FULL_READS, SaeBench


@register_rule
class SaeBench032(SaeBench):
    """Full absorption and `functional.fraction_by_all`."""

    name = "saebench-0.3.2"
    reads = (*FULL_READS, "main_projection", "all_projection")

    @override
    def decide(self, stored: Mapping[str, Tensor]) -> Decisions:
        fraction = fraction_by_all(stored["all_projection"], stored["probe_projection"], stored["main_projection"])
        return Decisions(self.full(stored), fraction)
