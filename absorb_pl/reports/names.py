"""Names of SAEs as reports show them: without the folders that all of them share, and as names of folders."""

import re
from collections.abc import Iterable


def shared_folder(names: Iterable[str]) -> str:
    """The folders at the beginning of all names, with a slash at the end; nothing for a single name.

    Args:
        names: Names of SAEs.

    Example:
        >>> shared_folder(["speller/l1-a", "speller/l2-b"])
        'speller/'
        >>> shared_folder(["res/layer_3/width_16k/l0_59", "res/layer_3/width_65k/l0_41"])
        'res/layer_3/'
        >>> shared_folder(["speller/l1-a"]), shared_folder(["speller/l1-a", "my_sae"])
        ('', '')
    """
    distinct = set(names)
    if len(distinct) < 2:
        return ""
    shared = []
    for folders in zip(*(name.split("/")[:-1] for name in distinct), strict=False):
        if len(set(folders)) > 1:
            break
        shared.append(folders[0])
    return "".join(f"{folder}/" for folder in shared)


def short_names(names: Iterable[str]) -> dict[str, str]:
    """Names without their shared folders, by the whole names.

    Args:
        names: Names of SAEs.

    Example:
        >>> short_names(["speller/l1-a", "speller/l2-b"])
        {'speller/l1-a': 'l1-a', 'speller/l2-b': 'l2-b'}
    """
    names = list(names)
    shared = len(shared_folder(names))
    return {name: name[shared:] for name in names}


def folder_names(names: Iterable[str], taken: Iterable[str] = ()) -> dict[str, str]:
    """Names of folders by the names of SAEs: what a path cannot hold is replaced, and no two are equal.

    Args:
        names: Names of SAEs.
        taken: Folders that are spoken for.

    Example:
        >>> folder_names(["a/b/c", "a/b-c", "a/study"], taken=["study"])
        {'a/b/c': 'b-c', 'a/b-c': 'b-c-2', 'a/study': 'study-2'}
    """
    used = {name.lower() for name in taken}
    folders = {}
    for name, short in short_names(names).items():
        plain = re.sub(r"[^\w.#=+-]+", "-", short).strip("-.") or "sae"
        folder, number = plain, 1
        while folder.lower() in used:
            number += 1
            folder = f"{plain}-{number}"
        used.add(folder.lower())
        folders[name] = folder
    return folders
