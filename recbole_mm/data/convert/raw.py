"""Reads raw tables (CSV, TSV, `::` separated), fast when they are sound and exact about the line when they are not."""

from __future__ import annotations

import csv
import io
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from recbole_mm.data.convert.files import explained, one_character, open_raw
from recbole_mm.errors import DataError

Kind = Literal["id", "text", "integer", "number", "optional_number", "day", "time"]

_DTYPES: dict[Kind, Any] = {
    "id": "category",
    "text": str,
    "integer": np.int64,
    "number": np.float64,
    "optional_number": str,
    "day": "category",
    "time": "category",
}
_NUMBER = re.compile(r"\s*[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,2})?\s*", re.ASCII)
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
_UNUSABLE_ID = re.compile(r'[\x00-\x1f\x7f]|^"')


@dataclass(frozen=True)
class Column:
    """A column to read.

    Attributes:
        kind: `id` (kept exactly, leading zeros too), `text`, `integer`, `number`, `optional_number` (may be empty) or
            `day` (YYYY-MM-DD, read as the unix second it begins in UTC) or `time` (as ISO 8601 writes it, from a day to
            a fraction of a second, in UTC where it names no zone; read as a unix second).
        names: headers it may carry, the preferred one first; compared without case.
        required: whether a file without it is an error.
    """

    kind: Kind
    names: tuple[str, ...] = ()
    required: bool = True


@dataclass(frozen=True)
class Layout:
    """How a raw file is written. `quoted` is CSV's use of double quotes; GroupLens' `.dat` files have bare quotes."""

    separator: str = ","
    header: bool = True
    quoted: bool = True
    encoding: str = "utf-8-sig"


def read_table(path: Path, columns: Mapping[str, Column], layout: Layout = Layout()) -> pd.DataFrame:
    """The wanted columns of a raw file, in the order asked for.

    Args:
        path: file to read; `.gz` is unpacked on the way.
        columns: name in the result -> column. Without a header line they are the file's columns in order.
        layout: how the file is written.

    Returns:
        Table with `id` columns as categories of str, `text` as str, `integer` and `day` as int64, numbers as float64.

    Raises:
        DataError: the file is missing, empty or damaged; a required column is absent; a line has too many fields; a
            value is not of its kind. The message names the line.
    """
    names = read_header(path, layout) if layout.header else list(columns)
    positions = _match_columns(path, names, columns) if layout.header else {field: field for field in columns}
    kinds = {raw: columns[field].kind for field, raw in positions.items()}
    with explained(path):
        raw = _parse(path, names, kinds, layout)
    if raw.empty:
        raise DataError(f"{path}: no lines below the header" if layout.header else f"{path}: the file is empty")
    table = pd.DataFrame({field: _convert(raw[name], kinds[name]) for field, name in positions.items()})
    for field, name in positions.items():
        if not _is_sound(table[field], columns[field].kind):
            fault = _find_fault(path, layout, names, name, columns[field].kind)
            raise fault or DataError(f"{path}: a value in column {name} cannot be read")
    return table


def read_catalogue(
    path: Path, columns: Mapping[str, Column], layout: Layout = Layout(), id_field: str = "item_id"
) -> tuple[pd.DataFrame, int]:
    """As `read_table`, for a file that lists each id once.

    Returns:
        The table without repeated identical lines, and how many such lines were dropped.

    Raises:
        DataError: as `read_table`; the same id twice with different content.
    """
    table = read_table(path, columns, layout)
    kept = table.drop_duplicates()
    twice = kept[id_field].duplicated()
    if twice.any():
        token = kept.loc[twice, id_field].iloc[0]
        position = _position_of(path, layout, columns, id_field)
        lines = [
            line for line, row in read_rows(path, layout) if len(row) > position and row[position].strip() == token
        ]
        raise DataError(
            f"{path}, line {lines[-1]}: {id_field} {token!r} was already listed on line {lines[0]} with other content; "
            f"remove one ({int(twice.sum())} such ids)"
        )
    return kept.reset_index(drop=True), len(table) - len(kept)


