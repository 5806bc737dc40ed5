"""Reads raw tables (CSV, TSV, `::` separated), fast when they are sound and exact about the line when they are not."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from recbole_mm.datasets.files import (
    CSV,
    Layout,
    check_lines,
    count_rows,
    explained,
    no_end,
    one_character,
    open_raw,
    read_header,
    read_rows,
)
from recbole_mm.datasets.values import NUMBER, first_fault, id_fault, read_time, settle, units_of
from recbole_mm.errors import DataError

Kind = Literal["id", "text", "integer", "number", "optional_number", "time"]

_DTYPES: dict[Kind, Any] = {
    "id": "category",
    "text": str,
    "integer": np.int64,
    "number": np.float64,
    "optional_number": str,
    "time": np.int64,
}
_EXACT = 2**53


@dataclass(frozen=True)
class Column:
    """A column to read.

    Attributes:
        kind: `id` (kept as it is, leading zeros too, without the spaces around it), `text`, `integer`, `number`,
            `optional_number` (may be empty) or `time` (numbers of any one unit; or days or times of day as ISO 8601
            writes them, in UTC where they name no zone, which are read as unix seconds).
        names: headers it may carry, the preferred one first; compared without case.
        required: whether a file without it is an error.

    Example:
        >>> _ = (tmp_path / "orders.csv").write_text("User,Item\\nann,007\\n")
        >>> read_table(tmp_path / "orders.csv", {"item_id": Column("id", ("item",))}, [])["item_id"].tolist()
        ['007']
    """

    kind: Kind
    names: tuple[str, ...] = ()
    required: bool = True


def read_table(path: Path, columns: Mapping[str, Column], notes: list[str], layout: Layout = CSV) -> pd.DataFrame:
    """The wanted columns of a raw file, in the order asked for.

    Args:
        path: file to read; `.gz` is unpacked on the way.
        columns: name in the result -> column. Without a header line they are the file's columns in order.
        notes: gets lines for the summary of the conversion.
        layout: how the file is written.

    Returns:
        Table with `id` columns as categories of str, `text` as str, `integer` as int64, numbers as float64, and `time`
        as int64 where all are whole, else as float64.

    Raises:
        DataError: the file is missing, empty or damaged; a required column is absent; a line has too many or too few
            fields; a value is not of its kind, or not written like the other times. The message names the line.
    """
    names = read_header(path, layout) if layout.header else list(columns)
    positions = _match_columns(path, names, columns) if layout.header else {field: field for field in columns}
    kinds = {raw: columns[field].kind for field, raw in positions.items()}
    lines = check_lines(path, layout, len(names))
    if not lines.ended:
        notes.append(no_end(path))
    with explained(path):
        raw = _parse(path, names, kinds, layout, "\r" if lines.returns else None)
    if raw.empty:
        raise DataError(f"{path}: no lines below the header" if layout.header else f"{path}: the file is empty")
    table = {}
    for field, name in positions.items():
        converted, ranked = _convert(raw[name], kinds[name])
        if converted is None:
            fault = _find_fault(path, layout, names, name, kinds[name])
            raise fault or DataError(f"{path}: a value in column {name} cannot be read")
        table[field] = converted
        if ranked:
            notes.append(_ranks(path, name))
    if not lines.counted and count_rows(path, layout, len(names)) != len(raw):
        raise DataError(f"{path}: its quotation marks are not those of CSV ({len(raw):,} lines were read)")
    return pd.DataFrame(table)


def read_catalogue(
    path: Path, columns: Mapping[str, Column], notes: list[str], layout: Layout = CSV, id_field: str = "item_id"
) -> pd.DataFrame:
    """As `read_table`, for a file that lists each id once; repeated identical lines are dropped, and noted.

    Raises:
        DataError: as `read_table`; the same id twice with different content.
    """
    table = read_table(path, columns, notes, layout)
    kept = table.drop_duplicates()
    twice = kept[id_field].duplicated()
    if twice.any():
        token = kept.loc[twice, id_field].iloc[0]
        position = _position_of(path, layout, columns, id_field)
        lines = [line for line, row in read_rows(path, layout) if row[position].strip() == token]
        raise DataError(
            f"{path}, line {lines[-1]}: {id_field} {token!r} was already listed on line {lines[0]} with other content; "
            f"remove one ({int(twice.sum())} such ids)"
        )
    if dropped := len(table) - len(kept):
        notes.append(f"{dropped:,} repeated identical lines of {path.name} were dropped")
    return kept.reset_index(drop=True)


def join_times(
    path: Path, layout: Layout, names: list[str], parts: tuple[str, str], table: pd.DataFrame, notes: list[str]
) -> pd.Series:
    """The times whose day and time of day stand in two columns, read as text.

    Args:
        path: the file.
        layout: how it is written.
        names: its columns.
        parts: which of them are the day and the time of day.
        table: holds both under these names.
        notes: gets a line where ranks stand in for the times.

    Raises:
        DataError: a time is none, or is not written like the others, naming the line.
    """
    text = table[parts[0]].str.strip() + " " + table[parts[1]].str.strip()
    times, ranked = _times(text.astype("category"))
    what = " and ".join(parts)
    if times is None:
        day, clock = map(names.index, parts)
        rows = ((line, f"{row[day].strip()} {row[clock].strip()}") for line, row in read_rows(path, layout))
        fault = first_fault(rows)
        raise _at(path, fault[0], what, *fault[1:]) if fault else DataError(f"{path}: a time cannot be read")
    if ranked:
        notes.append(_ranks(path, what))
    return times


def is_number(value: str) -> bool:
    """Whether a field can be read as a number."""
    return NUMBER.fullmatch(value) is not None


# ---------------------------------------------------------------------------------------------------------- the parser


def _parse(
    path: Path, names: list[str], kinds: Mapping[str, Kind], layout: Layout, line_end: str | None
) -> pd.DataFrame:
    # Columns nobody asked for are parsed too: with `usecols` pandas would not notice lines with too many fields.
    dtypes: dict[str, Any] = {name: _DTYPES[kinds[name]] if name in kinds else "category" for name in names}
    try:
        return _read_csv(path, names, dtypes, layout, line_end)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError):
        raise
    except (ValueError, OverflowError, RuntimeWarning):
        for name, kind in kinds.items():
            if kind in ("integer", "number"):
                fault = _find_fault(path, layout, names, name, kind)
                if fault is not None:
                    raise fault from None
                dtypes[name] = np.float64  # 3.0 for a whole number
            elif kind == "time":
                dtypes[name] = "category"  # as text: a fraction or a day
        return _read_csv(path, names, dtypes, layout, line_end)


def _read_csv(
    path: Path, names: list[str], dtypes: Mapping[str, Any], layout: Layout, line_end: str | None
) -> pd.DataFrame:
    with warnings.catch_warnings(), open_raw(path, layout.separator) as file:
        warnings.simplefilter("ignore", pd.errors.ParserWarning)  # a line with too many fields, which is an error later
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
            lineterminator=line_end,
            engine="c",
            float_precision="round_trip",  # the default can be off by the last digit
            low_memory=False,  # chunks would merge their categories again and again
        )


def _convert(column: pd.Series, kind: Kind) -> tuple[pd.Series | None, bool]:
    """The column's values, None where one is not of its kind; and whether they are ranks."""
    if kind == "time":
        return _times(column)
    if kind == "id":
        stripped = column.cat.categories.str.strip()
        if any(map(id_fault, stripped)):
            return None, False
        same = stripped.equals(column.cat.categories)
        return column if same else column.astype(str).str.strip().astype("category"), False
    if kind == "optional_number":
        text = column.str.strip()
        if not (text.map(is_number) | (text == "")).all():
            return None, False
        column = text.where(text != "", "nan").astype(np.float64)
        return column, False
    if kind == "integer":
        whole = column.dtype == np.int64 or bool(((column % 1 == 0) & (column.abs() <= _EXACT)).all())
        return column.astype(np.int64) if whole else None, False
    return column if kind == "text" or np.isfinite(column).all() else None, False


