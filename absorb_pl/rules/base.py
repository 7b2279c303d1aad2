"""What an absorption rule is, and the list of those that can be asked for by name."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Literal, TypeVar, get_type_hints

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from absorb_pl.errors import NotCausalError, RuleError
from absorb_pl.functional import LettersMode
from absorb_pl.models import has_next_token_logits

Evidence = Literal["gradients", "projections"]
"""What is stored of which words. `gradients`: integrated-gradient scores of the words on which the linear probe sees
the class, the k-sparse probe does not and the main latents are silent. `projections`: projections on the probe, of all
words on which the probe sees the class; neither model nor gradients are needed."""


@dataclass(frozen=True)
class Threshold:
    """A setting of a rule that can be applied again to stored scores.

    Attributes:
        grid: Values at which the sensitivity figure shows the rates; none, and it is not drawn.
        moves: Columns of the summary that depend on it.
    """

    grid: tuple[float | int, ...] = ()
    moves: tuple[str, ...] = ("absorption_rate",)


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

    A new rule is a subclass under `register_rule`: its name, the evidence it decides on, the columns it reads and
    `decide`. It can then stand in a study's `rules`.

    Args:
        settings: Settings of the rule; its defaults when None.

    Attributes:
        name: Name in tables and on the command line.
        section: Field of a study's configuration that holds its settings.
        settings_type: Dataclass of its settings; the defaults are the published ones.
        evidence: Which words are candidates and what is stored of them.
        reads: Columns of the stored scores that `decide` reads.
        thresholds: Settings that can be applied again to stored scores.
        fixed: Settings that this rule does not leave to the configuration.
        letters: What letters without candidates count for, where the rule says so.

    Example:
        >>> class LargestMain(rule_named("saebench-0.6.0")):
        ...     name = "silent-mains"
        ...     reads = ("main_max",)
        ...     def decide(self, stored):
        ...         return Decisions(stored["main_max"] < self.settings.silent)
        >>> LargestMain().decide({"main_max": torch.tensor([0.0, 2.0])}).is_absorption
        tensor([ True, False])
    """

    name: ClassVar[str]
    section: ClassVar[str]
    settings_type: ClassVar[type[Any]]
    evidence: ClassVar[Evidence]
    reads: ClassVar[tuple[str, ...]]
    thresholds: ClassVar[Mapping[str, Threshold]]
    fixed: ClassVar[Mapping[str, Any]] = {}
    letters: ClassVar[LettersMode | None] = None

    def __init__(self, settings: Any = None) -> None:
        self.settings = replace(settings or self.settings_type(), **self.fixed)

    @abstractmethod
    def decide(self, stored: Mapping[str, Tensor]) -> Decisions:
        """Apply the thresholds to the stored scores of words.

        Args:
            stored: The columns that the rule reads, from `stored_scores`.
        """

    @abstractmethod
    def check_stored(self, candidates_silent: float) -> None:
        """Refuse thresholds that the stored scores cannot answer.

        Args:
            candidates_silent: Summed activation below which main latents counted as silent when candidates were
                chosen.

        Raises:
            RuleError: Names the threshold and what to run again.
        """

    def count_candidates(self, letters: pd.DataFrame) -> pd.DataFrame:
        """Letters of `evaluate_sae` with this rule's `num_candidates` and `sample_portion`."""
        if self.evidence == "gradients":
            return letters
        return letters.assign(num_candidates=letters["num_probe_true_positives"], sample_portion=1.0)

    def with_thresholds(self, thresholds: Mapping[str, float | int]) -> "AbsorptionRule":
        """The same rule with other thresholds.

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


Kind = TypeVar("Kind", bound=type[AbsorptionRule])
_RULES: dict[str, type[AbsorptionRule]] = {}


def register_rule(rule: Kind) -> Kind:
    """Let a rule be asked for by its name.

    Args:
        rule: The rule's class.
    """
    _RULES[rule.name] = rule
    return rule


def known_rules() -> tuple[str, ...]:
    """Names of the rules that can be asked for."""
    return tuple(_RULES)


def rule_named(name: str) -> type[AbsorptionRule]:
    """The class of a rule.

    Args:
        name: Its name.

    Raises:
        RuleError: There is none; lists those that there are.

    Example:
        >>> rule_named("paper").evidence
        'gradients'
    """
    if name not in _RULES:
        raise RuleError(
            "rules", name, expected=f"one of {', '.join(_RULES)}", remedy="Name one of them, or register a rule first."
        )
    return _RULES[name]


def configured_rules(names: Sequence[str], sections: Mapping[str, Any]) -> list[AbsorptionRule]:
    """The rules of a configuration.

    Args:
        names: Their names; none stands twice.
        sections: Settings by the field of the configuration that holds them; a rule whose section is missing has its
            defaults.

    Raises:
        RuleError: A name is unknown or stands twice, or there is none.
    """
    if not names or len(set(names)) != len(names):
        raise RuleError(
            "rules", list(names), expected="at least one rule, each once", remedy=f"Choose of {', '.join(_RULES)}."
        )
    rules = []
    for name in names:
        kind = rule_named(name)
        section = sections.get(kind.section)
        known = {} if section is None else section if isinstance(section, Mapping) else asdict(section)
        rules.append(kind(kind.settings_type(**known)))
    return rules


def check_rules_fit(rules: Sequence[AbsorptionRule], model: Any) -> None:
    """Refuse rules that read what a model does not give, before anything is computed.

    Rules on gradients read the model's answer, so they need next-token logits; those on projections take any model.

    Args:
        rules: The rules of a study.
        model: Its language model.

    Raises:
        NotCausalError: A rule reads next-token logits and the model gives none; says which rules there are for it.

    Example:
        >>> from types import SimpleNamespace
        >>> encoder = SimpleNamespace(cfg=SimpleNamespace(attention_dir="bidirectional"))
        >>> check_rules_fit([rule_named("paper")()], encoder)
        Traceback (most recent call last):
            ...
        absorb_pl.errors.NotCausalError: `rules` was 'paper', expected rules that need no next-token logits, ...
    """
    unfit = next((rule.name for rule in rules if rule.evidence == "gradients"), None)
    if unfit is not None and not has_next_token_logits(model):
        fit = [name for name, rule in _RULES.items() if rule.evidence == "projections"]
        raise NotCausalError(
            "rules",
            unfit,
            expected="rules that need no next-token logits, which this model (an encoder, or one without a trained "
            "unembedding) does not give",
            remedy=f"Ask for rules that project activations: {', '.join(fit)}. Or take a causal model.",
        )


def threshold_types() -> dict[str, Any]:
    """Names and types, with their ranges, of all thresholds of the known rules."""
    return {
        name: hint
        for rule in _RULES.values()
        for name, hint in get_type_hints(rule.settings_type, include_extras=True).items()
        if name in rule.thresholds
    }


def stored_scores(words: pd.DataFrame, columns: Sequence[str]) -> dict[str, Tensor]:
    """Stored scores as tensors; lists of different lengths are filled up with zeros.

    Args:
        words: One row a word.
        columns: Columns of numbers or of lists.

    Example:
        >>> table = pd.DataFrame({"a": [1.0, 2.0], "b": [[0.5], []]})
        >>> stored_scores(table, ["a", "b"])["b"]
        tensor([[0.5000],
                [0.0000]], dtype=torch.float64)
    """
    found = {}
    for name in columns:
        if words[name].dtype != object:
            found[name] = torch.tensor(words[name].to_numpy(), dtype=torch.float64)
            continue
        lists = [torch.as_tensor(list(values), dtype=torch.float64) for values in words[name]]
        found[name] = torch.nn.utils.rnn.pad_sequence(lists, batch_first=True) if lists else torch.zeros(0, 0)
    return found
