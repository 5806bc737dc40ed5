"""Reads RecBole's atomic files: `.inter`, `.item`, `.user`, `.kg`, `.link` and those of `additional_feat_suffix`.

This is the only reader, so that one rule holds for all of them (docs/data-format.md): a line ends at a line feed, or at
a carriage return and a line feed; it has one field per column; nothing is quoted. The lines are checked as bytes, block
by block, before pandas' C parser takes them apart: by itself it would end a field at a NUL and a line at a lone
carriage return, and pad or cut lines of other lengths, all in silence.
"""

from __future__ import annotations

import codecs
import csv
import io
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd
from recbole.utils import FeatureType

from recbole_mm.data.lines import Rows, checked_separator, fault_of, lines_at, open_file, row_blocks, text_blocks
from recbole_mm.errors import DataError

logger = logging.getLogger(__name__)

EXACT_BELOW = 2.0**53
"""float64 holds every whole number below this one."""

PADDING = "[PAD]"

SEQUENCES = (FeatureType.TOKEN_SEQ, FeatureType.FLOAT_SEQ)
_KINDS = {kind.value: kind for kind in FeatureType}
_NUMBER = re.compile(r"[ \t\v\f]*[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?[ \t\v\f]*")


def read_header(path: Path, separator: str, encoding: str | None = None) -> list[tuple[str, FeatureType]]:
    """Names and types of the columns of an atomic file.

    Raises:
        ConfigError: the separator or the encoding cannot be one.
        DataError: the file is missing, empty or not in `encoding`, or a column is not `name:type` with one of RecBole's
            four types.
    """
    with open_file(path) as file:
        return _header(path, next(text_blocks(path, file, encoding), b""), separator)


def read_atomic(
    path: Path,
    separator: str,
    wanted: Callable[[str], bool],
    encoding: str | None = None,
    *,
    as_text: bool = False,
) -> tuple[pd.DataFrame, dict[str, FeatureType]]:
    """The wanted columns of an atomic file, sequences still as text.

    Args:
        path: file to read.
        separator: RecBole's `field_separator`, of one character or more, taken literally.
        wanted: whether a column of this name is loaded.
        encoding: RecBole's `encoding`, a text encoding that Python knows; UTF-8 if None. A byte-order mark is skipped.
        as_text: leave every value the text that it was written as, "" where empty.

    Returns:
        Table with `float` columns as float64 and the others as text (NaN where empty), and the type of each column.
        Its index holds the line of each row.

    Raises:
        ConfigError, DataError: as `read_header`; a line that is not a row (`docs/data-format.md`); a value in a `float`
            column that is not a finite number. The message names the line.
    """
    with open_file(path) as file:
        blocks = text_blocks(path, file, encoding)
        first = next(blocks, b"")
        header = _header(path, first, separator)
        types = {name: kind for name, kind in header if wanted(name)}
        if not types:
            return pd.DataFrame(), types
        parser = _Parser(path, [name for name, _ in header], types, as_text)
        tables = [parser.parse(rows) for rows in row_blocks(path, chain([first], blocks), separator, len(header))]
    return tables[0] if len(tables) == 1 else pd.concat(tables), types


def check_kind(path: Path, name: str, kind: FeatureType, accepted: Iterable[FeatureType], holds: str) -> None:
    """Refuse a column whose type does not fit its content.

    Raises:
        DataError: `kind` is none of `accepted`; names the column and what to write instead.
    """
    accepted = list(accepted)
    if kind not in accepted:
        wanted = " or ".join(f"{name}:{other.value}" for other in accepted)
        raise DataError(f"{path}, line 1: column {name}:{kind.value} holds {holds}; write {wanted}")


