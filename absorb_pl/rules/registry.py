"""The rules that can be asked for by name, and how a configuration asks for them."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, get_type_hints

from absorb_pl.errors import NotCausalError, RuleError
from absorb_pl.models.hooked_model import HookedModel
from absorb_pl.models.next_token import has_next_token_logits
from absorb_pl.rules.evidence import Gradients
from absorb_pl.rules.rule import AbsorptionRule

Kind = TypeVar("Kind", bound=type[AbsorptionRule])
RuleChoice = str | list[str] | dict[str, Any]
"""Rules as a configuration names them: one name, several, or names with settings (`{paper: {delta_threshold: 2}}`)."""

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
        >>> rule_named("paper").evidence.name
        'gradients'
    """
    if name not in _RULES:
        raise RuleError(
            "rules", name, expected=f"one of {', '.join(_RULES)}", remedy="Name one of them, or register a rule first."
        )
    return _RULES[name]


def rules_of(choice: RuleChoice) -> dict[str, dict[str, Any]]:
    """Settings by the names of the rules that a configuration asks for.

    Args:
        choice: One name, several, or names with settings.

    Raises:
        RuleError: A name stands twice, there is none, or settings are not given by their names.

    Example:
        >>> rules_of("paper"), rules_of({"paper": {"delta_threshold": 2}, "saebench-0.6.0": None})
        ({'paper': {}}, {'paper': {'delta_threshold': 2}, 'saebench-0.6.0': {}})
    """
    if isinstance(choice, Mapping):
        found: dict[str, Any] = {name: {} if given is None else given for name, given in choice.items()}
    else:
        names = [choice] if isinstance(choice, str) else list(choice)
        found = {name: {} for name in names}
        if len(found) < len(names):
            raise RuleError("rules", names, expected="at least one rule, each once", remedy=_choose())
    if not found:
        raise RuleError("rules", choice, expected="at least one rule, each once", remedy=_choose())
    for name, given in found.items():
        if not isinstance(given, Mapping):
            raise RuleError(
                f"rules.{name}",
                given,
                expected="settings by their names, such as {delta_threshold: 1.0}",
                remedy="Leave it empty for the published settings.",
            )
    settings = {name: dict(given) for name, given in found.items() if name in _RULES or "." not in "".join(given)}
    for name in found.keys() - settings.keys():
        for rest, value in found[name].items():
            rule, _, setting = f"{name}.{rest}".rpartition(".")  # as in `--rules.saebench-0.6.0.min_letters=3`
            settings.setdefault(rule, {})[setting] = value
    return settings


def configured_rules(choice: RuleChoice) -> list[AbsorptionRule]:
    """The rules of a configuration, with their settings.

    Args:
        choice: One name, several, or names with settings; settings that are left out are the published ones.

    Raises:
        RuleError: A name is unknown or stands twice, there is none, or a rule has no such setting.
        RangeError: A setting is outside its range.

    Example:
        >>> [rule.name for rule in configured_rules({"paper": {"delta_threshold": 2.0}, "saebench-0.6.0": {}})]
        ['paper', 'saebench-0.6.0']
    """
    rules = []
    for name, given in rules_of(choice).items():
        kind = rule_named(name)
        known = list(kind().own_settings())
        for setting, value in given.items():
            if setting not in known:
                raise RuleError(
                    f"rules.{name}.{setting}",
                    value,
                    expected=f"a setting of this rule: {', '.join(known)}",
                    remedy="Correct or drop it.",
                )
        rules.append(kind(kind.settings_type(**given)))
    return rules


def check_rules_fit(rules: Sequence[AbsorptionRule], model: HookedModel) -> None:
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
    unfit = next((rule.name for rule in rules if rule.evidence is Gradients), None)
    if unfit is not None and not has_next_token_logits(model):
        raise NotCausalError(
            "rules",
            unfit,
            expected="rules that need no next-token logits, which this model (an encoder, or one without a trained "
            "unembedding) does not give",
            remedy=f"Take a causal model, or rules on projections: {', '.join(rules_without_model())}.",
        )


def rules_without_model() -> list[str]:
    """Names of the rules that cached activations are enough for."""
    return [name for name, rule in _RULES.items() if rule.evidence is not Gradients]


def threshold_types() -> dict[str, Any]:
    """Names and types, with their ranges, of all thresholds of the known rules."""
    return {
        name: hint
        for rule in _RULES.values()
        for name, hint in get_type_hints(rule.settings_type, include_extras=True).items()
        if name in rule.thresholds
    }


def _choose() -> str:
    return f"Choose of {', '.join(_RULES)}."
