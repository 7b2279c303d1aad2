"""Tables of labelled texts, CSV or Parquet: read whole, and refused by file, column and row if they do not fit."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow
import pyarrow.parquet

from absorb_pl.errors import TaskTableError

BUNDLED_TABLES = Path(__file__).parent / "assets"
"""Folder of the tables that ship with the package; each is known by its file name without the ending."""


@dataclass(frozen=True)
class LabelledTexts:
    """Texts with their labels, in the order of the file.

    Attributes:
        path: The file.
        texts: The texts, each once, without white space around them.
        labels: Label of each.
        parents: Coarser label of each, or an empty tuple.
        places: Where each stands in the file: `line 7` of a CSV file, `row 6` of a Parquet table.
    """

    path: Path
    texts: tuple[str, ...]
    labels: tuple[str, ...]
    parents: tuple[str, ...]
    places: tuple[str, ...]


def find_table(path: str) -> Path:
    """Find the file that a setting names.

    Args:
        path: A CSV or Parquet file, or the name of a bundled table (`city_country`). A file comes first.

    Returns:
        The file's path.

    Raises:
        TaskTableError: If there is no such file; the message lists the bundled tables.

    Example:
        >>> find_table("city_country").name
        'city_country.csv'
    """
    file = Path(path).expanduser()
    if file.is_file():
        return file
    bundled = BUNDLED_TABLES / f"{path}.csv"
    if file.name == path and bundled.is_file():
        return bundled
    names = ", ".join(sorted(table.stem for table in BUNDLED_TABLES.glob("*.csv")))
    raise TaskTableError(
        "table.path",
        path,
        expected="a CSV or Parquet file, or a bundled table",
        remedy=f"The bundled ones are {names}.",
    )


def read_labelled_texts(path: str | Path, text: str, label: str, parent: str | None = None) -> LabelledTexts:
    """Read the labelled texts of a table.

    A CSV file is UTF-8, with commas and a header, quoted as RFC 4180 says; lines without any cell are skipped. Every
    cell is text: `NA` is a label like another.

    Args:
        path: As in `find_table`.
        text: Column of the texts.
        label: Column of the labels.
        parent: Column of the coarser labels; None without.

    Returns:
        One entry per row.

    Raises:
        TaskTableError: If the file cannot be read or has no rows, a column is missing or stands twice, a cell is
            empty, a text stands twice, or a label stands below two parents. The message names the file, the column
            and the row.

    Example:
        >>> table = read_labelled_texts("city_country", "city", "country", "continent")
        >>> row = table.texts.index("Lyon")
        >>> table.labels[row], table.parents[row]
        ('France', 'Europe')
    """
    file = find_table(str(path))
    columns = [text, label, *([] if parent is None else [parent])]
    if len(set(columns)) < len(columns):
        raise TaskTableError(
            "table",
            columns,
            expected=f"a column of {file} of its own for texts, labels and parents",
            remedy="Name each column once; leave `parent` out for labels without one.",
        )
    header, rows = _read_parquet(file, columns) if file.suffix.lower() == ".parquet" else _read_csv(file)
    wanted = [_column(file, header, column) for column in columns]
    cells: list[tuple[str, ...]] = []
    for place, row in rows:
        picked = tuple(row[number].strip() for number in wanted)
        if "" in picked:
            _refuse(file, columns[picked.index("")], place, "", "a text in every cell", "Fill it in, or drop the row.")
        cells.append(picked)
    if not cells:
        raise TaskTableError(
            "table.path", str(file), expected="rows below the header", remedy="Give it a row for each text."
        )
    texts, labels, *rest = (tuple(column) for column in zip(*cells, strict=True))
    table = LabelledTexts(file, texts, labels, rest[0] if rest else (), tuple(place for place, _ in rows))
    _check_texts(table, text)
    _check_parents(table, label)
    return table


def _read_csv(file: Path) -> tuple[list[str], list[tuple[str, list[str]]]]:
    if file.suffix.lower() != ".csv":
        raise TaskTableError(
            "table.path",
            str(file),
            expected="a name that ends in .csv or .parquet",
            remedy="Save it as one of the two.",
        )
    rows: list[tuple[str, list[str]]] = []
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, strict=True)
            header = next(reader, [])
            rows.extend((f"line {reader.line_num}", row) for row in reader if row)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _unreadable(file, error) from error
    for place, row in rows:
        if len(row) != len(header):
            raise TaskTableError(
                str(file),
                f"{len(row)} cells in {place}",
                expected=f"the {len(header)} columns of the header",
                remedy="Put quotes around texts that hold a comma.",
            )
    return [name.strip() for name in header], rows


def _read_parquet(file: Path, columns: Sequence[str]) -> tuple[list[str], list[tuple[str, list[str]]]]:
    try:
        header = pyarrow.parquet.read_schema(file).names
        known = list(dict.fromkeys(column for column in columns if header.count(column) == 1))
        table = pyarrow.parquet.read_table(file, columns=known)
    except (OSError, pyarrow.ArrowException) as error:
        raise _unreadable(file, error) from error
    values = {column: table.column(column).to_pylist() for column in known}
    rows = [
        (f"row {number + 1}", ["" if cell is None else str(cell) for cell in row])
        for number, row in enumerate(zip(*(values.get(name, [None] * len(table)) for name in header), strict=True))
    ]
    return header, rows


def _column(file: Path, header: Sequence[str], column: str) -> int:
    times = header.count(column)
    if times != 1:
        raise TaskTableError(
            "table",
            column,
            expected=f"one of the columns of {file}: {', '.join(dict.fromkeys(header)) or 'it has none'}",
            remedy="Name a column that is there."
            if not times
            else f"It stands there {times} times; rename the others.",
        )
    return header.index(column)


def _check_texts(table: LabelledTexts, column: str) -> None:
    first: dict[str, str] = {}
    for text, place in zip(table.texts, table.places, strict=True):
        if text in first:
            _refuse(table.path, column, place, text, "each text once", f"It stands in {first[text]} too; drop one.")
        first[text] = place


def _check_parents(table: LabelledTexts, column: str) -> None:
    first: dict[str, tuple[str, str]] = {}
    for label, parent, place in zip(table.labels, table.parents or table.labels, table.places, strict=True):
        known, where = first.setdefault(label, (parent, place))
        if known != parent:
            _refuse(
                table.path,
                column,
                place,
                label,
                f"one parent of each label, {known!r} as in {where}, not {parent!r}",
                "Give labels with two meanings two names.",
            )


def _refuse(file: Path, column: str, place: str, value: str, expected: str, remedy: str) -> None:
    raise TaskTableError(f"{file}, column {column}, {place}", value, expected=expected, remedy=remedy)


def _unreadable(file: Path, error: Exception) -> TaskTableError:
    reason = str(error).strip().split("\n")[0]
    return TaskTableError(
        "table.path", str(file), expected="a CSV file in UTF-8 or a Parquet file", remedy=f"It does not read: {reason}."
    )
