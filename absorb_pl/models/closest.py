"""What somebody may have meant by a name that is not known."""

from collections.abc import Iterable
from difflib import get_close_matches

_COUNT = 3


def closest_names(name: str, known: Iterable[str]) -> str:
    """The known names that are most like one that is not, closest first.

    Spaces around it, a slash after it and the wildcards of a pattern count for nothing.

    Args:
        name: What was asked for.
        known: What there is.

    Returns:
        At most three names, with commas between them; empty if nothing is known.

    Example:
        >>> closest_names(" blue*/", ["black", "blues", "glue", "red", "orange"])
        'blues, glue, black'
    """
    plain = "".join(letter for letter in name.strip().rstrip("/") if letter not in "*?[]")
    return ", ".join(get_close_matches(plain, list(dict.fromkeys(known)), n=_COUNT, cutoff=0.0))