def read_header(path: Path, layout: Layout = Layout()) -> list[str]:
    """The column names on the first line.

    Raises:
        DataError: the file is missing, empty or damaged, or names a column twice.
    """
    with explained(path):
        first = next(_raw_rows(path, layout), None)
    if first is None:
        raise DataError(f"{path}: the file is empty")
    names = [name.strip() for name in first[1]]
    if len({name.lower() for name in names}) < len(names):
        raise DataError(f"{path}, line 1: a column is named twice: {', '.join(names)}")
    return names


def read_rows(path: Path, layout: Layout = Layout()) -> Iterator[tuple[int, list[str]]]:
    """Lines below the header as (line number, fields), one at a time; blank lines are left out."""
    with explained(path):
        rows = _raw_rows(path, layout)
        if layout.header:
            next(rows, None)
        yield from rows


def is_usable_id(token: str) -> bool:
    """Whether an id survives an atomic file as it is: not blank, no control character, no leading quotation mark."""
    return bool(token.strip()) and token == token.strip() and not _UNUSABLE_ID.search(token)


def is_number(value: str) -> bool:
    """Whether a field can be read as a number."""
    return _NUMBER.fullmatch(value) is not None


# ---------------------------------------------------------------------------------------------------------- the parser


def _parse(path: Path, names: list[str], kinds: Mapping[str, Kind], layout: Layout) -> pd.DataFrame:
    # Columns nobody asked for are parsed too: with `usecols` pandas would not notice lines with too many fields.
    dtypes: dict[str, Any] = {name: _DTYPES[kinds[name]] if name in kinds else "category" for name in names}
    try:
        return _read_csv(path, names, dtypes, layout)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError):
        raise
    except pd.errors.ParserWarning:  # too many fields on the first line; on a later one it is a ParserError
        line, row = next((line, row) for line, row in read_rows(path, layout) if len(row) > len(names))
        raise DataError(f"{path}, line {line}: {len(row)} fields instead of {len(names)}") from None
    except (ValueError, OverflowError, RuntimeWarning):
        for name, kind in kinds.items():
            if kind in ("integer", "number"):
                fault = _find_fault(path, layout, names, name, kind)
                if fault is not None:
                    raise fault from None
                dtypes[name] = np.float64
        return _read_csv(path, names, dtypes, layout)  # times with a fraction


def _read_csv(path: Path, names: list[str], dtypes: Mapping[str, Any], layout: Layout) -> pd.DataFrame:
    with warnings.catch_warnings(), open_raw(path, layout.separator) as file:
        warnings.simplefilter("error", pd.errors.ParserWarning)
        warnings.simplefilter("error", RuntimeWarning)  # a number too large for int64
        return pd.read_csv(
            file,
            names=names,
            header=0 if layout.header else None,
            dtype=dtypes,
            sep=one_character(layout.separator),
            quoting=csv.QUOTE_MINIMAL if layout.quoted else csv.QUOTE_NONE,
            encoding=layout.encoding,
            na_filter=False,
            index_col=False,
            engine="c",
            low_memory=False,  # chunks would merge their categories again and again
        )


def _convert(column: pd.Series, kind: Kind) -> pd.Series:
    if kind == "id":
        stripped = column.cat.categories.str.strip()
        if stripped.equals(column.cat.categories):
            return column
        return column.astype(str).str.strip().astype("category")
    if kind in ("day", "time"):
        seconds = (_moments(column.cat.categories, kind) - pd.Timestamp(0, tz="UTC")) // pd.Timedelta(seconds=1)
        values = np.append(np.asarray(seconds, dtype=np.float64), np.nan)[column.cat.codes]
        return pd.Series(values, index=column.index) if np.isnan(values).any() else pd.Series(values.astype(np.int64))
    if kind == "optional_number":
        text = column.str.strip()
        numbers = pd.to_numeric(text, errors="coerce")
        return numbers.mask(numbers.isna() & (text != ""), np.inf)  # marks what is neither empty nor a number
    if kind == "integer" and column.dtype == np.float64 and (column.abs() < 2**63).all():
        return np.floor(column).astype(np.int64)
    return column


