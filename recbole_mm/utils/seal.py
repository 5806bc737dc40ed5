"""The seal of a file: a checksum within the file itself, by which a change is noticed when it is read.

A file of ours carries a mark, `recbole_mm crc32=` and eight digits, where its format has room for a text: in the first
line of a YAML file, under the first key of a JSON file, in the metadata of a safetensors or Parquet file. The digits
are the CRC-32 of the whole file as it was with eight zeros in their place. A file without a mark (of an earlier
version, of another program), or with one in any other place, is taken as it is.
"""

from __future__ import annotations

import mmap
import os
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MARK = "recbole_mm crc32="
UNSEALED = f"{MARK}00000000"
"""What a writer puts into a file for `seal` to fill in."""

CHECKSUM = "checksum"
"""Key of the mark in JSON and in metadata."""

CHANGED = "its checksum does not match, so a part of it has changed since it was written"

_IN_FRONT = re.compile(rb'(?:(?:\xef\xbb\xbf)?# |\{\s*"[^"]*":\s*")' + MARK.encode())
"""The mark of a YAML file (an editor may have put a byte-order mark before it) or of a JSON file, as these begin."""

_IN_HEADER = re.compile(rb'":"' + MARK.encode())
"""That of a safetensors file: a whole value, as a quotation mark within a text has a backslash before it."""

_IN_FOOTER = re.compile(CHECKSUM.encode() + rb"\x18\x19" + MARK.encode())
"""That of a Parquet file: key and value of its metadata, with what Thrift puts between them (a text, of 25 bytes)."""


class ChecksumError(ValueError):
    """A file has changed since it was written."""


def seal(path: Path) -> None:
    """Fill in the digits of a file's mark; a file without one stays as it is."""
    with path.open("r+b") as file, _mapped(file) as content:
        place = _digits(content)
        if place is not None:
            content[place : place + 8] = b"0" * 8
            content[place : place + 8] = b"%08x" % _checksum(content, place)


def check_seal(path: Path) -> None:
    """Check that a file has not changed since it was sealed; one without a mark passes.

    Raises:
        OSError: it cannot be read.
        ChecksumError: it has changed.
    """
    with path.open("rb") as file, _mapped(file, mmap.ACCESS_READ) as content:
        place = _digits(content)
        if place is not None and content[place : place + 8] != b"%08x" % _checksum(content, place):
            raise ChecksumError(CHANGED)


@contextmanager
def _mapped(file: Any, access: int = mmap.ACCESS_WRITE) -> Iterator[Any]:
    """A file's content, for random access. An empty file cannot be mapped."""
    if os.fstat(file.fileno()).st_size == 0:
        yield bytearray()
        return
    with mmap.mmap(file.fileno(), 0, access=access) as content:
        yield content


def _digits(content: Any) -> int | None:
    """Return the place of the mark's digits, if the mark is where its format has it; text and data may quote it."""
    size = len(content)
    found = _IN_FRONT.match(content)
    if not found and content[:4] == b"PAR1":  # its metadata stand at its end, with their length behind them
        footer = size - 8 - int.from_bytes(content[size - 8 : size - 4], "little")
        found = _IN_FOOTER.search(content, max(footer, 0))
    elif not found and content[8:9] == b"{":  # of safetensors: its metadata stand in front, after their length
        found = _IN_HEADER.search(content, 8, min(8 + int.from_bytes(content[:8], "little"), size))
    return found.end() if found and found.end() + 8 <= size else None


def _checksum(content: Any, place: int) -> int:
    """Return the CRC-32 of a content with zeros in the eight places from `place` on."""
    with memoryview(content) as view:
        crc = zlib.crc32(b"0" * 8, zlib.crc32(view[:place]))
        return zlib.crc32(view[place + 8 :], crc)
