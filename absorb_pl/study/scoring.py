"""A study of SAEs that are in memory, without files of the user's making."""

import tempfile
import weakref
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from absorb_pl.errors import AbsorbError
from absorb_pl.models.closest import closest_names
from absorb_pl.models.placement import model_device
from absorb_pl.saes.given import named_saes
from absorb_pl.saes.interface import SparseAutoencoder
from absorb_pl.saes.loading import at_hook
from absorb_pl.study.config import StudyConfig, TrainerSettings
from absorb_pl.study.result import StudyResult
from absorb_pl.study.sweep import run_study

_OWN = {"saes", "model", "models", "run_dir", "until"}


def score(
    sae: str | SparseAutoencoder | list[Any] | Mapping[str, Any],
    model: Any = "speller",
    *,
    hook_name: str | None = None,
    run_dir: str | Path | None = None,
    **settings: Any,
) -> StudyResult:
    """Measure splitting and absorption in SAEs, in memory or by name; nothing is printed but progress bars.

    This is `run_study` for SAEs in memory. SAEs and the model stay as they are. What is finished is kept in the same
    cache, by content, so that the same SAE under the same name is not scored twice.

    Args:
        sae: An SAE (of SAELens, in training or not, or any `SparseAutoencoder`), a name or path for `load_sae`, a list
            of these, or a mapping from the names that tables should show to these.
        model: Name for `load_language_model`, a folder, or a model with TransformerLens's hooks.
        hook_name: Hook that all of the SAEs read; by default what each of them says.
        run_dir: Folder of the run. By default a temporary one that is there as long as the result is; `save` keeps it.
        settings: Other settings of `StudyConfig` by name: `rules`, `task`, `seed`, `controls`, `shuffles`, `crossfit`,
            `cache_dir`, `trainer`, … By default a model that is given runs where it is.

    Returns:
        The tables, which a notebook shows, with `figure`, `page`, `compare` and `save`, and without `stages`.

    Raises:
        AbsorbError: One of the named errors of `absorb_pl.errors`.

    Example:
        >>> score("speller/l1-standard-w512-dense", rule="paper")
        Traceback (most recent call last):
            ...
        absorb_pl.errors.AbsorbError: `settings` was 'rule', expected a setting of a study... Nearest: rules...
    """
    known = [setting.name for setting in fields(StudyConfig) if setting.name not in _OWN]
    for name in settings:
        if name not in known:
            raise AbsorbError(
                "settings",
                name,
                expected=f"a setting of a study: {', '.join(known)}",
                remedy=f"Nearest: {closest_names(name, known)}.",
            )
    saes = named_saes(sae)
    if hook_name is not None:
        given = saes if isinstance(saes, dict) else {name: name for name in saes}
        saes = {name: at_hook(each, name, hook_name) for name, each in given.items()}
    if not isinstance(model, str | Path):
        settings.setdefault("trainer", _where(model))
    folder = None if run_dir is not None else tempfile.TemporaryDirectory(prefix="absorb_pl-")
    place = str(run_dir) if folder is None else folder.name
    found = run_study(StudyConfig(saes=saes, model=model, run_dir=place, **settings), show=False)
    result = replace(found, stages=None)  # which hold the model, and results are many in a notebook
    if folder is not None:
        weakref.finalize(result, folder.cleanup)
    return result


def _where(model: Any) -> TrainerSettings:
    """The device that a model is on."""
    device = model_device(model)
    if device.type != "cuda":
        return TrainerSettings(accelerator="cpu")
    return TrainerSettings(accelerator="gpu", devices=[device.index or 0])
