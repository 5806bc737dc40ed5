"""Finds values by item id, in any Unicode form that a file, an archive or a list writes the id in."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping
from typing import Generic, TypeVar

from recbole_mm.errors import DataError

Value = TypeVar("Value")

CONTROL = r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff]"
"""C0 and C1 controls, the Unicode line and paragraph separators, and the byte order mark: no part of an id."""


def one_form(name: str) -> str:
    """The name in NFC: macOS writes the names of files in NFD, where an `é` is two characters."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


class NameIndex(Generic[Value]):
    """Values by name. A name that is not there as it is written is found in its other Unicode form.

    Args:
        values: name -> value.
        where: what holds the names, for messages.

    Example:
        >>> NameIndex({"cafe\\u0301": 1}, "images").find("caf\\u00e9")
        1
    """

    def __init__(self, values: Mapping[str, Value], where: str):
        self._values = dict(values)
        self._where = where
        self._written: dict[str, list[str]] = {}
        for name in self._values:
            if not name.isascii():
                self._written.setdefault(one_form(name), []).append(name)

    def find(self, name: str) -> Value | None:
        """The value of a name, None where there is none.

        Raises:
            DataError: the name is not there as it is written, and is there in several other forms.
        """
        if name in self._values or name.isascii():
            return self._values.get(name)
        written = self._written.get(one_form(name), [])
        if len(written) > 1:
            raise DataError(
                f"{self._where}: {' and '.join(map(ascii, written))} are {name!r} in two Unicode forms; keep one"
            )
        return self._values[written[0]] if written else None

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)
