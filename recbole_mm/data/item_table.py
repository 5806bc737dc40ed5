"""The raw `.item` table: every column as the text it was written as, looked up by item id.

RecBole turns tokens into numbers and cuts sequences; text for a language model needs the untouched columns.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from pathlib import Path

from recbole.utils import FeatureType

from recbole_mm.data.atomic import check_ids, check_kind, drop_repeats, read_atomic
from recbole_mm.errors import DataError
from recbole_mm.utils.spelling import did_you_mean


class ItemTable:
    """Rows of an `.item` file by item id.

    Attributes:
        path: the file.
        kinds: column -> RecBole's type, in the file's order, without the id column.

    Example:
        >>> path = tmp_path / "shop.item"
        >>> _ = path.write_text("item_id:token\\ttitle:token_seq\\n007\\tLamp\\n")
        >>> ItemTable.read(path).fields("007")
        {'title': 'Lamp'}
    """

    def __init__(self, path: Path, kinds: dict[str, FeatureType], rows: dict[str, Sequence[str]]):
        self.path = path
        self.kinds = kinds
        self._rows = rows
        self._place = {name: place for place, name in enumerate(kinds)}

    @classmethod
    def read(
        cls, path: Path, id_field: str = "item_id", separator: str = "\t", encoding: str | None = None
    ) -> ItemTable:
        """Read the whole file once.

        Rows that repeat another one exactly are dropped and counted.

        Raises:
            ConfigError, DataError: as `read_atomic`; the id column is missing or not a `token`; an id is empty; two
                rows describe one item differently.
        """
        table, kinds = read_atomic(path, separator, lambda name: True, encoding, as_text=True)
        if id_field not in kinds:
            raise DataError(f"{path}, line 1: no column {id_field!r} for the item ids{did_you_mean(id_field, kinds)}")
        check_kind(path, id_field, kinds.pop(id_field), [FeatureType.TOKEN], "ids")
        check_ids(path, table[id_field])
        table = drop_repeats(path, table, id_field, encoding)
        ids = table.pop(id_field)
        return cls(path, kinds, dict(zip(ids, zip(*(table[name] for name in kinds)) if kinds else [()] * len(ids))))

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, item_id: object) -> bool:
        return item_id in self._rows

    @property
    def ids(self) -> list[str]:
        """The items' ids, in the order of the file."""
        return list(self._rows)

    def without(self, ids: Container[str]) -> ItemTable:
        """The same table as if the file did not list these items."""
        return ItemTable(self.path, self.kinds, {name: row for name, row in self._rows.items() if name not in ids})

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

    def require(self, column: str, by: str, verb: str = "names") -> None:
        """Check that a column is there.

        Args:
            column: its name.
            by: what asks for it, such as a setting.
            verb: what that does with it.

        Raises:
            DataError: it is not; the message names the nearest column.
        """
        if column not in self.kinds:
            raise DataError(f"{self.path}: {by} {verb} the column {column!r}{did_you_mean(column, self.kinds)}")
