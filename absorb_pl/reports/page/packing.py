"""Tables as one text that a page can hold: columns of plain bytes, compressed, in base64."""

import base64
import gzip
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

_MANTISSA_KEPT = 16


def pack(tables: Mapping[str, pd.DataFrame], about: Any = None, *, exact: bool = True) -> str:
    """Pack tables into text.

    The text is base64 of a gzip stream: the length of a header, the header as JSON, and the columns' numbers. Columns
    with the same content, whatever the table, are kept once.

    Args:
        tables: Tables by name. Columns of numbers or text; lists and other plain values are kept as JSON.
        about: Plain values to keep beside them.
        exact: Whether numbers keep all their digits, or five significant ones.

    Returns:
        ASCII text without line breaks.

    Example:
        >>> text = pack({"letters": pd.DataFrame({"label": ["a", "b"], "rate": [0.5, None]})})
        >>> b'"names": ["label", "rate"]' in gzip.decompress(base64.b64decode(text))
        True
    """
    packed = _Columns(exact)
    places = {
        name: {"rows": len(table), "names": list(table.columns), "at": [packed.place(table[one]) for one in table]}
        for name, table in tables.items()
    }
    header = json.dumps({"about": about, "columns": packed.headers, "tables": places}, allow_nan=False).encode()
    whole = b"".join([len(header).to_bytes(4, "little"), header, *packed.parts])
    return base64.b64encode(gzip.compress(whole, compresslevel=6, mtime=0)).decode("ascii")


class _Columns:
    """Columns packed so far."""

    def __init__(self, exact: bool) -> None:
        self.exact = exact
        self.headers: list[dict[str, Any]] = []
        self.parts: list[bytes] = []
        self._length = 0
        self._known: dict[tuple[str, bytes], int] = {}

    def place(self, column: pd.Series) -> int:
        """Number of a column, which is packed unless it is known."""
        header, numbers = self._packed(column)
        content = b"" if numbers is None else _planes(numbers)
        key = json.dumps(header, allow_nan=False), content
        if key not in self._known:
            self._known[key] = len(self.headers)
            place = {} if numbers is None else {"start": self._length, "rows": len(column)}
            self.headers.append({**header, **place})
            self.parts.append(content)
            self._length += len(content)
        return self._known[key]

    def _packed(self, column: pd.Series) -> tuple[dict[str, Any], np.ndarray | None]:
        if column.dtype == bool:
            return {"kind": "u1", "isBool": True}, column.to_numpy().astype("u1")
        if pd.api.types.is_integer_dtype(column.dtype):
            return {"kind": "i4"}, column.to_numpy().astype("<i4")
        if pd.api.types.is_float_dtype(column.dtype):
            if self.exact:
                return {"kind": "f8"}, column.to_numpy().astype("<f8")
            return {"kind": "f4"}, _shortened(column.to_numpy())
        if column.map(type).isin([str]).all():
            codes, levels = pd.factorize(column)
            return {"kind": "i4", "levels": levels.tolist()}, codes.astype("<i4")
        return {"values": [_plain(value) for value in column]}, None


def _shortened(numbers: np.ndarray) -> np.ndarray:
    """Single precision, rounded to the leading 16 bits of the mantissa: to five significant digits."""
    fraction, exponent = np.frexp(numbers.astype("f8"))
    return np.ldexp(np.round(np.ldexp(fraction, _MANTISSA_KEPT + 1)), exponent - _MANTISSA_KEPT - 1).astype("<f4")


def _planes(numbers: np.ndarray) -> bytes:
    """The first byte of all numbers, then the second, and so on, as that compresses better."""
    return np.ascontiguousarray(numbers).view("u1").reshape(len(numbers), numbers.itemsize).T.tobytes()


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        value = value.item()
    return None if value is None or (isinstance(value, float) and np.isnan(value)) else value
