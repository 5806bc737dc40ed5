"""Sequence files: a line per user, `user item item item ...`, items in chronological order.

The form in which many public datasets of sequential recommendation are handed around. Raw layout: one text file, or a
folder that holds one.

    *.txt, *.tsv, *.seq, *.dat     (or .gz of these) ids separated by spaces or tabs

A first line whose first word is a usual name of users (`user_id`, `user`, ...) names the columns. There are no times:
an interaction's timestamp is its position in its user's line, 0, 1, 2, ...
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from recbole_mm.datasets.amazon_records import LONGEST_LINE
from recbole_mm.datasets.assemble import RawDataset, Table
from recbole_mm.datasets.base import INTERACTIONS, Converter
from recbole_mm.datasets.files import explained, no_end, open_text
from recbole_mm.datasets.tables import USERS
from recbole_mm.datasets.values import id_fault
from recbole_mm.errors import DataError

PATTERNS = tuple(f"*{suffix}{packed}" for suffix in (".txt", ".tsv", ".seq", ".dat") for packed in ("", ".gz"))
ENCODING = "utf-8-sig"

_BLANKS = " \t\r\n"


class Sequences(Converter):
    """A sequence file of any origin."""

    name = "sequences"
    options = (INTERACTIONS,)
    takes_file = True

    def read(self, interactions: str | None = None) -> RawDataset:
        """Read the file.

        Args:
            interactions: the file in the folder, when it holds several.

        Raises:
            DataError: there is no such file, it is empty, or a line is malformed.
        """
        path = self._file(interactions)
        self.notes.append(f"{path.name} gives the order only: timestamp is the position in the user's line")
        return RawDataset(inter=Table.of(read_sequences(path, self.notes)), files=(path.name,))

    def _file(self, interactions: str | None) -> Path:
        if self.source.is_file():
            if interactions is not None:
                raise DataError(
                    f"{self.source}: is the file itself; --interactions chooses one in a folder, so leave it out"
                )
            return self.source
        path = self.find(interactions, PATTERNS, "--interactions")
        if path is None:
            raise DataError(
                f"{self.source}: no sequence file (a line per user: user item item ...); looked for *.txt, *.tsv, "
                "*.seq, *.dat; name the file itself as --source"
            )
        return path


def read_sequences(path: Path, notes: list[str]) -> pd.DataFrame:
    """A sequence file as interactions, in the order of the file.

    Args:
        path: the file.
        notes: gets a line where the file names its columns, and one where it may have been cut off.

    Returns:
        `user_id` and `item_id` (categories of str, in order of appearance) and `timestamp` (int64, the position).

    Raises:
        DataError: the file is missing, damaged or empty; a user has no items or a second line; an id cannot be one
            (`id_fault`), or a line is longer than `LONGEST_LINE`. The message names the line.
    """
    first_line: dict[str, int] = {}
    codes: dict[str, int] = {}
    items, lengths = array("q"), array("q")
    ended, headed = True, False
    for number, line in _lines(path):
        ended = line.endswith(("\n", "\r"))
        user, *sequence = _words(line)
        if not lengths and not headed and user.lower() in USERS:
            headed = True
            notes.append(f"{path.name}, line {number} names the columns: {' '.join((user, *sequence[:4]))}")
            continue
        for token in (user, *sequence):
            if token not in codes and (reason := id_fault(token)):
                raise DataError(f"{path}, line {number}: id {token!r} {reason}")
        if not sequence:
            raise DataError(f"{path}, line {number}: user {user!r} has no items")
        if user in first_line:
            raise DataError(
                f"{path}, line {number}: user {user!r} was already listed on line {first_line[user]}; a user's items "
                "stand on one line, in order"
            )
        first_line[user] = number
        items.extend(codes.setdefault(item, len(codes)) for item in sequence)
        lengths.append(len(sequence))
    if not lengths:
        raise DataError(f"{path}: the file is empty")
    if not ended:
        notes.append(no_end(path))
    counts = np.asarray(lengths)
    starts = np.cumsum(counts) - counts
    return pd.DataFrame(
        {
            "user_id": pd.Categorical.from_codes(np.repeat(np.arange(len(counts)), counts), list(first_line)),
            "item_id": pd.Categorical.from_codes(np.asarray(items), list(codes)),
            "timestamp": np.arange(counts.sum()) - np.repeat(starts, counts),
        }
    )


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number and text of every line that is not blank.

    Raises:
        DataError: a line is longer than `LONGEST_LINE`.
    """
    number = 0
    with explained(path), open_text(path, ENCODING) as text:
        while line := text.readline(LONGEST_LINE + 1):
            number += 1
            if len(line) > LONGEST_LINE:
                raise DataError(f"{path}, line {number}: longer than {LONGEST_LINE >> 20} MB; a user per line is read")
            if line.strip(_BLANKS):
                yield number, line


def _words(line: str) -> list[str]:
    """The user and the items of a line."""
    return [word for word in line.strip(_BLANKS).replace("\t", " ").split(" ") if word]


def first_line_with(path: Path, item: str) -> int | None:
    """Number of the first line of a sequence file that lists an item, or None."""
    return next((number for number, line in _lines(path) if item in _words(line)[1:]), None)