def _times(column: pd.Series) -> tuple[pd.Series | None, bool]:
    if column.dtype == np.int64:
        values, ranked = settle(column.to_numpy())
        return (None if len(units_of(column.to_numpy())) > 1 else pd.Series(values, index=column.index)), ranked
    read = [read_time(text) for text in column.cat.categories]
    exact = [time.value for time in read if time is not None]
    forms = {time.form for time in read if time is not None}
    if len(exact) < len(read) or len(forms) > 1:
        return None, False
    if forms == {"a number"} and len(units_of(np.array(exact, dtype=np.float64))) > 1:
        return None, False
    values, ranked = settle(exact)
    return pd.Series(values[column.cat.codes.to_numpy()], index=column.index), ranked


def _ranks(path: Path, name: str) -> str:
    return (
        f"{path.name}: {name} is finer than a 64-bit float, so that the ranks of its times are written: their order is "
        "kept, not their distances"
    )


def _fault(value: str, kind: Kind) -> str | None:
    """Why `value` is not of its kind, or None."""
    if kind == "id":
        return id_fault(value.strip())
    if not value.strip():
        return None if kind in ("text", "optional_number") else "is missing"
    if kind != "text" and not is_number(value):
        return "is not a number"
    if kind == "integer":
        number = float(value)
        return "is too large" if abs(number) > _EXACT else None if number % 1 == 0 else "is not a whole number"
    return None


def _find_fault(path: Path, layout: Layout, names: list[str], name: str, kind: Kind) -> DataError | None:
    """The error for the first value of `name` that is not of its kind, or a line with other fields before it."""
    position = names.index(name)
    if kind == "time":
        count_rows(path, layout, len(names))
        found = first_fault((line, row[position]) for line, row in read_rows(path, layout))
        return None if found is None else _at(path, found[0], name, *found[1:])
    for line, row in read_rows(path, layout):
        if len(row) != len(names):
            return DataError(f"{path}, line {line}: {len(row)} fields instead of {len(names)}")
        if reason := _fault(row[position], kind):
            return _at(path, line, name, row[position], reason)
    return None


def _at(path: Path, line: int, name: str, value: str, reason: str) -> DataError:
    return DataError(f"{path}, line {line}: {name}{f' {value!r}' if value.strip() else ''} {reason}")


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
