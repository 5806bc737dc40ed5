"""Reads RecBole's atomic files, with errors that name the file, the line and what to do."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from recbole.utils import FeatureType

from recbole_mm.errors import DataError


def read_header(path: Path, separator: str, encoding: str | None = None) -> list[tuple[str, FeatureType]]:
    """Names and types of the columns of an atomic file.

    Raises:
        DataError: the file is missing or empty, a column is not `name:type` with one of RecBole's four types, or
            the first line below has more fields than there are columns.
    """
    try:
        with open(path, encoding=encoding or "utf-8-sig") as file:
            line = file.readline().rstrip("\r\n")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; RecBole calls it <dataset>/<dataset>{path.suffix}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not {error.encoding} text; set `encoding` in the dataset's YAML") from None
    if not line:
        raise DataError(f"{path}: the file is empty; its first line names the columns, such as user_id:token")
    columns = []
    for column in line.split(separator):
        name, _, kind = column.rpartition(":")
        if not name or ":" in name or kind not in {member.value for member in FeatureType}:
            raise DataError(
                f"{path}, line 1: column {column!r} is not name:type with type token, token_seq, float or float_seq "
                f"(columns are separated by {separator!r})"
            )
        columns.append((name, FeatureType(kind)))
    names = [name for name, _ in columns]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{path}, line 1: column {twice!r} is named twice; rename one of them")
    return columns


def check_field_counts(path: Path, separator: str, columns: int, encoding: str | None = None) -> None:
    """Every line has one field per column; pandas would cut or pad the others in silence.

    Raises:
        DataError: naming the first line with too many or too few fields.
    """
    mark = separator.encode(encoding or "utf-8")
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if line.count(mark) != columns - 1 and line.strip(b"\r\n"):
                found = line.count(mark) + 1
                raise DataError(f"{path}, line {number}: {found} fields, but line 1 names {columns} columns")


def read_atomic(
    path: Path, separator: str, wanted: Callable[[str], bool], encoding: str | None = None
) -> tuple[pd.DataFrame, dict[str, FeatureType]]:
    """The wanted columns of an atomic file, sequences still as text.

    Args:
        path: file to read.
        separator: RecBole's `field_separator`.
        wanted: whether a column of this name is loaded.
        encoding: RecBole's `encoding`; UTF-8 if None.

    Returns:
        Table with `float` columns as float64 and the others as text (NaN where empty), and the type of each column.

    Raises:
        DataError: as `read_header`; a line with more or fewer fields than columns; a value that is not a number in a
        float column.
    """
    header = read_header(path, separator, encoding)
    check_field_counts(path, separator, len(header), encoding)
    types = {name: kind for name, kind in header if wanted(name)}
    options = {
        "sep": separator,
        "names": [name for name, _ in header],
        "usecols": list(types),
        "header": None,
        "skiprows": 1,
        "encoding": encoding or "utf-8",
        "quoting": csv.QUOTE_NONE,
        "keep_default_na": False,
        "na_values": [""],
        "engine": "c",
    }
    numbers = [name for name, kind in types.items() if kind == FeatureType.FLOAT]
    dtypes = {name: np.float64 if name in numbers else str for name in types}
    try:
        return pd.read_csv(path, dtype=dtypes, **options), types
    except ValueError as error:
        raw = pd.read_csv(path, dtype=str, **options)
        for name in numbers:
            bad = pd.to_numeric(raw[name], errors="coerce").isna() & raw[name].notna()
            if bad.any():
                row = int(np.flatnonzero(bad)[0])
                raise DataError(
                    f"{path}, line {row + 2}: {raw[name].iloc[row]!r} in column {name} is not a number "
                    f"({int(bad.sum())} such lines)"
                ) from None
        raise DataError(f"{path}: {error}") from None