def check_ids(path: Path, column: pd.Series) -> None:
    """Refuse rows that do not name their user or item.

    Args:
        path: file that the column was read from.
        column: of ids; its index holds the lines.

    Raises:
        DataError: an id is empty, or is RecBole's name of no item; names the line.
    """
    wrong = column.isna() | column.isin(["", PADDING])
    if wrong.any():
        line, value = next(column[wrong].items())
        fault = f"is {PADDING}, RecBole's name for none" if value == PADDING else "is empty"
        raise DataError(f"{path}, line {line}: the id in column {column.name} {fault}; remove the line, or name it")


def drop_repeats(path: Path, table: pd.DataFrame, key: str, encoding: str | None) -> pd.DataFrame:
    """The table with one row per id: rows whose whole lines repeat an earlier one are dropped and counted.

    Args:
        path: file that `table` was read from, by `read_atomic`; perhaps not all of its columns.
        table: its index holds the lines.
        key: column of ids.
        encoding: as for `read_atomic`.

    Raises:
        DataError: two lines describe one id differently; names both.
    """
    repeated = table[key].duplicated(keep=False).to_numpy()
    if not repeated.any():
        return table
    lines = lines_at(path, set(table.index[repeated].tolist()), encoding)
    first: dict[str, int] = {}
    for token, number in zip(table[key].to_numpy()[repeated], table.index[repeated].tolist(), strict=True):
        before = first.setdefault(token, number)
        if lines[before] != lines[number]:
            raise DataError(
                f"{path}: {key} {token!r} is described differently on lines {before} and {number}; keep one of them"
            )
    kept = table[~table[key].duplicated()]
    logger.warning("%s: %d rows repeat another one exactly and are dropped", path, len(table) - len(kept))
    return kept


def split_sequences(
    path: Path, column: pd.Series, kind: FeatureType, separator: str, limit: int | None = None
) -> list[np.ndarray]:
    """The values of a `token_seq` or `float_seq` column, a vector per row; empty parts are none.

    Args:
        path: file that the column was read from.
        column: text, NaN where empty; its index holds the lines.
        kind: of the two.
        separator: RecBole's `seq_separator`.
        limit: how many values of a row are kept at most; None keeps all.

    Raises:
        DataError: a part of a `float_seq` is not a finite number; names the line.
    """
    parts = [[part for part in text.split(separator) if part] for text in column.fillna("")]
    if kind == FeatureType.TOKEN_SEQ:
        return [np.array(row[:limit], dtype=np.str_) for row in parts]
    known = {part: _as_number(part) for part in {part for row in parts for part in row}}
    if None in known.values():
        line, part = next(
            (number, part) for number, row in zip(column.index, parts) for part in row if known[part] is None
        )
        raise DataError(_not_a_number(path, line, part, str(column.name)))
    return [np.array([known[part] for part in row[:limit]], dtype=np.float64) for row in parts]


# --------------------------------------------------------------- header


def _header(path: Path, block: bytes, separator: str) -> list[tuple[str, FeatureType]]:
    """Names and types of the columns, from the first line of the first block."""
    checked_separator(separator)
    if not block:
        raise DataError(f"{path}: the file is empty; its first line names the columns, such as user_id:token")
    line = block.partition(b"\n")[0].removesuffix(b"\r")
    if fault := fault_of(line):
        raise DataError(f"{path}, line 1: {fault}")
    columns = []
    for column in line.decode().split(separator):
        name, _, kind = column.rpartition(":")
        if not name or ":" in name or kind not in _KINDS:
            raise DataError(
                f"{path}, line 1: column {column!r} is not name:type with type {', '.join(_KINDS)} "
                f"(columns are separated by {separator!r})"
            )
        columns.append((name, _KINDS[kind]))
    names = [name for name, _ in columns]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{path}, line 1: column {twice!r} is named twice; rename one of them")
    return columns


# --------------------------------------------------------------- values


