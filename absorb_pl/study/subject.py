"""What a study is about: a language model, SAEs that fit it, and the prompts it is asked."""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from absorb_pl.data.activation_cache import activation_identities
from absorb_pl.data.prompt_datamodule import PromptDataModule
from absorb_pl.data.splits import check_split
from absorb_pl.errors import AbsorbError
from absorb_pl.functional.k_sparse import check_ks
from absorb_pl.models.hooked_model import HookedModel
from absorb_pl.models.language_model import resolve_model
from absorb_pl.rules.registry import check_rules_fit
from absorb_pl.saes.given import expand_saes
from absorb_pl.saes.source import SaeSource, tell_equal_saes
from absorb_pl.study.config import StudyConfig

_SHARED_SETTINGS = ("linear_probe", "k_sparse", "splits", "rates")


@dataclass(frozen=True)
class Subject:
    """A language model, SAEs that fit it, and the prompts it is asked.

    Attributes:
        model: The language model.
        saes: The SAEs by name, controls among them.
        words: The prompts.
        identities: What determines the activations of each hook.
    """

    model: Any
    saes: dict[str, SaeSource]
    words: PromptDataModule
    identities: dict[str, dict[str, object]]

    @property
    def hooks(self) -> list[str]:
        """Hooks that the SAEs read."""
        return list(self.identities)

    @property
    def measured(self) -> list[str]:
        """Names of the SAEs without their controls; controls alone stay."""
        return [name for name, sae in self.saes.items() if not sae.control] or list(self.saes)

    def portions(self, size: int) -> Iterator[list[str]]:
        """Names of SAEs, so many at a time."""
        names = list(self.saes)
        return (names[start : start + size] for start in range(0, len(names), size))

    def identity(self, config: StudyConfig) -> dict[str, Any]:
        """What all rows of a study's tables have in common."""
        shared = {key: value for key, value in self.identities[self.hooks[0]].items() if key != "hook_name"}
        return {
            **shared,
            "task": self.words.identity,
            "test_fraction": config.test_fraction,
            "seed": config.seed,
            "sae_dtype": config.sae_dtype,
            "rules": config.rules,
            **{name: dataclasses.asdict(getattr(config, name)) for name in _SHARED_SETTINGS},
        }


def load_subject(config: StudyConfig, processing: Sequence[str]) -> Subject:
    """Load what a study is about, and check that everything fits before anything is computed.

    Args:
        config: The settings.
        processing: How the SAEs ask for the model to be processed.

    Raises:
        AbsorbError: One of the named errors of `absorb_pl.errors`.
    """
    model = resolve_model(config.model, dtype=config.model_dtype, processing=processing, n_devices=config.n_devices)
    check_rules_fit(config.chosen_rules(), model)
    saes: dict[str, SaeSource] = {}
    for name, given in expand_saes(config.saes).items():
        for source in _with_controls(name, given, model, config):
            if saes.setdefault(source.name, source).identity != source.identity:
                raise AbsorbError(
                    "saes", source.name, expected="a name for each SAE and control", remedy="Rename one of the two."
                )
    tell_equal_saes(saes)
    words = PromptDataModule(model, config.task, config.prompt_batch_size)
    check_split(words.labels, config.test_fraction, config.seed)
    for sae in saes.values():
        check_ks([min(config.k_sparse.ks)], sae.d_sae)
        sae.check_words(words.prompts.word_positions)
    hooks = list(dict.fromkeys(sae.hook_name for sae in saes.values()))
    return Subject(model, saes, words, activation_identities(model, words.prompts, hooks, config.activation_dtype))


def _with_controls(name: str, given: Any, model: HookedModel, config: StudyConfig) -> Iterator[SaeSource]:
    for kind in ("", *config.controls):
        ending = f"#{kind}" if kind else ""
        yield SaeSource.check(
            name + ending,
            model,
            config.sae_dtype,
            given=given + ending if isinstance(given, str) else given,
            control=kind,
            to_shuffle=config.shuffles > 0,
        )
