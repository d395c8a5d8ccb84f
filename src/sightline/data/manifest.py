"""Manifests: CSV, JSONL and Parquet tables of images, read into plain columns.

CSV is read as spreadsheets and table tools write it: see ``_read_csv``.
"""

from __future__ import annotations

import csv
import datetime
import decimal
import difflib
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sightline.errors import DataError

MANIFEST_SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
COLUMNS = ("path", "label", "cluster", "positive", "camera", "split", "caption", "box")
SIDES = (
    ("left", "top", "right", "bottom"),
    ("x0", "y0", "x1", "y1"),
    ("x1", "y1", "x2", "y2"),
    ("xmin", "ymin", "xmax", "ymax"),
    ("x_min", "y_min", "x_max", "y_max"),
    ("x", "y", "w", "h"),
    ("x", "y", "width", "height"),
)
"""What other tools call four columns that make a box."""

NO_BOX = (math.nan,) * 4
EXAMPLE = '{"path": "a.jpg", "label": "cat"}'
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
ROW_NUMBERS = ("", "Unnamed: 0", "__index_level_0__")
"""What pandas calls the column of row numbers: nothing in CSV, as it reads that again, and in Parquet."""

_DECIMAL_COMMA = re.compile(r"-?\d+(,\d+)?", re.ASCII)

TOO_LIKE = 0.8
"""A column whose name is so like that of a known one, which is missing, is a slip of the pen: its labels must not be lost in silence."""

Row = Mapping[str, Any]
Value = str | int | float | bool | None


@dataclass(frozen=True)
class Columns:
    """A manifest's columns as plain lists of one length; a column that the file lacks is None. A cluster is a label.

    ``extras`` are the columns of other names: texts, finite numbers, true, false, or None where a cell is empty. ``unused`` says of each
    other column that holds anything else what is wrong with it.
    """

    path: list[str]
    label: list[str] | None
    positive: list[tuple[str, ...]] | None
    camera: list[str] | None
    split: list[str] | None
    caption: list[str] | None
    box: list[tuple[float, ...]] | None
    extras: dict[str, list[Value]]
    unused: dict[str, str]


def read_columns(where: Path) -> Columns:
    """Return the columns of a manifest.

    Raises:
        DataError: the file cannot be read, has no rows, a column is missing or misspelt, or a cell is wrong; the message gives its line.
    """
    reader = {".csv": _read_csv, ".tsv": _read_csv, ".jsonl": _read_jsonl, ".parquet": _read_parquet}[where.suffix.lower()]
    try:
        table = reader(where)
    except UnicodeDecodeError as error:
        raise DataError(f"{where} is not UTF-8 text (byte {error.start}): save it as UTF-8") from error
    except OSError as error:
        raise DataError(f"{where} cannot be read ({error.strerror or error}): check the file and its permissions") from error
    table = _named(where, table)
    _check_names(where, table)
    if not table["path"]:
        raise DataError(f"{where} has no rows: give one row for each image")
    extras, unused = _extras(table, from_text=where.suffix.lower() in (".csv", ".tsv"))
    return Columns(
        path=[_text(where, line, "path", cell) for line, cell in enumerate(table["path"], 1)],
        label=_texts(where, table, "cluster" if "cluster" in table else "label"),
        positive=None if "positive" not in table else [_positive(where, line, cell) for line, cell in enumerate(table["positive"], 1)],
        camera=_texts(where, table, "camera"),
        split=_texts(where, table, "split"),
        caption=None if "caption" not in table else ["" if cell is None else str(cell) for cell in table["caption"]],
        box=None if "box" not in table else [_box(where, line, cell) for line, cell in enumerate(table["box"], 1)],
        extras=extras,
        unused=unused,
    )


def unread_box(where: Path, columns: Columns) -> tuple[str, ...]:
    """Return what there is to say of a box that stands in four columns: it is not read as one."""
    if columns.box is not None:
        return ()
    names = {name.lower(): name for name in (*columns.extras, *columns.unused)}
    found = next((sides for sides in SIDES if all(side in names for side in sides)), ())
    if not found:
        return ()
    shown = ", ".join(names[name] for name in found)
    return (
        f"{where}: {shown} look like a box and are not read as one, so pictures are taken whole: write a column 'box' of x0 y0 x1 y1 in pixels for "
        "their parts",
    )


def _check_names(where: Path, table: Mapping[str, list[Any]]) -> None:
    missing = [name for name in COLUMNS if name not in table]
    for name in table:
        meant = [] if name in COLUMNS else difflib.get_close_matches(name.strip().lower(), missing, n=1, cutoff=TOO_LIKE)
        if meant:
            sides = " (of x0 y0 x1 y1 in pixels; COCO's is x y width height)" if meant == ["box"] else ""
            raise DataError(
                f"unknown column '{name}' in {where}; did you mean '{meant[0]}'{sides}? Rename it to that, or to something less like it"
            )
    if "label" in table and "cluster" in table:
        raise DataError(f"{where} has both 'label' and 'cluster', which are two names of one column: leave one out")
    if "path" not in table:
        raise DataError(f"{where} has no column 'path' (columns: {', '.join(table) or 'none'}): name the column of file names 'path'")


