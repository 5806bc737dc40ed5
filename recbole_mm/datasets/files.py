"""Raw files (CSV, TSV, `::` separated): found and opened, and their lines checked and read one at a time."""

from __future__ import annotations

import csv
import gzip
import io
import re
import sys
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import pandas as pd

from recbole_mm.data.lines import all_rows
from recbole_mm.errors import DataError

_START = 2**16
_BLOCK = 2**24

csv.field_size_limit(sys.maxsize)  # pandas reads fields of any length, and what checks its lines must too


@dataclass(frozen=True)
class Layout:
    """How a raw file is written. `quoted` is CSV's use of double quotes; GroupLens' `.dat` files have bare quotes."""

    separator: str = ","
    header: bool = True
    quoted: bool = True
    encoding: str = "utf-8-sig"


CSV = Layout()


@dataclass(frozen=True)
class Lines:
    """What is known of a file's lines.

    Attributes:
        ended: whether the last one has an end.
        counted: whether their fields have been counted.
        returns: whether they end with CR alone.
    """

    ended: bool
    counted: bool
    returns: bool = False


def find_file(source: Path, chosen: str | None, patterns: Sequence[str], option: str) -> Path | None:
    """The file the user chose, else the only one of `source` that matches the first pattern that matches any.

    Args:
        source: folder of raw files.
        chosen: value of the option, relative to `source` or to the working directory; None if not given.
        patterns: glob patterns, the preferred one first.
        option: name of the option, for messages.

    Raises:
        DataError: the chosen file does not exist, or a pattern matches several files.
    """
    if chosen is not None:
        for path in (source / chosen, Path(chosen)):
            if path.is_file():
                return path
        raise DataError(f"{option} {chosen}: no such file, neither in {source} nor in the working directory")
    for pattern in patterns:
        matches = sorted(path for path in source.glob(pattern) if path.is_file())
        if len(matches) > 1:
            raise DataError(f"{source}: {', '.join(path.name for path in matches)} all fit; choose one with {option}")
        if matches:
            return matches[0]
    return None


def find_undecodable(path: Path, encoding: str) -> int | None:
    """Number of the first line that is not text in `encoding`, or None."""
    with open_raw(path) as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode(encoding)
            except UnicodeDecodeError:
                return number
    return None


def one_character(separator: str) -> str:
    """The separator that `open_raw` leaves in the file."""
    return separator if len(separator) == 1 else "\t"


def open_raw(path: Path, separator: str = ",") -> IO[bytes]:
    """The file's bytes, unpacked. A separator of several characters becomes a tab: pandas' fast parser takes one."""
    opener = gzip.open if path.suffix == ".gz" else open
    file = cast("IO[bytes]", opener(path, "rb"))
    if len(separator) == 1:
        return file
    with file:
        return io.BytesIO(file.read().replace(b"\t", b" ").replace(separator.encode(), b"\t"))


