"""Where SAEs come from: the bundled suite, local folders and files, functions of the user's, and SAELens's releases.

Loading, patterns and listings all go through `ORIGINS`. A new origin is a class with the same four methods, and its
place in that list.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE, TrainingSAE
from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory
from typing_extensions import override

from absorb_pl.errors import AbsorbError
from absorb_pl.models.bundled import SPELLER
from absorb_pl.models.placement import check_dtype, local_folder, local_path
from absorb_pl.saes.adapters import AdaptedSae
from absorb_pl.saes.bundled import bundled_sae_path, list_bundled_saes
from absorb_pl.saes.folders import describe_folder, inference_sae, load_folder
from absorb_pl.saes.formats import holds_sae
from absorb_pl.saes.functions import call_function, function_sae, is_function_name, split_key
from absorb_pl.saes.identity import sae_tensors
from absorb_pl.saes.properties import require_floats
from absorb_pl.saes.releases import describe_release, load_release, release_names, require_release

WILDCARDS = frozenset("*?[")
Converter = Callable[..., Any] | None
LoadedSae = SAE[Any] | AdaptedSae


class Origin(ABC):
    """A place that SAEs come from. Names are without `@hook` and `#control`."""

    @abstractmethod
    def matches(self, name: str) -> bool:
        """Whether a name is of this origin, if it is of none before it in `ORIGINS`."""

    @abstractmethod
    def names(self, pattern: str) -> list[str]:
        """Names that a pattern with wildcards may select; none if it is not about this origin."""

    @abstractmethod
    def describe(self, name: str) -> dict[str, Any]:
        """What can be said of an SAE without its weights: columns of `list_saes`.

        Raises:
            SaeNotFoundError: There is no such SAE.
        """

    @abstractmethod
    def load(self, name: str, device: str, dtype: str, converter: Converter) -> LoadedSae:
        """Load an SAE.

        Raises:
            SaeNotFoundError: There is no such SAE.
        """


class Bundled(Origin):
    """The suite that ships inside the package: `speller/…`."""

    @override
    def matches(self, name: str) -> bool:
        return name.startswith(f"{SPELLER}/") and local_folder(name) is None

    @override
    def names(self, pattern: str) -> list[str]:
        return list_bundled_saes() if pattern.partition("/")[0] == SPELLER else []

    @override
    def describe(self, name: str) -> dict[str, Any]:
        return {"release": SPELLER, **describe_folder(name, bundled_sae_path(name))}

    @override
    def load(self, name: str, device: str, dtype: str, converter: Converter) -> LoadedSae:
        return load_folder(name, bundled_sae_path(name), device, dtype, converter)


class Local(Origin):
    """Folders and files on this machine, in the formats that `absorb_pl.saes.folders` reads."""

    @override
    def matches(self, name: str) -> bool:
        return local_path(name) is not None

    @override
    def names(self, pattern: str) -> list[str]:
        if pattern.partition("/")[0] in get_pretrained_saes_directory():  # a release named in full is meant
            return []
        root, relative = Path(pattern).expanduser().anchor or ".", Path(pattern).expanduser()
        within = relative.relative_to(root) if relative.is_absolute() else relative
        named = Path(pattern).suffix  # a pattern over files says so; others select folders
        found = (path for path in Path(root).glob(str(within)) if path.is_dir() or path.suffix == named)
        return sorted(str(path) for path in found if holds_sae(path))

    @override
    def describe(self, name: str) -> dict[str, Any]:
        return {"release": None, **describe_folder(name, self._path(name))}

    @override
    def load(self, name: str, device: str, dtype: str, converter: Converter) -> LoadedSae:
        return load_folder(name, self._path(name), device, dtype, converter)

    def _path(self, name: str) -> Path:
        path = local_path(name)
        assert path is not None
        return path


class Function(Origin):
    """Functions of the user's: `module:function`, with a key if one gives several SAEs."""

    @override
    def matches(self, name: str) -> bool:
        return is_function_name(name)

    @override
    def names(self, pattern: str) -> list[str]:
        if not is_function_name(pattern):
            return []
        function, _ = split_key(pattern)
        made = call_function(function)
        return [f"{function}/{name}" for name in made] if isinstance(made, Mapping) else []

    @override
    def describe(self, name: str) -> dict[str, Any]:
        return {}

    @override
    def load(self, name: str, device: str, dtype: str, converter: Converter) -> LoadedSae:
        if converter is not None:
            raise AbsorbError(
                "converter",
                converter,
                expected="None for an SAE made by a function",
                remedy="Convert it in the function.",
            )
        return loaded_object(name, function_sae(name), device, dtype)


class Release(Origin):
    """SAELens's releases, Gemma Scope among them: `<release>/<id>`."""

    @override
    def matches(self, name: str) -> bool:
        return True

    @override
    def names(self, pattern: str) -> list[str]:
        release, slash, _ = pattern.partition("/")
        if not WILDCARDS & set(release):
            return list(release_names(release)) if release in get_pretrained_saes_directory() else []
        return list(release_names()) if slash else []

    @override
    def describe(self, name: str) -> dict[str, Any]:
        require_release(name)
        return describe_release(name)

    @override
    def load(self, name: str, device: str, dtype: str, converter: Converter) -> LoadedSae:
        return load_release(name, device, dtype, converter)


ORIGINS: list[Origin] = [Bundled(), Local(), Function(), Release()]
"""The origins in order: a name is of the first that it matches."""


def loaded_object(name: str, made: Any, device: str, dtype: str) -> LoadedSae:
    """What loading gives of an SAE that is an object already.

    Args:
        name: What to call it in errors.
        made: The SAE, which may be changed; one in training becomes the inference SAE that SAELens would save.
        device: A torch device.
        dtype: Dtype of the weights.

    Raises:
        SaeInterfaceError: It lacks a member.
        SaeWeightsError: Its weights are no floating-point numbers.
    """
    require_floats(name, sae_tensors(made))
    if isinstance(made, TrainingSAE):
        return inference_sae(made, device, dtype)
    sae = made if isinstance(made, SAE | AdaptedSae) else AdaptedSae(made)
    return sae.to(device=torch.device(device), dtype=check_dtype(dtype))


def origin_of(name: str) -> Origin:
    """The origin of an SAE.

    Args:
        name: Its name, without `@hook` and `#control`.

    Example:
        >>> [type(origin_of(name)).__name__ for name in ("speller/l1-a", "my_saes:load", "some-release/id")]
        ['Bundled', 'Function', 'Release']
    """
    return next(origin for origin in ORIGINS if origin.matches(name))