def _named(where: Path, table: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    """Return the table with our names in lower case and without a column of row numbers.

    Raises:
        DataError: a column has no name and more in it than row numbers, or two have one name.
    """
    named: dict[str, list[Any]] = {}
    for name, cells in table.items():
        own = name.strip()
        own = own.lower() if own.lower() in COLUMNS else own
        if _is_row_numbers(where, own, cells):
            continue
        if own in named:
            raise DataError(f"{where} has a column twice: {', '.join(table)}")
        named[own] = cells
    return named


def _is_row_numbers(where: Path, name: str, cells: Sequence[Any]) -> bool:
    """Return whether a column is what a table tool adds by itself: row numbers, or nothing at all, without a name.

    Raises:
        DataError: it has no name and holds something else.
    """
    if name not in ROW_NUMBERS:
        return False
    other = next((cell for cell in cells if cell is not None and not str(cell).isdecimal()), None)
    if other is not None and not name:
        raise DataError(f"{where} has a column with no name (it holds '{other}'): name it in the first line, or leave it out")
    return other is None


def _read_csv(where: Path) -> dict[str, list[Any]]:
    """Return the columns of a CSV file, whatever separates its cells.

    The separator is the one by which the first line names most of our columns, else the one that divides it most; a line ``sep=;`` as
    Excel knows it says which. Rows of nothing, and cells of nothing behind the last column, are passed over.

    Raises:
        DataError: the first line holds no names, or a row has another number of cells.
    """
    file = io.StringIO(where.read_bytes().decode("utf-8-sig"), newline="")  # csv sees to line ends: one may stand within quotes
    first = file.readline().rstrip("\r\n")
    separator = first.removeprefix("sep=") if re.fullmatch("sep=.", first) else ""
    if not separator:
        separator = _separator(first)
        file.seek(0)
    lines = csv.reader(file, delimiter=separator)
    try:
        rows = [(lines.line_num, row) for row in lines if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise DataError(
            f"{where} line {lines.line_num} is not CSV ({error}): save it as UTF-8 CSV with {SEPARATORS.get(separator, repr(separator))}"
        ) from error
    names = [name.strip() for name in rows[0][1]] if rows else []
    if len(filled := [name for name in names if name]) != len(set(filled)):
        raise DataError(f"{where} has a column twice: {', '.join(names)}")
    if names and not {name.lower() for name in names} & set(COLUMNS) and any(_is_file_name(name) for name in names):
        raise DataError(
            f"{where} has no header: its first line is '{separator.join(names)}'; put the columns' names above it, such as path{separator}label"
        )
    cells: list[list[Any]] = [[] for _ in names]
    for number, row in rows[1:]:
        if len(row) < len(names) or any(cell.strip() for cell in row[len(names) :]):
            raise DataError(
                f"{where} line {number} has {len(row)} cells, the header {len(names)}: put quotes round a cell that holds the separator "
                f"({SEPARATORS.get(separator, repr(separator))})"
            )
        for column, cell in zip(cells, row, strict=False):
            column.append(cell.strip() or None)
    columns = {name: column for name, column in zip(names, cells, strict=True) if not _is_row_numbers(where, name, column)}
    return {name: _with_points(column) for name, column in columns.items()} if separator == ";" else columns


def _with_points(cells: list[str | None]) -> list[str | None]:
    """Return a column of numbers with decimal points: programs that part cells by semicolons do so where the comma is the decimal sign."""
    filled = [cell for cell in cells if cell is not None]
    if not all(_DECIMAL_COMMA.fullmatch(cell) and _NUMBER.fullmatch(cell.replace(",", ".")) for cell in filled):
        return cells
    return [None if cell is None else cell.replace(",", ".") for cell in cells]


def _separator(header: str) -> str:
    def fits(separator: str) -> tuple[int, int]:
        names = [name for row in csv.reader([header], delimiter=separator) for name in row]
        return sum(name.strip().lower() in COLUMNS for name in names), len(names)

    return max(SEPARATORS, key=fits)


def _is_file_name(cell: str) -> bool:
    return "/" in cell or "\\" in cell or re.fullmatch(r".+\.[A-Za-z]{3,4}", cell) is not None


def _read_jsonl(where: Path) -> dict[str, list[Any]]:
    rows: list[Row] = []
    names: dict[str, None] = {}
    with where.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (json.JSONDecodeError, RecursionError) as error:
                raise DataError(f"{where} line {number} is not JSON ({error}): write one object a line, like {EXAMPLE}") from error
            if not isinstance(row, dict):
                raise DataError(f"{where} line {number} is not an object: write it like {EXAMPLE}")
            names.update(dict.fromkeys(row))
            rows.append(row)
    return {name: [row.get(name) for row in rows] for name in names} or {"path": []}


def _read_parquet(where: Path) -> dict[str, list[Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # ParquetFile, not read_table: the latter takes a folder named like key=value for a partition and adds its column.
        table = pq.ParquetFile(where).read()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(f"{where} is not a Parquet file ({str(error).splitlines()[0]}): write it again") from error
    return {name: table.column(name).to_pylist() for name in table.column_names}


def _texts(where: Path, table: Mapping[str, list[Any]], name: str) -> list[str] | None:
    if name not in table:
        return None
    return [_text(where, row, name, cell) for row, cell in enumerate(table[name], 1)]


def _text(where: Path, row: int, name: str, cell: Any) -> str:
    if isinstance(cell, float) and cell.is_integer():
        cell = int(cell)  # a column of whole numbers with a gap becomes float on its way through many a table tool
    if cell is None or cell == "" or not isinstance(cell, str | int) or isinstance(cell, bool):
        what = "empty" if cell is None or cell == "" else f"{cell!r}"
        raise DataError(f"{where} row {row}: {name} is {what}: give a text or a whole number in every row, or leave the column out")
    return str(cell)


def _positive(where: Path, row: int, cell: Any) -> tuple[str, ...]:
    cells = cell if isinstance(cell, list) else [] if cell is None or cell == "" else [cell]
    return tuple(_text(where, row, "positive", name) for name in cells)


def _box(where: Path, row: int, cell: Any) -> tuple[float, ...]:
    if cell is None or cell == "":
        return NO_BOX
    parts: Sequence[Any] = _box_parts(cell) if isinstance(cell, str) else cell
    try:
        box = tuple(float(part) for part in parts)
    except (TypeError, ValueError):
        box = ()
    if len(box) != 4:
        raise DataError(f"{where} row {row}: box is {cell!r}: write x0 y0 x1 y1 in pixels")
    return box


def _box_parts(cell: str) -> list[str]:
    """Return the numbers of a box that is written with blanks or commas between them, or with blanks and decimal commas."""
    parts = cell.split()
    if len(parts) == 4 and all(_DECIMAL_COMMA.fullmatch(part) for part in parts):
        return [part.replace(",", ".") for part in parts]
    return cell.replace(",", " ").split()


# --- other columns ----------------------------------------------------------------------------------------------------------------

_NUMBER = re.compile(r"[-+]?(?:0|[1-9]\d*)(?:\.\d*)?(?:[eE][-+]?\d+)?|[-+]?\.\d+(?:[eE][-+]?\d+)?", re.ASCII)
_TRUTH = {"true": True, "false": False}


def _extras(table: Mapping[str, list[Any]], *, from_text: bool) -> tuple[dict[str, list[Value]], dict[str, str]]:
    extras: dict[str, list[Value]] = {}
    unused: dict[str, str] = {}
    for name, cells in table.items():
        if name in COLUMNS:
            continue
        try:
            values = [_value(cell) for cell in cells]
        except ValueError as error:
            unused[name] = str(error)
        else:
            extras[name] = _typed(values) if from_text else values
    return extras, unused


def _value(cell: Any) -> Value:
    if isinstance(cell, datetime.date | datetime.time):
        return cell.isoformat()
    if isinstance(cell, decimal.Decimal):
        cell = float(cell)
    if cell is None or cell == "" or (isinstance(cell, float) and math.isnan(cell)):
        return None
    if not isinstance(cell, str | int | float) or (isinstance(cell, float) and math.isinf(cell)) or _is_huge(cell):
        raise ValueError(f"holds {str(cell)[:40]!r}, which is neither text, a finite number of 64 bits, true nor false")
    return cell


def _is_huge(cell: object) -> bool:
    return isinstance(cell, int) and not -(2**63) <= cell < 2**63


def _typed(cells: list[Value]) -> list[Value]:
    """Return the cells of a CSV column as numbers or truths where all that are not empty read as such; 007 is a text: it is a name."""
    texts = [str(cell) for cell in cells if cell is not None]
    if texts and all(text.lower() in _TRUTH for text in texts):
        return [None if cell is None else _TRUTH[str(cell).lower()] for cell in cells]
    numbers = all(_NUMBER.fullmatch(text) and math.isfinite(float(text)) for text in texts)
    whole = numbers and all(re.fullmatch(r"[-+]?\d+", text) and not _is_huge(int(text)) for text in texts)
    if not texts or not numbers:
        return cells
    return [None if cell is None else int(str(cell)) if whole else float(str(cell)) for cell in cells]
