"""Finds and opens raw files, and says in one line what is wrong with one that cannot be read."""

from __future__ import annotations

import csv
import gzip
import io
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

import pandas as pd

from recbole_mm.errors import DataError

_START = 2**16


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