class _Parser:
    """Rows to a table.

    Args:
        path: file that the rows are from.
        names: of all columns.
        types: of the wanted ones.
        as_text: leave every value as text.
    """

    def __init__(self, path: Path, names: list[str], types: dict[str, FeatureType], as_text: bool):
        self.path, self.names, self.types, self.as_text = path, names, types, as_text
        self.numbers = [] if as_text else [name for name, kind in types.items() if kind == FeatureType.FLOAT]
        self._reads = [np.int64, np.float64]  # whole numbers are read exactly and fast; most columns hold no others

    def parse(self, rows: Rows) -> pd.DataFrame:
        """One row per line, the lines as the index.

        Raises:
            DataError: a value of a `float` column is not a finite number, or is a whole number that float64 would
                round; names the line.
        """
        columns = list(self.types)
        while True:
            try:
                table = self._table(rows, columns, dict.fromkeys(self.numbers, self._reads[0]))
                break
            except (ValueError, OverflowError) as error:
                self._reads = self._reads[1:]
                if not self._reads:  # pandas has found a word, and does not say where
                    self._check_numbers(self._table(rows, self.numbers, {}))
                    raise DataError(f"{self.path}: {error}") from None
        table = table.astype(dict.fromkeys(self.numbers, np.float64), copy=False)
        if doubtful := [name for name in self.numbers if _is_doubtful(table[name].to_numpy())]:
            self._check_numbers(self._table(rows, doubtful, {}))
        return table

    def _table(self, rows: Rows, columns: list[str], numbers: Mapping[str, type]) -> pd.DataFrame:
        if not rows.text:
            return pd.DataFrame({name: pd.Series(dtype=numbers.get(name, object)) for name in columns})
        marked = rows.text.startswith(codecs.BOM_UTF8)  # here it is part of an id, but pandas would drop it
        with np.errstate(invalid="ignore"):  # where pandas finds fractions among whole numbers
            table = pd.read_csv(
                io.BytesIO(b"\n" + rows.text if marked else rows.text),
                sep=rows.separator.decode(),
                names=self.names,
                usecols=columns,
                dtype={name: numbers.get(name, str) for name in columns},
                header=None,
                index_col=False,
                skiprows=int(marked),
                skip_blank_lines=False,
                quoting=csv.QUOTE_NONE,
                keep_default_na=False,
                na_values=[] if self.as_text else [""],
                na_filter=not self.as_text,
                float_precision="round_trip",
                engine="c",
            )
        table.index = pd.Index(rows.lines)
        return table

    def _check_numbers(self, texts: pd.DataFrame) -> None:
        """Refuse the first line on which one of these columns, read as text, is neither empty nor a number."""
        faults = []
        for name in texts:
            column = texts[name].dropna()
            wrong = [text for text in column.unique() if _as_number(text) is None]
            if wrong:
                first = column[column.isin(wrong)]
                faults.append((first.index[0], first.iloc[0], name))
        if faults:
            raise DataError(_not_a_number(self.path, *min(faults)))


def _is_doubtful(values: np.ndarray) -> bool:
    """Whether the text behind these numbers must be seen.

    There may be none; pandas rounds whole numbers of many digits, and takes infinities, and True and False for 1 and 0.
    """
    return not (np.abs(values) < EXACT_BELOW).all() or bool(np.isin(values, (0, 1)).all())


def _as_number(text: str) -> float | None:
    """The number that a text writes in decimal digits; None if it is infinite, or whole and rounded by float64."""
    if not _NUMBER.fullmatch(text) or np.isinf(float(text)):
        return None
    number = float(text)
    rounded = abs(number) >= EXACT_BELOW and text.strip().lstrip("+-").isdigit() and int(text) != int(number)
    return None if rounded else number


def _not_a_number(path: Path, line: int, text: str, column: str) -> str:
    if _NUMBER.fullmatch(text) and np.isfinite(float(text)):
        return (
            f"{path}, line {line}: {text} in column {column} has more digits than a number of 64 bits; take a coarser "
            f"unit, or write {column}:token if it is no number"
        )
    return f"{path}, line {line}: {text!r} in column {column} is not a finite number"
