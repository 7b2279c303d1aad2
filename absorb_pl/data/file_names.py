"""Names of files and folders that are made from names of other things."""

from collections import Counter
from collections.abc import Callable, Iterable

from absorb_pl.data.artifacts import identity_key


def distinct_names(names: Iterable[str], form: Callable[[str], str]) -> dict[str, str]:
    """Form a file's name from each of several names; those that would share one get a hash of their own name in front.

    Args:
        names: Names of things, such as SAEs.
        form: Gives the file's name, before it is made distinct.

    Returns:
        The files' names by the names, distinct also where case does not count.

    Example:
        >>> list(distinct_names(["a/b", "a_b", "c"], lambda name: name.replace("/", "_")).values())
        ['1caedfd9-a_b', '0be3baf9-a_b', 'c']
    """
    plain = {name: form(name) for name in names}
    shared = Counter(file.casefold() for file in plain.values())
    return {
        name: file if shared[file.casefold()] == 1 else f"{identity_key({'name': name})[:8]}-{file}"
        for name, file in plain.items()
    }
