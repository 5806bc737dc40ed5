"""The raw `.item` table: every column as the text it was written as, looked up by item id.

RecBole turns tokens into numbers and cuts sequences; text for a language model needs the untouched columns. The lines
are split here and not by pandas, whose C reader ends a field at a NUL and a line at a lone carriage return.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

from recbole.utils import FeatureType

from recbole_mm.data.atomic import read_header
from recbole_mm.errors import DataError

logger = logging.getLogger(__name__)


NAMES_SHOWN = 20


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'title'?`, or the known names when none is near and they are few."""
    known = list(known)
    if near := get_close_matches(name, known, n=1, cutoff=0.5):
        return f"; did you mean {near[0]!r}?"
    return f"; there are: {', '.join(known)}" if len(known) <= NAMES_SHOWN else ""


class ItemTable:
    """Rows of an `.item` file by item id.

    Attributes:
        path: the file.
        kinds: column -> RecBole's type, in the file's order, without the id column.
    """

    def __init__(self, path: Path, kinds: dict[str, FeatureType], rows: dict[str, list[str]]):
        self.path = path
        self.kinds = kinds
        self._rows = rows
        self._place = {name: place for place, name in enumerate(kinds)}

    @classmethod
    def read(
        cls, path: Path, id_field: str = "item_id", separator: str = "\t", encoding: str | None = None
    ) -> ItemTable:
        """Read the whole file once.

        Rows that repeat another one exactly are dropped and counted; short rows get empty values and are counted.

        Raises:
            DataError: a column is not `name:type`; the id column is missing; a row has too many fields or an empty id;
                two rows describe one item differently; the file is not in `encoding`.
        """
        if encoding is None or encoding.lower().replace("_", "-") in ("utf-8", "utf8"):
            encoding = "utf-8-sig"
        header = read_header(path, separator, encoding)
        names = [name for name, _ in header]
        if id_field not in names:
            raise DataError(f"{path}, line 1: no column {id_field!r} for the item ids{did_you_mean(id_field, names)}")
        place = names.index(id_field)
        kinds = {name: kind for name, kind in header if name != id_field}
        try:
            rows = _read_rows(path, separator, encoding, place, len(names))
        except UnicodeDecodeError as error:
            name = encoding.removesuffix("-sig")
            raise DataError(f"{path}: not {name} text; set `encoding` in the dataset's YAML") from error
        return cls(path, kinds, rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, item_id: object) -> bool:
        return item_id in self._rows

    def fields(self, item_id: str) -> dict[str, str]:
        """Column -> text as written, without the id; empty for an item that the file does not list."""
        row = self._rows.get(item_id)
        return {} if row is None else dict(zip(self.kinds, row, strict=True))

    def value(self, item_id: str, column: str) -> str:
        """One value as written; "" for an item that the file does not list."""
        row = self._rows.get(item_id)
        return "" if row is None else row[self._place[column]]

    def column(self, name: str) -> dict[str, str]:
        """Item id -> value of one column."""
        place = self._place[name]
        return {item_id: row[place] for item_id, row in self._rows.items()}

    def require(self, column: str, setting: str) -> None:
        """Check that `column`, named by `setting`, is there.

        Raises:
            DataError: it is not; the message names the nearest column.
        """
        if column not in self.kinds:
            raise DataError(f"{self.path}: {setting} names the column {column!r}{did_you_mean(column, self.kinds)}")


def _read_rows(path: Path, separator: str, encoding: str, id_place: int, width: int) -> dict[str, list[str]]:
    """Item id -> its other fields, in the file's order."""
    rows: dict[str, list[str]] = {}
    first_line: dict[str, int] = {}
    repeated, short = 0, []
    with open(path, encoding=encoding, newline="\n") as file:
        file.readline()
        for number, line in enumerate(file, start=2):
            line = line.rstrip("\r\n")
            if not line:
                continue
            row = line.split(separator)
            if len(row) > width:
                raise DataError(f"{path}, line {number}: {len(row)} fields, but the header names {width}")
            if len(row) < width:
                short.append(number)
                row += [""] * (width - len(row))
            item_id = row.pop(id_place)
            if not item_id:
                raise DataError(f"{path}, line {number}: the item id is empty")
            if item_id not in rows:
                rows[item_id] = row
                first_line[item_id] = number
            elif rows[item_id] == row:
                repeated += 1
            else:
                raise DataError(
                    f"{path}: item {item_id!r} is described differently on lines {first_line[item_id]} and {number}; "
                    "keep one of them"
                )
    if repeated:
        logger.warning("%s: %d rows repeat another one exactly and are dropped", path, repeated)
    if short:
        logger.warning("%s: %d rows have fewer than %d fields, first on line %d", path, len(short), width, short[0])
    return rows
