"""The rule of *A is for Absorption* (arXiv 2409.14507), and what its released code does differently."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

from torch import Tensor
from typing_extensions import override

from absorb_pl.errors import RuleError
from absorb_pl.functional import paper_decisions
from absorb_pl.ranges import Cosine, Count, NotNegative, Positive, Range, check_ranges
from absorb_pl.rules.base import AbsorptionRule, Decisions, Threshold, register_rule
from absorb_pl.words import PositiveToken


@dataclass(frozen=True)
class PaperRule:
    """Settings of the absorption rule `paper` and its variants.

    Attributes:
        steps: Integrated-gradient steps.
        delta_threshold: Least lead of the top latent's score over the second's, in logits.
        cos_threshold: Least cosine of the top latent's decoder row with the probe.
        silent: Size of activation below which a main latent counts as silent.
        positive_token: Token of the right answer: `answer` is `" X"`, `published` the bare lower-case letter.
        top_latents: How many best latents of a word are kept in the table; a lead takes two.
    """

    steps: Count = 6
    delta_threshold: NotNegative = 1.0
    cos_threshold: Cosine = 0.025
    silent: Positive = 1e-8
    positive_token: PositiveToken = "answer"
    top_latents: Annotated[int, Range(2, 2**31 - 1)] = 10

    def __post_init__(self) -> None:
        check_ranges(PaperRule, vars(self))


@register_rule
class Paper(AbsorptionRule):
    """One latent other than the main ones carries the class causally (see `functional.paper_verdicts`)."""

    name = "paper"
    section = "rule"
    settings_type = PaperRule
    settings: PaperRule
    evidence = "gradients"
    reads = ("top_score", "second_score", "top_probe_cos", "main_max")
    thresholds: ClassVar[Mapping[str, Threshold]] = {
        "delta_threshold": Threshold((0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0)),
        "cos_threshold": Threshold((0.0, 0.025, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5)),
        "silent": Threshold(),
    }

    @override
    def decide(self, stored: Mapping[str, Tensor]) -> Decisions:
        settings = self.settings
        return Decisions(
            paper_decisions(
                **{name: stored[name] for name in self.reads},
                delta_threshold=settings.delta_threshold,
                cos_threshold=settings.cos_threshold,
                silent=settings.silent,
            )
        )

    @override
    def check_stored(self, candidates_silent: float) -> None:
        if self.settings.silent > candidates_silent:
            raise RuleError(
                "silent",
                self.settings.silent,
                expected=f"at most {candidates_silent:g}: words on which main latents add up to more are not scored",
                remedy="Run the study with a larger `splits.silent`.",
            )
