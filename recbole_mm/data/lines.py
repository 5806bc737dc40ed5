"""The lines of text files, checked as bytes; all atomic files are read by these rules (docs/data-format.md).

A line ends at a line feed, or at a carriage return and a line feed; nothing else ends one. A line that is a row has one
field per column. Files are checked as bytes, block by block; a line is only looked at by itself where a block is not in
order, to say which one it is.
"""

from __future__ import annotations

import codecs
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from recbole_mm.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

BLOCK_BYTES = 1 << 22
"""How much of a file is checked and parsed at once."""

_STAND_INS = [bytes([code]) for code in (*range(31, 13, -1), 12, 11, *range(8, 0, -1), 127)]
"""Control characters of one byte, one of which stands for a separator that is longer."""


def open_file(path: Path) -> BinaryIO:
    """An atomic file's bytes.

    Raises:
        DataError: it is missing or cannot be read.
    """
    try:
        return open(path, "rb")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; RecBole calls it <dataset>/<dataset>{path.suffix}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def checked_separator(separator: str) -> bytes:
    """The separator of fields as UTF-8.

    Raises:
        ConfigError: it is empty, or a character that ends a line.
    """
    if not isinstance(separator, str) or not separator or set("\r\n\0") & set(separator):
        raise ConfigError(
            f"field_separator: {separator!r} cannot separate the fields of a line; give a tab, ',' or '::'"
        )
    return separator.encode()


def _checked_encoding(encoding: str | None) -> str:
    """The codec's own name."""
    try:
        codec = codecs.lookup(encoding or "utf-8")
        "".encode(encoding or "utf-8")  # refuses codecs that are none of text, such as base64
    except (LookupError, TypeError, ValueError):
        known = "utf-8, utf-16, latin-1 or cp1252"
        raise ConfigError(f"encoding: {encoding!r} is not a text encoding that Python knows, such as {known}") from None
    return "utf-8" if codec.name == "utf-8-sig" else codec.name


def text_blocks(path: Path, file: BinaryIO, encoding: str | None) -> Iterator[bytes]:
    """The file's text as UTF-8 without a byte-order mark, in blocks that end where a line does."""
    name = _checked_encoding(encoding)
    mark, rest = codecs.BOM_UTF8, b""
    try:
        for data in _chunks(file, name):
            block, end, rest = (rest + data).rpartition(b"\n")
            if end:
                yield _checked_utf8(block + end).removeprefix(mark)
                mark = b""
        if rest:
            yield _checked_utf8(rest).removeprefix(mark)
    except UnicodeError:
        raise _undecodable(path, name) from None


def _chunks(file: BinaryIO, encoding: str) -> Iterator[bytes]:
    """The file's bytes as UTF-8, which those of a UTF-8 file are taken to be."""
    if encoding == "utf-8":
        while data := file.read(BLOCK_BYTES):
            yield data
        return
    decoder = codecs.getincrementaldecoder(encoding)()
    while data := file.read(BLOCK_BYTES):
        yield decoder.decode(data).encode()
    yield decoder.decode(b"", final=True).encode()


def _checked_utf8(block: bytes) -> bytes:
    if not block.isascii():
        block.decode()
    return block


def _undecodable(path: Path, encoding: str) -> DataError:
    """The error that names the first line that is not text in `encoding`."""
    data, line = path.read_bytes(), 1
    marked = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    likely = "utf-16" if marked else "latin-1, cp1252 or utf-16"
    try:
        data.decode(encoding)
        likely = f"{encoding}-le"  # all that can be missing is the mark which tells -le from -be
    except UnicodeDecodeError as error:
        line += data[: error.start].decode(encoding, errors="ignore").count("\n")
    return DataError(
        f"{path}, line {line}: not {encoding} text; set `encoding` to what the file is in, such as {likely}"
    )


