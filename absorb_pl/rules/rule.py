"""What an absorption rule is."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, ClassVar

import pandas as pd
from jaxtyping import Bool, Float
from torch import Tensor

from absorb_pl.errors import RuleError
from absorb_pl.functional.rates import LettersMode
from absorb_pl.rules.evidence import Evidence, Gradients, stored_scores


@dataclass(frozen=True)
class Decisions:
    """What a rule says of each word.

    Attributes:
        is_absorption: Whether the word counts.
        fraction: Share of the feature that was absorbed, 0 to 1; None for a rule without fractions.
    """

    is_absorption: Bool[Tensor, " words"]
    fraction: Float[Tensor, " words"] | None = None


class AbsorptionRule(ABC):
    """A rule that says on which words a feature was absorbed.

    A new rule is a subclass under `register_rule` with a name, the evidence it rests on, the columns it reads and
    `decide`; `absorb_pl/rules/silent_mains.py` is an example. It can then stand in a study's `rules`.

    Args:
        settings: Settings of the rule; its defaults when None.

    Attributes:
        name: Name in tables and on the command line.
        settings_type: Dataclass of its settings; the defaults are the published ones.
        evidence: Kind of evidence it rests on; fields of that class are settings of the rule.
        reads: Columns of the evidence that `decide` reads.
        thresholds: Settings that can be applied again to stored evidence, each with the values at which the
            sensitivity figure shows the rates; without values it is not drawn.
        fixed: Settings that this rule does not leave to the configuration.
        letters: What classes without candidates count for, if the rule says so.
        sentences: What to tell a reader of a word: `counted` where it counts, else by the name of the first condition
            that it does not meet. `{column}` stands for a number of the word, `{settings.name}` for a setting.

    Example:
        >>> from absorb_pl.rules import rule_named
        >>> rule = rule_named("saebench-0.6.0")()
        >>> rule.needs, rule.settings.full_cos_threshold
        (Projections(stored_absorbers=5), 0.025)
    """

    name: ClassVar[str]
    settings_type: ClassVar[type[Any]]
    evidence: ClassVar[type[Evidence]]
    reads: ClassVar[tuple[str, ...]]
    thresholds: ClassVar[Mapping[str, tuple[float | int, ...]]]
    fixed: ClassVar[Mapping[str, Any]] = {}
    letters: ClassVar[LettersMode | None] = None
    sentences: ClassVar[Mapping[str, str]] = {}

    def __init__(self, settings: Any = None) -> None:
        self.settings = replace(settings or self.settings_type(), **self.fixed)

    @abstractmethod
    def decide(self, stored: Mapping[str, Tensor]) -> Decisions:
        """Apply the thresholds to the evidence on words.

        Args:
            stored: The columns that the rule reads, from `stored_scores`.
        """

    def conditions(self, stored: Mapping[str, Tensor]) -> Mapping[str, Bool[Tensor, " words"]]:  # noqa: ARG002
        """What the rule asks of a word, by name, in the order in which a reader is told; a word counts if it meets all.

        Args:
            stored: As for `decide`.

        Returns:
            Nothing for a rule that does not take its decision apart.
        """
        return {}

    def check_stored(self, candidates_silent: float) -> None:
        """Refuse thresholds that stored evidence cannot answer.

        Gradients are computed only at words whose main latents are silent; no word is left out of projections.

        Args:
            candidates_silent: Summed activation below which main latents counted as silent when candidates were
                chosen.

        Raises:
            RuleError: Names the threshold and what to run again.
        """
        if self.evidence is Gradients and self.settings.silent > candidates_silent:
            raise RuleError(
                "silent",
                self.settings.silent,
                expected=f"at most {candidates_silent:g}: words on which main latents add up to more are not scored",
                remedy="Run the study with a larger `splits.silent`.",
            )

    @property
    def needs(self) -> Evidence:
        """The evidence that must be gathered for the rule with its settings."""
        return self.evidence(**{field.name: getattr(self.settings, field.name) for field in fields(self.evidence)})

    def own_settings(self) -> dict[str, Any]:
        """All settings that the configuration may choose, by name."""
        return {name: value for name, value in asdict(self.settings).items() if name not in self.fixed}

    def judge(self, evidence: pd.DataFrame) -> pd.DataFrame:
        """The verdicts on words.

        Args:
            evidence: One row per word, with the columns that the rule reads; earlier verdicts are replaced.

        Returns:
            `evidence` with `rule`, `is_absorption`, `unmet`, and `absorption_fraction` if the rule gives one.
        """
        stored = stored_scores(evidence, self.reads)
        found = self.decide(stored)
        words = evidence.drop(columns="absorption_fraction", errors="ignore").assign(
            rule=self.name,
            is_absorption=found.is_absorption.numpy(),
            unmet=_first_unmet(self.conditions(stored), found.is_absorption),
        )
        if found.fraction is not None:
            words["absorption_fraction"] = found.fraction.numpy()
        return words

    def count_candidates(self, letters: pd.DataFrame) -> pd.DataFrame:
        """Letters of `evaluate_sae` with this rule's `num_candidates` and `sample_portion`."""
        if self.evidence is Gradients:
            return letters
        return letters.assign(num_candidates=letters["num_probe_true_positives"], sample_portion=1.0)

    def with_thresholds(self, thresholds: Mapping[str, float | int]) -> "AbsorptionRule":
        """The same rule with other thresholds.

        Args:
            thresholds: Thresholds by name.

        Raises:
            RuleError: The rule has no such threshold.
        """
        for name, value in thresholds.items():
            if name not in self.thresholds:
                raise RuleError(
                    name,
                    value,
                    expected=f"a threshold of the rule {self.name}: {', '.join(self.thresholds)}",
                    remedy="Leave it out, or name another rule.",
                )
        return type(self)(replace(self.settings, **thresholds))


def _first_unmet(conditions: Mapping[str, Bool[Tensor, " words"]], is_absorption: Bool[Tensor, " words"]) -> list[str]:
    """Name of the first condition that each word does not meet; empty if it counts, or the rule names none."""
    unmet = [""] * len(is_absorption)
    for name, met in conditions.items():
        unmet = [found or ("" if passed else name) for found, passed in zip(unmet, met.tolist(), strict=True)]
    return unmet
