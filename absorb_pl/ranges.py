"""Ranges of settings: declared in the type of each setting, shown in the help, checked by one function.

A setting's type says what it may be, as in `steps: Annotated[int, Range(1)]` or `Count`. `check_ranges` reads the types
of a dataclass or of an `__init__` and refuses what lies outside them.
"""

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from absorb_pl.errors import RangeError

_MOST = 2**31 - 1


@dataclass(frozen=True, repr=False)
class Range:
    """The numbers from `least` to `most`; with `above` or `below`, without that end.

    Attributes:
        least: Lower end.
        most: Upper end.
        above: Whether the lower end itself is outside.
        below: Whether the upper end itself is outside.

    Example:
        >>> 0 in Range(0, above=True), 0.5 in Range(0, 1), float("nan") in Range(0)
        (False, True, False)
        >>> Range(0, 1, above=True), Range(2)
        (above 0 and at most 1, at least 2)
    """

    least: float | int = -math.inf
    most: float | int = math.inf
    above: bool = False
    below: bool = False

    def __contains__(self, value: float | int) -> bool:
        return bool(
            abs(value) <= sys.float_info.max
            and (self.least < value if self.above else self.least <= value)
            and (value < self.most if self.below else value <= self.most)
        )

    def __repr__(self) -> str:
        ends = [
            f"{'above' if self.above else 'at least'} {self.least:.10g}" if self.least > -math.inf else "",
            f"{'below' if self.below else 'at most'} {self.most:.10g}" if self.most < math.inf else "",
        ]
        return " and ".join(end for end in ends if end) or "finite"


Count = Annotated[int, Range(1, _MOST)]
"""A number of things, at least one."""
CountOrZero = Annotated[int, Range(0, _MOST)]
"""A number of things, which may be none."""
CountOrMinusOne = Annotated[int, Range(-1, _MOST)]
"""A number of things, which may be none; -1 for as many as there are."""
Place = Annotated[int, Range(-_MOST, -1)] | Count
"""A place counted from the start (1 is the first) or from the end (-1 is the last)."""
Seed = Annotated[int, Range(0, 2**32 - 1)]
"""A seed, as all the generators in use take it."""
Fraction = Annotated[float | int, Range(0, 1)]
"""A fraction, ends included."""
InnerFraction = Annotated[float | int, Range(0, 1, above=True, below=True)]
"""A fraction, without its ends."""
Portion = Annotated[float | int, Range(0, 1, above=True)]
"""A part that is not nothing, of a whole of 1."""
Cosine = Annotated[float | int, Range(-1, 1)]
"""A cosine."""
Finite = Annotated[float | int, Range()]
"""Any number but NaN and the infinite ones."""
NotNegative = Annotated[float | int, Range(0, 10**6)]
"""Zero or more, and such that float32 can compute with it."""
Positive = Annotated[float | int, Range(0, 10**6, above=True)]
"""More than zero, and such that float32 can compute with it."""


def check_ranges(declared: type | Callable[..., Any], values: Mapping[str, Any]) -> None:
    """Refuse settings that their declared types do not allow.

    Looks at numbers with a `Range` and at `Literal`s, also inside of unions and sequences.

    Args:
        declared: A dataclass, or a function whose arguments are annotated.
        values: Settings by name; others than the declared ones are not looked at.

    Raises:
        RangeError: Names the first that is outside, and its range.

    Example:
        >>> def train(epochs: Count = 50, ks: Sequence[Count] = (1, 2)):
        ...     check_ranges(train, locals())
        >>> train(ks=[1, 0])
        Traceback (most recent call last):
            ...
        absorb_pl.errors.RangeError: `ks` was [1, 0], expected a list of one or more, each a whole...
    """
    for name, hint, allows in _declared(declared):
        if name in values and not allows(values[name]):
            raise RangeError(name, values[name], expected=_described(hint), remedy="Choose a value within that.")


@cache
def _declared(declared: type | Callable[..., Any]) -> list[tuple[str, Any, Callable[[Any], bool]]]:
    """Names and types that say what is allowed, and what tells it; made once, for functions that are called often."""
    hints = get_type_hints(declared, include_extras=True)
    return [(name, hint, _test_of(hint)) for name, hint in hints.items() if _says_what(hint)]


def _says_what(hint: Any) -> bool:
    return get_origin(hint) in (Annotated, Literal) or any(map(_says_what, get_args(hint)))


def _test_of(hint: Any) -> Callable[[Any], bool]:
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Literal:
        return lambda value: value in parts
    if origin is Annotated:
        kind: Any = Integral if parts[0] is int else Real
        ranges = [part for part in parts[1:] if isinstance(part, Range)]
        return lambda value: (
            isinstance(value, kind) and not isinstance(value, bool) and all(value in each for each in ranges)
        )
    if origin in (Union, UnionType):
        tests = [_test_of(part) for part in parts]
        return lambda value: any(test(value) for test in tests)
    if origin in (tuple, list, Sequence):
        test, least = _test_of(parts[0]), _least_length(parts[0])
        return lambda value: isinstance(value, Sequence) and len(value) >= least and all(map(test, value))
    return lambda value: isinstance(value, origin or hint)


def _least_length(element: Any) -> int:
    return 1 if get_origin(element) is Annotated else 0  # no numbers at all are never meant


def _described(hint: Any) -> str:
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(map(repr, parts))
    if origin is Annotated:
        return f"a {'whole ' if parts[0] is int else ''}number, {parts[1]!r}"
    if origin in (Union, UnionType):
        return " or ".join(map(_described, parts))
    if parts:
        return f"a list{' of one or more' * _least_length(parts[0])}, each {_described(parts[0])}"
    return "None" if hint is NoneType else hint.__name__
