"""A slow and simple reader of atomic files, written from docs/data-format.md alone, to hold ours against."""

from __future__ import annotations

import re
from codecs import BOM_UTF16_BE, BOM_UTF16_LE, BOM_UTF32_BE, BOM_UTF32_LE
from pathlib import Path

KINDS = ("token", "token_seq", "float", "float_seq")
BLANKS = " \t\v\f"
NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")


class Refused(Exception):
    """The file is not read.

    Attributes:
        line: of the first fault; 1 where the file as a whole is at fault.
        reason: in a few words.
    """

    def __init__(self, line: int, reason: str):
        super().__init__(f"line {line}: {reason}")
        self.line, self.reason = line, reason


def read(
    path: Path | str, separator: str = "\t", encoding: str | None = None, sequence: str = " "
) -> tuple[list[str], list[str], list[list]]:
    """Columns and rows of an atomic file.

    Args:
        path: the file.
        separator: of the fields of a line.
        encoding: of the file; UTF-8 if None.
        sequence: separator of the values of a `token_seq` or `float_seq`.

    Returns:
        Names and kinds of the columns, and a list per row: str for `token`, float for `float` (both None where empty),
        a list of str for `token_seq`, of float for `float_seq`.

    Raises:
        Refused: in this order: text that is not in `encoding`, the header, lines that are no rows, values of `float`
            columns by line, those of `float_seq` by column. A reader that takes a file in pieces may find the fault of
            an earlier line first.
    """
    lines = split_lines(decode(Path(path).read_bytes(), encoding or "utf-8"))
    names, kinds = header(lines[0], separator)
    rows = []
    for number, line in enumerate(lines[1:], start=2):
        if line == "":
            continue
        check_line(number, line)
        fields = line.split(separator)
        if len(fields) != len(names):
            raise Refused(number, f"{len(fields)} fields instead of {len(names)}")
        rows.append((number, fields))
    for number, fields in rows:
        for kind, field in zip(kinds, fields):
            if kind == "float":
                value(number, kind, field, sequence)
    for place, kind in enumerate(kinds):
        for number, fields in rows:
            value(number, kind, fields[place], sequence)
    return names, kinds, [
        [value(number, kind, field, sequence) for kind, field in zip(kinds, fields)] for number, fields in rows
    ]  # fmt: skip


def decode(data: bytes, encoding: str) -> str:
    """Text without its byte-order mark; what comes after a first one is text."""
    encoding = {"utf-8-sig": "utf-8"}.get(encoding, encoding)
    marks = {"utf-16": (BOM_UTF16_LE, BOM_UTF16_BE), "utf-32": (BOM_UTF32_LE, BOM_UTF32_BE)}.get(encoding, ())
    if marks and not data.startswith(marks):
        raise Refused(1, f"{encoding} without the mark that says which of the two kinds")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        before = data[: error.start].decode(encoding, errors="ignore")
        raise Refused(before.count("\n") + 1, f"not {encoding}") from None
    return text.removeprefix("\ufeff")


def split_lines(text: str) -> list[str]:
    """Lines without their ends; a line feed ends a line, and a carriage return before it belongs to the end."""
    if text.endswith("\n"):
        text = text[:-1]
    return [line.removesuffix("\r") for line in text.split("\n")]


def check_line(number: int, line: str) -> None:
    if "\0" in line:
        raise Refused(number, "NUL")
    if "\r" in line:
        raise Refused(number, "carriage return")


def header(line: str, separator: str) -> tuple[list[str], list[str]]:
    check_line(1, line)
    names, kinds = [], []
    for column in line.split(separator):
        name, colon, kind = column.rpartition(":")
        if not colon or not name or ":" in name or kind not in KINDS or name in names:
            raise Refused(1, f"column {column!r}")
        names.append(name)
        kinds.append(kind)
    return names, kinds


def value(line: int, kind: str, field: str, sequence: str) -> str | float | list | None:
    if kind == "token":
        return field or None
    if kind == "float":
        return number(line, field) if field else None
    parts = [part for part in field.split(sequence) if part]
    return parts if kind == "token_seq" else [number(line, part) for part in parts]


def number(line: int, text: str) -> float:
    """A finite decimal number; whole numbers may not lose a digit in 64 bits."""
    stripped = text.strip(BLANKS)
    if not NUMBER.fullmatch(stripped):
        raise Refused(line, f"{text!r} is no number")
    found = float(stripped)
    if found in (float("inf"), float("-inf")):
        raise Refused(line, f"{text!r} is not finite")
    if re.fullmatch(r"[+-]?[0-9]+", stripped) and int(stripped) != int(found):
        raise Refused(line, f"{text!r} has too many digits")
    return found
