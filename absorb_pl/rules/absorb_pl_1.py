"""Our own rule: any number of latents carry what the feature's own latents do not (see `functional.carried`)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Bool
from torch import Tensor
from typing_extensions import override

from absorb_pl.functional.absorption import SILENT
from absorb_pl.functional.carried import carried_conditions, carried_share
from absorb_pl.functional.conditions import all_met
from absorb_pl.ranges import Cosine, Count, Fraction, Positive, check_ranges
from absorb_pl.rules.evidence import Carried
from absorb_pl.rules.registry import register_rule
from absorb_pl.rules.rule import AbsorptionRule, Decisions


@dataclass(frozen=True)
class AbsorbPl1Settings:
    """Settings of the rule `absorb-pl-1`.

    Attributes:
        min_alignment: Least cosine of a decoder row with the tracking latent's at which both write one feature.
        least_share: Share of the feature that other latents must carry for a word to count.
        silent: Size of activation below which a latent counts as silent.
        stored_absorbers: How many carriers per word are kept in the table.
    """

    min_alignment: Cosine = 0.95
    least_share: Fraction = 0.5
    silent: Positive = SILENT
    stored_absorbers: Count = 5

    def __post_init__(self) -> None:
        check_ranges(AbsorbPl1Settings, vars(self))


@register_rule
class AbsorbPl1Rule(AbsorptionRule):
    """A word counts if its feature's own latents are silent and any others together carry at least half of it."""

    name = "absorb-pl-1"
    settings_type = AbsorbPl1Settings
    settings: AbsorbPl1Settings
    evidence = Carried
    reads = ("feature_size", "own_part", "others_part", "usual_part", "main_max")
    thresholds: ClassVar[Mapping[str, tuple[float | int, ...]]] = {
        "least_share": (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
        "silent": (SILENT, 0.01, 0.1, 0.5, 1.0),
    }

    sentences: ClassVar[Mapping[str, str]] = {
        "counted": "The feature's own latents are silent, and others write {others_part} of its size of "
        "{feature_size}; most comes from latent {top_latent}: {top_score}.",
        "silent": "One of the feature's own latents fires: {main_max}.",
        "share": "Others do not carry enough: they write {others_part} of the feature's size of {feature_size}, "
        "must be a share of at least {settings.least_share}; the most comes from latent {top_latent}: {top_score}.",
    }

    @override
    def decide(self, stored: Mapping[str, Tensor]) -> Decisions:
        verdicts = all_met(self.conditions(stored))
        return Decisions(verdicts, carried_share(*_feature(stored), stored["usual_part"]))

    @override
    def conditions(self, stored: Mapping[str, Tensor]) -> Mapping[str, Bool[Tensor, " words"]]:
        return carried_conditions(
            carried_share(*_feature(stored)),
            stored["main_max"],
            least_share=self.settings.least_share,
            silent=self.settings.silent,
        )


def _feature(stored: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    return stored["feature_size"], stored["own_part"], stored["others_part"]