def open_text(path: Path, encoding: str, separator: str = ",") -> io.TextIOWrapper:
    """The file as text. Lines end with LF or CRLF; in a file without any LF, with CR (older programs for Macintosh)."""
    file = open_raw(path, separator)
    start = file.read(_START)
    file.seek(0)
    return io.TextIOWrapper(file, encoding, newline="\r" if b"\r" in start and b"\n" not in start else "\n")


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn what can go wrong while reading `path` into a DataError of one line."""
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        line = find_undecodable(path, error.encoding)
        raise DataError(f"{path}, line {line}: not {error.encoding} text; convert the file to UTF-8") from None
    except pd.errors.EmptyDataError:
        raise DataError(f"{path}: the file is empty") from None
    except pd.errors.ParserError as error:
        raise DataError(_explain_parser(path, str(error))) from None
    except csv.Error as error:
        raise DataError(f"{path}: not a readable table ({error})") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: damaged gzip file ({error}); download it again") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None


def _explain_parser(path: Path, message: str) -> str:
    if match := re.search(r"Expected (\d+) fields in line (\d+), saw (\d+)", message):
        expected, line, saw = match.groups()
        return f"{path}, line {line}: {saw} fields instead of {expected}"
    if match := re.search(r"EOF inside string starting at row (\d+)", message):
        return f"{path}: a quotation mark opened near line {int(match[1]) + 1} is never closed"
    return f"{path}: not a readable table ({message.strip().splitlines()[-1]})"


# --------------------------------------------------------------------------------------------------------------- lines


def read_header(path: Path, layout: Layout = CSV) -> list[str]:
    """The column names on the first line.

    Raises:
        DataError: the file is missing, empty or damaged, names a column twice, or has a line break in a name.
    """
    with explained(path):
        first = next(_raw_rows(path, layout), None)
    if first is None:
        raise DataError(f"{path}: the file is empty")
    names = [name.strip() for name in first[1]]
    if any("\n" in name or "\r" in name for name in names):
        raise DataError(f"{path}, line 1: a column's name holds a line break; is a quotation mark never closed?")
    if len({name.lower() for name in names}) < len(names):
        raise DataError(f"{path}, line 1: a column is named twice: {', '.join(names)}")
    return names


def read_rows(path: Path, layout: Layout = CSV) -> Iterator[tuple[int, list[str]]]:
    """Lines below the header as (line number, fields), one at a time; blank lines are left out."""
    with explained(path):
        rows = _raw_rows(path, layout)
        if layout.header:
            next(rows, None)
        yield from rows


def check_lines(path: Path, layout: Layout, columns: int) -> Lines:
    """Look at the bytes of a table for what a parser would pass over, or read as something else.

    The fields of a file with quotation marks are not counted here: `count_rows` does that.

    Args:
        path: the file.
        layout: how it is written.
        columns: how many fields every line has that is not blank.

    Raises:
        DataError: a NUL, a carriage return inside a line, or a line with too many or too few fields, naming the line.
    """
    mark = one_character(layout.separator).encode()
    before, last, quotes, inside, ragged = 0, b"\n", False, 0, None
    with explained(path), open_raw(path, layout.separator) as file:
        while lines := file.readlines(_BLOCK):
            block = b"".join(lines)
            quotes = quotes or (layout.quoted and b'"' in block)
            if quotes or not all_rows(block, mark, columns):
                if b"\0" in block:
                    line = before + next(place for place, line in enumerate(lines, 1) if b"\0" in line)
                    raise DataError(f"{path}, line {line}: a NUL character; is it a text file, and whole?")
                if not inside and block.count(b"\r") > block.count(b"\r\n"):
                    inside = before + next(
                        place for place, line in enumerate(lines, 1) if b"\r" in line.removesuffix(b"\r\n")
                    )
                if ragged is None and not quotes:
                    ragged = _ragged(lines, mark, columns, before)
            before, last = before + len(lines), lines[-1]
    if inside and before == 1 and not last.endswith(b"\n"):
        return Lines(ended=last.endswith(b"\r"), counted=False, returns=True)
    if quotes:
        if inside:  # before pandas sees it, which asks for all memory where a space comes after it
            count_rows(path, layout, columns)
        return Lines(ended=last.endswith(b"\n"), counted=bool(inside))
    if inside:
        raise DataError(f"{path}, line {inside}: {_LONE_RETURN}")
    if ragged is not None:
        raise DataError(_wrong_count(path, *ragged, columns))
    return Lines(ended=last.endswith(b"\n"), counted=True)


def no_end(path: Path) -> str:
    """The note on a file whose last line has no end: it may have been cut off there, which nothing else shows."""
    return f"{path.name} has no line end after its last line: see that nothing of it is missing"


def count_rows(path: Path, layout: Layout, columns: int) -> int:
    """How many lines stand below the header.

    Raises:
        DataError: one has too many or too few fields, naming it.
    """
    count = 0
    for line, row in read_rows(path, layout):
        if len(row) != columns:
            raise DataError(_wrong_count(path, line, len(row), columns))
        count += 1
    return count


_LONE_RETURN = "a carriage return inside the line, which would be read as its end; lines end with LF or CRLF"


def _wrong_count(path: Path, line: int, found: int, columns: int) -> str:
    return f"{path}, line {line}: {found} fields instead of {columns}"


def _ragged(lines: list[bytes], mark: bytes, columns: int, before: int) -> tuple[int, int] | None:
    """The first line that is not blank and has another number of fields, and that number."""
    for place, line in enumerate(lines, before + 1):
        if (found := line.count(mark) + 1) != columns and line.strip(b" \t\r\n".replace(mark, b"")):
            return place, found
    return None


def _raw_rows(path: Path, layout: Layout) -> Iterator[tuple[int, list[str]]]:
    with open_text(path, layout.encoding, layout.separator) as text:
        delimiter = one_character(layout.separator)
        quoted = csv.reader(text, delimiter=delimiter)
        reader = quoted if layout.quoted else csv.reader(text, delimiter=delimiter, quoting=csv.QUOTE_NONE)
        try:
            for row in reader:
                if len(row) > 1 or (row and row[0].strip()):
                    yield reader.line_num, row
        except csv.Error as error:
            reason = _LONE_RETURN if "new-line" in str(error) else f"not a readable table ({error})"
            raise DataError(f"{path}, line {reader.line_num}: {reason}") from None
