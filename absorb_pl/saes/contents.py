"""What an object of the user's is made of: its tensors, its settings, and the code that it runs."""

import sys
import sysconfig
from collections.abc import Mapping, Set
from functools import partial
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_LIBRARIES = tuple(
    str(Path(path).resolve()) for name, path in sysconfig.get_paths().items() if name.endswith(("stdlib", "lib"))
)
_LIGHT = bool | int | float | complex | str | bytes | torch.dtype | None
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


class Contents:
    """Walks an object and all that it reaches, each thing once.

    Code counts as it was loaded, without comments and line numbers: that of the object's class, of functions among its
    attributes, and of what they use. Of the standard library and of installed packages only names count, so an update
    of a package is not seen; and bytecode differs between versions of Python.

    Attributes:
        tensors: Tensors by their place in the object.

    Example:
        >>> from types import SimpleNamespace
        >>> contents = Contents()
        >>> contents.describe(SimpleNamespace(scale=2.0, weights={"enc": torch.eye(2)}), "sae", skip={"name"})
        {'object': 'types.SimpleNamespace', 'scale': '2.0', 'weights': {'enc': 'a tensor'}}
        >>> list(contents.tensors)
        ['sae.weights.enc']
    """

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._seen: dict[int, tuple[int, Any]] = {}  # values too, as ids of those that are gone come again

    def describe(self, value: Any, place: str, skip: Set[str] = frozenset()) -> Any:
        """Describe a value by what `json` can write.

        Args:
            value: Anything.
            place: Where it stands, which names its tensors.
            skip: Attributes of the value itself that do not count.
        """
        if isinstance(value, _LIGHT):
            return repr(value)
        if isinstance(value, np.ndarray):
            value = torch.as_tensor(value)
        if isinstance(value, Tensor):
            self.tensors[place] = value
            return "a tensor"
        if id(value) in self._seen:
            return f"thing {self._seen[id(value)][0]}"
        self._seen[id(value)] = len(self._seen), value
        if isinstance(value, Mapping):
            return {str(key): self.describe(each, f"{place}.{key}") for key, each in value.items()}
        if isinstance(value, Set):
            return sorted(map(repr, value))
        if isinstance(value, list | tuple):
            return [self.describe(each, f"{place}.{number}") for number, each in enumerate(value)]
        if isinstance(value, partial):
            return [self.describe(part, place) for part in (value.func, value.args, value.keywords)]
        if isinstance(value, MethodType):
            return [self.describe(part, place) for part in (value.__func__, value.__self__)]
        if isinstance(value, FunctionType):
            return self._function(value, place)
        if isinstance(value, type):
            return self._class(value, place)
        if isinstance(value, ModuleType) or not hasattr(value, "__dict__"):
            return getattr(value, "__qualname__", type(value).__qualname__)
        return self._object(value, place, skip)

    def _object(self, value: Any, place: str, skip: Set[str]) -> dict[str, Any]:
        kind = type(value)
        said = {"object": f"{kind.__module__}.{kind.__qualname__}"}
        if not _of_a_library(kind.__module__):
            said["object"] = self.describe(kind, place)
        own = {name: each for name, each in vars(value).items() if name not in skip}
        if isinstance(value, nn.Module):
            own = {name: each for name, each in own.items() if name not in _OF_EVERY_MODULE and name != "training"}
            own |= dict(value.named_children())
            for name, tensor in value.state_dict().items():
                self.tensors.setdefault(f"{place}.{name}", tensor)
        return said | {name: self.describe(each, f"{place}.{name}") for name, each in own.items()}

    def _class(self, kind: type, place: str) -> Any:
        if _of_a_library(kind.__module__):
            return f"{kind.__module__}.{kind.__qualname__}"
        own = {name: each for name, each in vars(kind).items() if name[:2] != "__" or callable(each)}
        parts = {name: self.describe(_underlying(each), f"{place}.{name}") for name, each in own.items()}
        return {"class": kind.__qualname__, "bases": [self.describe(base, place) for base in kind.__bases__]} | parts

    def _function(self, function: FunctionType, place: str) -> Any:
        if _of_a_library(function.__module__):
            return f"{function.__module__}.{function.__qualname__}"
        code = function.__code__
        inside = [cell.cell_contents for cell in function.__closure__ or () if _is_filled(cell)]
        used = {name: function.__globals__[name] for name in _names(code) if name in function.__globals__}
        for module in [each for each in used.values() if isinstance(each, ModuleType)]:
            if not _of_a_library(module.__name__):
                used |= {f"{module.__name__}.{name}": vars(module)[name] for name in _names(code) & set(vars(module))}
        return {
            "code": _code(code),
            "defaults": self.describe([function.__defaults__, function.__kwdefaults__], f"{place}.defaults"),
            "closure": self.describe(inside, f"{place}.closure"),
            "globals": {name: self.describe(used[name], f"{place}.{name}") for name in sorted(used)},
        }


def _code(code: CodeType) -> list[Any]:
    constants = [
        _code(each) if isinstance(each, CodeType) else sorted(map(repr, each)) if isinstance(each, Set) else repr(each)
        for each in code.co_consts
    ]
    return [code.co_code.hex(), constants, code.co_names, code.co_varnames, code.co_freevars]


def _names(code: CodeType) -> set[str]:
    inside = [_names(each) for each in code.co_consts if isinstance(each, CodeType)]
    return set(code.co_names).union(*inside)


def _underlying(member: Any) -> Any:
    """The functions of what a class wraps them in."""
    if isinstance(member, property):
        return [member.fget, member.fset]
    return getattr(member, "__func__", member)


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False


def _of_a_library(name: str | None) -> bool:
    top = (name or "builtins").partition(".")[0]
    if top in sys.stdlib_module_names or top == __name__.partition(".")[0]:
        return True
    file = getattr(sys.modules.get(name or ""), "__file__", None)
    return file is not None and str(Path(file).resolve()).startswith(_LIBRARIES)