def fault_of(line: bytes) -> str | None:
    """Why this is no line of text, or None."""
    if b"\0" in line:
        return "a NUL character; the file is damaged, or set `encoding` to what it is in, such as utf-16"
    if b"\r" in line:
        return "a carriage return inside the line; lines end with a line feed, perhaps after a carriage return"
    return None


@dataclass(frozen=True)
class Rows:
    """Checked rows of a file.

    Attributes:
        text: the rows as UTF-8, each ended by a line feed.
        separator: one byte.
        lines: the line of each row.
    """

    text: bytes
    separator: bytes
    lines: Sequence[int]


def row_blocks(path: Path, blocks: Iterable[bytes], separator: str, columns: int) -> Iterator[Rows]:
    """The rows below the header, checked; the last block may lack the end of its last line, and is warned of."""
    number = 1
    for place, block in enumerate(blocks):
        if place == 0:
            block, number = block.partition(b"\n")[2], 2
        ended = block.endswith(b"\n") or not block.removesuffix(b"\r")
        rows = _checked_rows(path, block if block.endswith(b"\n") else block + b"\n", number, separator, columns)
        if not ended:
            logger.warning(
                "%s, line %d: the last line does not end with a line feed; if the file was cut off there, its last "
                "value is not whole", path, number + block.count(b"\n"),
            )  # fmt: skip
        yield rows
        number += block.count(b"\n")


def _checked_rows(path: Path, block: bytes, number: int, separator: str, columns: int) -> Rows:
    """The rows of a block of whole lines, the first of which is line `number`.

    Raises:
        DataError: a line is no row; names it.
    """
    mark = separator.encode()
    if len(mark) > 1:
        stand_in = next((byte for byte in _STAND_INS if byte not in block), None)
        if stand_in is None:
            raise DataError(f"{path}: too many kinds of control characters to be separated by {separator!r}")
        block, mark = block.replace(mark, stand_in), stand_in
    if all_rows(block, mark, columns):
        return Rows(block, mark, range(number, number + block.count(b"\n")))
    lines, kept = [], []
    for line_number, ended_line in enumerate(block.split(b"\n")[:-1], number):
        line = ended_line.removesuffix(b"\r")
        if not line:
            continue
        found = line.count(mark) + 1
        fault = fault_of(line)
        if fault is None and found != columns:
            fault = f"{found} fields, but line 1 names {columns} columns"
        if fault:
            raise DataError(f"{path}, line {line_number}: {fault}")
        lines.append(line_number)
        kept.append(line + b"\n")
    return Rows(b"".join(kept), mark, lines)


def all_rows(block: bytes, mark: bytes, columns: int) -> bool:
    """Whether every line of a block is a row, without NUL, carriage return inside a line, or empty line among them.

    Args:
        block: whole lines, the last one ended by a line feed too.
        mark: one byte that separates fields; in quoted text it does so, too.
        columns: fields of a row.

    Example:
        >>> all_rows(b"1,2\\n3,4\\r\\n", b",", 2), all_rows(b"1,2\\n3\\n", b",", 2)
        (True, False)
    """
    if b"\0" in block or (b"\r" in block and block.count(b"\r") != block.count(b"\r\n")):
        return False
    if columns == 1 and (block.startswith((b"\n", b"\r\n")) or b"\n\n" in block or b"\n\r\n" in block):
        return False
    marks = block.translate(None, bytes(set(range(256)) - {*mark, *b"\n"}))
    row = mark * (columns - 1) + b"\n"
    return marks == row * (len(marks) // len(row))


def lines_at(path: Path, numbers: set[int], encoding: str | None) -> dict[int, bytes]:
    """The lines of these numbers, without their ends."""
    found: dict[int, bytes] = {}
    with open_file(path) as file:
        number = 1
        for block in text_blocks(path, file, encoding):
            for line in block.removesuffix(b"\n").split(b"\n"):
                if number in numbers:
                    found[number] = line.removesuffix(b"\r")
                number += 1
    return found
