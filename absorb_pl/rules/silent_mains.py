"""How much is lost at all: an upper bound of absorption, and the example of a rule of one's own."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Bool
from torch import Tensor
from typing_extensions import override

from absorb_pl.functional.absorption import SILENT
from absorb_pl.ranges import Count, Positive, check_ranges
from absorb_pl.rules.evidence import Projections
from absorb_pl.rules.registry import register_rule
from absorb_pl.rules.rule import AbsorptionRule, Decisions


@dataclass(frozen=True)
class SilentMainsSettings:
    """Settings of the rule `silent-mains`.

    Attributes:
        silent: Size of activation below which a main latent counts as silent.
        stored_absorbers: As in `SaeBenchSettings`, so that both rules share their evidence.
    """

    silent: Positive = SILENT
    stored_absorbers: Count = 5

    def __post_init__(self) -> None:
        check_ranges(SilentMainsSettings, vars(self))


@register_rule
class SilentMainsRule(AbsorptionRule):
    """A word counts if the probe sees the class and no main latent fires, whatever took over."""

    name = "silent-mains"
    settings_type = SilentMainsSettings
    evidence = Projections
    reads = ("main_max",)
    thresholds: ClassVar[Mapping[str, tuple[float | int, ...]]] = {"silent": (SILENT, 0.01, 0.1, 0.5, 1.0)}

    sentences: ClassVar[Mapping[str, str]] = {
        "counted": "The main latents are silent.",
        "silent": "A main latent fires: {main_max}.",
    }

    @override
    def decide(self, stored: Mapping[str, Tensor]) -> Decisions:
        return Decisions(self.conditions(stored)["silent"])

    @override
    def conditions(self, stored: Mapping[str, Tensor]) -> Mapping[str, Bool[Tensor, " words"]]:
        return {"silent": stored["main_max"] < self.settings.silent}
