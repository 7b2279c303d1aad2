"""Measure how sparse autoencoders split and absorb features of a language model.

The names below are what most people need; each is loaded when it is first used, so that importing the package takes no
time. The rooms (`absorb_pl.saes`, `absorb_pl.rules`, …) hold the rest.

Example:
    >>> import absorb_pl
    >>> absorb_pl.known_rules()[0]
    'paper'
"""

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from absorb_pl.attribution import word_ablations, word_integrated_gradients
    from absorb_pl.data import ActivationDataModule, PromptDataModule
    from absorb_pl.evaluators import (
        AblationEvaluator,
        AbsorptionEvaluator,
        Evaluate,
        FeatureAbsorptionCalculator,
        evaluate_activations,
    )
    from absorb_pl.models import HookedModel, load_language_model
    from absorb_pl.probes import LinearProbe, SaeProbe
    from absorb_pl.rules import AbsorptionRule, judge, known_rules, register_rule
    from absorb_pl.saes import SparseAutoencoder, control_sae, list_saes, load_sae
    from absorb_pl.study import StudyConfig, StudyResult, rescore_run, run_study, score
    from absorb_pl.words import TaskConfig

# TransformerLens loads bitsandbytes where that is installed, which then tells of kernels that it lacks.
logging.getLogger("bitsandbytes.backends").setLevel(logging.ERROR)

__version__ = "0.2.0"

_ROOMS = {
    "attribution": ("word_ablations", "word_integrated_gradients"),
    "data": ("ActivationDataModule", "PromptDataModule"),
    "evaluators": (
        "AblationEvaluator",
        "AbsorptionEvaluator",
        "Evaluate",
        "FeatureAbsorptionCalculator",
        "evaluate_activations",
    ),
    "models": ("HookedModel", "load_language_model"),
    "probes": ("LinearProbe", "SaeProbe"),
    "rules": ("AbsorptionRule", "judge", "known_rules", "register_rule"),
    "saes": ("SparseAutoencoder", "control_sae", "list_saes", "load_sae"),
    "study": ("StudyConfig", "StudyResult", "rescore_run", "run_study", "score"),
    "words": ("TaskConfig",),
}
_PLACES = {name: room for room, names in _ROOMS.items() for name in names}

__all__ = [
    "AblationEvaluator",
    "AbsorptionEvaluator",
    "AbsorptionRule",
    "ActivationDataModule",
    "Evaluate",
    "FeatureAbsorptionCalculator",
    "HookedModel",
    "LinearProbe",
    "PromptDataModule",
    "SaeProbe",
    "SparseAutoencoder",
    "StudyConfig",
    "StudyResult",
    "TaskConfig",
    "control_sae",
    "evaluate_activations",
    "judge",
    "known_rules",
    "list_saes",
    "load_language_model",
    "load_sae",
    "register_rule",
    "rescore_run",
    "run_study",
    "score",
    "word_ablations",
    "word_integrated_gradients",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'absorb_pl' has no attribute {name!r}")
    return getattr(import_module(f"absorb_pl.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
