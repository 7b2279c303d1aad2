"""SAEs made by a function of the user's: `module:function`, with literal arguments and a key if it gives several."""

import ast
import importlib
import os
import re
import sys
from collections.abc import Mapping
from typing import Any

from absorb_pl.errors import SaeNotFoundError

_NAME = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):([A-Za-z_]\w*)(\(.*?\))?(?:/(.+))?")


def is_function_name(name: str) -> bool:
    """Tell whether a name means a function.

    Args:
        name: Any name of an SAE.

    Returns:
        True for `module:function`, `module:function(layer=3)` and either with `/key` after it.

    Example:
        >>> is_function_name("my_saes:load(layer=3)/wide"), is_function_name("gpt2-small-res-jb/blocks.0")
        (True, False)
    """
    return _NAME.fullmatch(name) is not None


def split_key(name: str) -> tuple[str, str | None]:
    """Part the name of a function from the key after it.

    Args:
        name: A name that means a function.

    Returns:
        The name up to the key, and the key or None.

    Example:
        >>> split_key("my_saes:load(layer=3)/wide")
        ('my_saes:load(layer=3)', 'wide')
    """
    found = _NAME.fullmatch(name)
    key = None if found is None else found[4]
    return (name, None) if key is None else (name.removesuffix(f"/{key}"), key)


def call_function(name: str) -> Any:
    """Import a module, from the working folder too, and call its function.

    The module's code runs, so name only modules that you trust. Arguments are Python literals and go by name.

    Args:
        name: `module:function` or `module:function(layer=3)`.

    Returns:
        One SAE, or a mapping of names to SAEs.

    Raises:
        SaeNotFoundError: There is no such module or function, or the arguments are not literals.

    Example:
        >>> call_function("absorb_pl.saes.bundled:list_bundled_saes")[0]
        'speller/l1-batchtopk-w1024-medium'
    """
    found = _NAME.fullmatch(name)
    if found is None:
        raise _refused(name, "It does not read so.")
    module, function, arguments = found[1], found[2], found[3]
    try:
        loaded = _import(module)
    except ImportError as error:
        raise _refused(name, f"{error}.") from error
    made = getattr(loaded, function, None)
    if not callable(made):
        raise _refused(name, f"There is no function {function} in {module}.")
    return made(**_literals(name, arguments or "()"))


def function_sae(name: str) -> Any:
    """Call a function and take the SAE that the name means.

    Args:
        name: `module:function`, with `/key` after it where the function gives a mapping.

    Returns:
        The SAE.

    Raises:
        SaeNotFoundError: See `call_function`; or the function gives several SAEs and the key is none of theirs.
    """
    base, key = split_key(name)
    made = call_function(base)
    if not isinstance(made, Mapping) and key is None:
        return made
    if not isinstance(made, Mapping):
        raise _refused(name, "The function gives one SAE, so no key goes after its name.")
    if key not in made:
        raise _refused(name, f"The function gives several SAEs; name one: {', '.join(f'{base}/{k}' for k in made)}.")
    return made[key]


def _import(module: str) -> Any:
    here = os.getcwd()
    if here in sys.path or "" in sys.path:
        return importlib.import_module(module)
    sys.path.append(here)
    try:
        return importlib.import_module(module)
    finally:
        sys.path.remove(here)


def _literals(name: str, arguments: str) -> dict[str, Any]:
    try:
        call = ast.parse(f"f{arguments}", mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
            raise ValueError("they go by name, as in (layer=3)")
        return {_argument(keyword): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError) as error:
        raise _refused(name, f"Its arguments must be Python literals: {error}.") from error


def _argument(keyword: ast.keyword) -> str:
    if keyword.arg is None:
        raise ValueError("each goes by its name, as in (layer=3)")
    return keyword.arg


def _refused(name: str, reason: str) -> SaeNotFoundError:
    return SaeNotFoundError(
        "name", name, expected="`module:function` that gives an SAE or a mapping of names to SAEs", remedy=reason
    )
