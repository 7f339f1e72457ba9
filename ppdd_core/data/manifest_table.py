"""The CSV manifest of a source dataset: bytes in, checked rows out.

Columns: `path,label[,patient_id][,split][,any other column]`. Which file a path names, and whether it
exists, is the business of `sources.py`.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ppdd_core.data.names import safe_name, shown
from ppdd_core.errors import BadConfigError, SourceError

MAX_BYTES = 128 * 2**20
MAX_ROWS = 1_000_000
MAX_COLUMNS = 64
MAX_CELL = 1024  # characters

SPLITS = {
    "": "",
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class Row:
    """One image as the manifest describes it; `cells` are all columns, in the manifest's order."""

    path: str
    label: str
    patient: str
    split: str
    cells: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ManifestTable:
    """A manifest that was read and checked; `columns` names the cells of every row."""

    columns: tuple[str, ...]
    rows: tuple[Row, ...]


def parse_manifest(data: bytes, *, name: str) -> ManifestTable:
    """Return the rows of a CSV manifest; a byte order mark and `;` between columns are tolerated.

    Raises SourceError naming the line for text that is not UTF-8, missing or repeated columns,
    empty paths or labels, unknown splits, rows of the wrong length and absurd sizes;
    UnsafeSourceError for a path that leaves the dataset.
    """
    if len(data) > MAX_BYTES:
        raise SourceError(
            f"{shown(name)} is larger than the {MAX_BYTES >> 20} MiB a manifest may be"
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as fault:
        raise SourceError(
            f"{shown(name)} is not UTF-8 text (byte {fault.start}); save it as 'CSV UTF-8'"
        ) from None
    lines = _cells(text, name)
    _, header = next(lines, (0, []))
    columns = tuple(cell.strip().lower() for cell in header)
    _check_columns(columns, name)
    rows: list[Row] = []
    for number, cells in lines:
        if len(rows) == MAX_ROWS:
            raise SourceError(f"{shown(name)} has more than {MAX_ROWS:,} rows")
        rows.append(_row(columns, cells, f"{shown(name)}, line {number}"))
    if not rows:
        raise SourceError(f"{shown(name)} has a header but no rows")
    return ManifestTable(columns, tuple(rows))


def choose_rows(table: ManifestTable, where: Mapping[str, str]) -> tuple[Row, ...]:
    """Return the rows in which every column of `where` has the value asked for.

    Raises BadConfigError, listing what there is, for a column or a value that does not occur.
    """
    rows = table.rows
    for name, value in where.items():
        column = name.strip().lower()
        if column not in table.columns:
            raise BadConfigError(
                f"--where {shown(f'{name}={value}')}: the manifest has no column {shown(name)}; "
                f"its columns are {_some(table.columns)}"
            )
        at = table.columns.index(column)
        if all(row.cells[at] != value for row in table.rows):
            values = sorted({row.cells[at] for row in table.rows})
            raise BadConfigError(
                f"--where {shown(f'{name}={value}')}: no row has this value; column {shown(name)} "
                f"holds {_some(tuple(values))}"
            )
        rows = tuple(row for row in rows if row.cells[at] == value)
    if not rows:
        asked = " and ".join(shown(f"{name}={value}") for name, value in where.items())
        raise BadConfigError(f"--where: each value occurs, but no row has {asked} at once")
    return rows


def _cells(text: str, name: str) -> Iterator[tuple[int, list[str]]]:
    first = text.split("\n", 1)[0]
    delimiter = ";" if ";" in first and "," not in first else ","
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        for cells in reader:
            if len(cells) > MAX_COLUMNS:
                raise SourceError(
                    f"{shown(name)}, line {reader.line_num} has {len(cells):,} columns; "
                    f"at most {MAX_COLUMNS} are read"
                )
            if any(cells):
                yield reader.line_num, cells
    except csv.Error as fault:
        raise SourceError(f"{shown(name)}, line {reader.line_num}: {fault}") from None


def _check_columns(columns: tuple[str, ...], name: str) -> None:
    missing = [column for column in ("path", "label") if column not in columns]
    if missing:
        raise SourceError(
            f"{shown(name)} lacks the column {' and '.join(missing)}; its first line must name "
            f"path,label[,patient_id][,split], and names {_some(columns)}"
        )
    twice = sorted({column for column in columns if columns.count(column) > 1})
    if twice:
        raise SourceError(f"{shown(name)} names the column {shown(twice[0])} twice")


def _row(columns: tuple[str, ...], cells: list[str], where: str) -> Row:
    if len(cells) != len(columns):
        raise SourceError(f"{where} has {len(cells)} columns, the header has {len(columns)}")
    if any(len(cell) > MAX_CELL for cell in cells):
        raise SourceError(f"{where} has a cell of more than {MAX_CELL} characters")
    values = tuple(cell.strip() for cell in cells)
    known = dict(zip(columns, values, strict=True))
    # the raw path: stripping would hide control characters at its ends
    path = safe_name(cells[columns.index("path")].strip(" "), where=where)
    label, split = known["label"], known.get("split", "").lower()
    if not label or _CONTROL.search(label):
        raise SourceError(f"{where} has no usable label ({shown(label)})")
    if split not in SPLITS:
        raise SourceError(
            f"{where} has the split {shown(known['split'])}; use train, validation, test or nothing"
        )
    return Row(path, label, known.get("patient_id", ""), SPLITS[split], values)


def _some(values: tuple[str, ...], limit: int = 12) -> str:
    """Return up to `limit` values for a message, and how many more there are."""
    text = ", ".join(shown(value, 40) for value in values[:limit]) or "nothing"
    return text if len(values) <= limit else f"{text} and {len(values) - limit:,} more"