def _moments(values: pd.Index, kind: Kind) -> pd.DatetimeIndex:
    """Days or times, NaT where a text is none."""
    if kind == "day":
        return pd.to_datetime(values, format="%Y-%m-%d", errors="coerce", utc=True)
    return pd.to_datetime(
        values.str.replace(r"\s*UTC\s*$", "Z", regex=True), format="ISO8601", errors="coerce", utc=True
    )


def _is_sound(column: pd.Series, kind: Kind) -> bool:
    if kind == "id":
        tokens = column.cat.categories
        return bool((tokens != "").all()) and not tokens.str.contains(_UNUSABLE_ID).any()
    if kind == "optional_number":
        return not np.isinf(column).any()
    if kind == "integer":
        return column.dtype == np.int64
    return kind == "text" or bool(np.isfinite(column).all())


def _fault(value: str, kind: Kind) -> str | None:
    """Why `value` is not of its kind, or None."""
    if not value.strip():
        return None if kind in ("text", "optional_number") else "is missing"
    if kind == "id":
        return "holds a control character or begins with a quote" if _UNUSABLE_ID.search(value.strip()) else None
    if kind in ("integer", "number", "optional_number"):
        if not is_number(value):
            return "is not a number"
        return "is too large" if kind == "integer" and abs(float(value)) >= 2**63 else None
    if kind == "day":
        known = _DAY.fullmatch(value) and not _moments(pd.Index([value]), kind).hasnans
        return None if known else "is not a day written YYYY-MM-DD"
    if kind == "time":
        return "is not a time such as 2024-05-31 18:30:00" if _moments(pd.Index([value]), kind).hasnans else None
    return None


def _find_fault(path: Path, layout: Layout, names: list[str], name: str, kind: Kind) -> DataError | None:
    """The error for the first line that has too many fields, or whose value of `name` is not of its kind."""
    position = names.index(name)
    for line, row in read_rows(path, layout):
        if len(row) > len(names):
            return DataError(f"{path}, line {line}: {len(row)} fields instead of {len(names)}")
        value = row[position] if len(row) > position else ""
        reason = _fault(value, kind)
        if reason:
            return DataError(f"{path}, line {line}: {name}{f' {value!r}' if value.strip() else ''} {reason}")
    return None


def _match_columns(path: Path, names: list[str], columns: Mapping[str, Column]) -> dict[str, str]:
    """Name in the result -> header in the file."""
    by_lower = {name.lower(): name for name in names}
    found = {}
    for field, column in columns.items():
        matches = [by_lower[name.lower()] for name in column.names or (field,) if name.lower() in by_lower]
        if matches:
            found[field] = matches[0]
        elif column.required:
            wanted = ", ".join((column.names or (field,))[0] for field, column in columns.items() if column.required)
            missing = (column.names or (field,))[0]
            raise DataError(f"{path}, line 1: column {missing} is missing; expected {wanted}; found {', '.join(names)}")
    return found


def _position_of(path: Path, layout: Layout, columns: Mapping[str, Column], field: str) -> int:
    if not layout.header:
        return list(columns).index(field)
    names = read_header(path, layout)
    return names.index(_match_columns(path, names, columns)[field])


def _raw_rows(path: Path, layout: Layout) -> Iterator[tuple[int, list[str]]]:
    with open_raw(path, layout.separator) as file, io.TextIOWrapper(file, encoding=layout.encoding, newline="") as text:
        delimiter = one_character(layout.separator)
        if layout.quoted:
            reader = csv.reader(text, delimiter=delimiter)
        else:
            reader = csv.reader(text, delimiter=delimiter, quoting=csv.QUOTE_NONE)
        for row in reader:
            if row:
                yield reader.line_num, row
