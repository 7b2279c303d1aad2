"""The parts of an SAE's name: where it comes from, the hook that it reads (`@`), and the control asked for (`#`)."""

import re

from absorb_pl.models.placement import local_path
from absorb_pl.saes.controls import CONTROL_KINDS

_AT_HOOK = re.compile(r"(.+)@([\w.]*hook_\w+)")


def split_control(name: str) -> tuple[str, str | None]:
    """Part an SAE's name from the control asked for after it.

    Args:
        name: Name for `load_sae`.

    Returns:
        The name of the SAE itself, and the kind of control or None.

    Example:
        >>> split_control("my_sae#random")
        ('my_sae', 'random')
    """
    sae, _, kind = name.rpartition("#")
    return (sae, kind) if kind in CONTROL_KINDS and local_path(name) is None else (name, None)


def split_hook(name: str) -> tuple[str, str | None]:
    """Part an SAE's name from the hook named after it.

    Args:
        name: Name for `load_sae`.

    Returns:
        The name without the hook, and the hook or None. A path that exists as it reads has no hook after it.

    Example:
        >>> split_hook("my_sae@blocks.3.hook_resid_post")
        ('my_sae', 'blocks.3.hook_resid_post')
    """
    found = _AT_HOOK.fullmatch(name)
    return (name, None) if found is None or local_path(name) is not None else (found[1], found[2])
