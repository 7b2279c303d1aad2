"""The rule of *A is for Absorption* (arXiv 2409.14507), and what its released code does differently."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from jaxtyping import Bool
from torch import Tensor
from typing_extensions import override

from absorb_pl.functional.absorption import SILENT, paper_conditions
from absorb_pl.functional.conditions import all_met
from absorb_pl.ranges import Cosine, Count, NotNegative, Positive, Range, check_ranges
from absorb_pl.rules.evidence import Gradients
from absorb_pl.rules.registry import register_rule
from absorb_pl.rules.rule import AbsorptionRule, Decisions
from absorb_pl.words.answers import PositiveToken


@dataclass(frozen=True)
class PaperSettings:
    """Settings of the absorption rule `paper` and its variants.

    Attributes:
        steps: Integrated-gradient steps.
        delta_threshold: Least lead of the top latent's score over the second's, in logits.
        cos_threshold: Least cosine of the top latent's decoder row with the probe.
        silent: Size of activation below which a main latent counts as silent.
        positive_token: Token of the right answer: `answer` is `" X"`, `published` the bare lower-case letter.
        top_latents: How many of the best latents per word are kept in the table; a lead takes two.
    """

    steps: Count = 6
    delta_threshold: NotNegative = 1.0
    cos_threshold: Cosine = 0.025
    silent: Positive = SILENT
    positive_token: PositiveToken = "answer"
    top_latents: Annotated[int, Range(2, 2**31 - 1)] = 10

    def __post_init__(self) -> None:
        check_ranges(PaperSettings, vars(self))


@register_rule
class PaperRule(AbsorptionRule):
    """One latent other than the main ones carries the class causally (see `functional.paper_decisions`)."""

    name = "paper"
    settings_type = PaperSettings
    settings: PaperSettings
    evidence = Gradients
    reads = ("top_score", "second_score", "top_probe_cos", "main_max")
    thresholds: ClassVar[Mapping[str, tuple[float | int, ...]]] = {
        "delta_threshold": (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0),
        "cos_threshold": (0.0, 0.025, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5),
        "silent": (),
    }

    sentences: ClassVar[Mapping[str, str]] = {
        "counted": "The main latents are silent, and latent {top_latent} alone carries the answer: its score is "
        "{top_score} logits, that of the next, latent {second_latent}, {second_score}; the cosine of its decoder row "
        "with the probe is {top_probe_cos}.",
        "silent": "A main latent fires: {main_max}.",
        "helps": "No latent helps the answer: the best score, of latent {top_latent}, is {top_score} logits.",
        "lead": "No latent stands out: latent {top_latent} has a score of {top_score} logits, and the next, latent "
        "{second_latent}, {second_score}; the lead must be at least {settings.delta_threshold}.",
        "aligned": "Latent {top_latent} carries the answer, with a score of {top_score} logits, but does not point the "
        "probe's way: cosine {top_probe_cos}, must be at least {settings.cos_threshold}.",
    }

    @override
    def decide(self, stored: Mapping[str, Tensor]) -> Decisions:
        return Decisions(all_met(self.conditions(stored)))

    @override
    def conditions(self, stored: Mapping[str, Tensor]) -> Mapping[str, Bool[Tensor, " words"]]:
        settings = self.settings
        return paper_conditions(
            **{name: stored[name] for name in self.reads},
            delta_threshold=settings.delta_threshold,
            cos_threshold=settings.cos_threshold,
            silent=settings.silent,
        )


@register_rule
class PaperPublishedTokenRule(PaperRule):
    """As `paper`, but the bare lower-case letter is the right answer, as in the released code."""

    name = "paper-published-token"
    fixed: ClassVar[Mapping[str, Any]] = {"positive_token": "published"}


@register_rule
class PaperPublishedLettersRule(PaperRule):
    """As `paper`, but classes without candidate words are left out of an SAE's rate, as in the released code."""

    name = "paper-published-letters"
    letters = "published"


@register_rule
class PaperPublishedRule(PaperRule):
    """Both, as the released code computes it."""

    name = "paper-published"
    fixed: ClassVar[Mapping[str, Any]] = {"positive_token": "published"}
    letters = "published"
