"""Files of one record per line: JSON, or (metadata of Amazon, 2014) Python dict literals. Nothing is executed."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from recbole_mm.datasets.files import explained, open_raw
from recbole_mm.errors import DataError

LONGEST_LINE = 16 * 2**20
"""Bytes; the longest lines known, of the metadata of 2018, have some hundred thousand."""

LONGEST_LITERAL = 2**20
"""Characters of a dict literal. Python's parser needs some hundred times as much memory."""


def read_records(path: Path) -> Iterator[tuple[int, str]]:
    """Number and text of every line that is not blank, one at a time; `.gz` is unpacked on the way.

    Raises:
        DataError: the file is missing, empty, damaged or not UTF-8; a line is longer than `LONGEST_LINE`.
    """
    number = found = 0
    with explained(path), open_raw(path) as file:
        while line := file.readline(LONGEST_LINE + 1):
            number += 1
            if len(line) > LONGEST_LINE:
                raise DataError(
                    f"{path}, line {number}: longer than {LONGEST_LINE >> 20} MB; a record per line is read"
                )
            if text := line.decode("utf-8-sig" if number == 1 else "utf-8").strip():
                found += 1
                yield number, text
    if not found:
        raise DataError(f"{path}: the file is empty")


def parse_record(path: Path, number: int, text: str) -> dict[str, Any]:
    """The record of one line: a JSON object, or a Python dict of plain values.

    Raises:
        DataError: it is neither, naming the line.
    """
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        record = _literal(path, number, text)
    if not isinstance(record, dict):
        raise DataError(f"{path}, line {number}: a {type(record).__name__} where a record in braces is expected")
    return record


def _literal(path: Path, number: int, text: str) -> Any:
    if len(text) > LONGEST_LITERAL:
        raise DataError(
            f"{path}, line {number}: not JSON, and too long for a Python literal ({len(text):,} characters)"
        )
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise DataError(
            f"{path}, line {number}: neither JSON nor a Python dict of plain values ({text[:40]!r}); download it again"
        ) from None
