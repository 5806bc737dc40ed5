"""Atomic writes, checksums of files, and one-line errors of disks.

    >>> write_json(tmp_path / "result.json", {"ndcg@10": 0.25})
    >>> read_json(tmp_path / "result.json")
    {'ndcg@10': 0.25}

A file of ours carries a mark, `recbole_mm crc32=` and eight digits, where its format has room for a text: in the first
line of a YAML file, under the first key of a JSON file, in the metadata of a safetensors or Parquet file. The digits
are the CRC-32 of the whole file as it was with eight zeros in their place. A file without a mark (of an earlier
version, of another program), or with one in any other place, is taken as it is.

A folder that is made of files of other programs (a model's) has a list instead, `checksums.sha256`, which
`sha256sum --check` reads, too.
"""

from __future__ import annotations

import glob
import hashlib
import json
import mmap
import os
import re
import shutil
import stat
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recbole_mm.errors import DiskError, RecboleMMError

if TYPE_CHECKING:
    import pyarrow as pa

try:
    import fcntl
except ImportError:  # Windows: what a killed process has left stays there
    fcntl = None  # type: ignore[assignment]

MARK = "recbole_mm crc32="
UNSEALED = f"{MARK}00000000"
"""What a writer puts into a file for `seal` to fill in."""

CHECKSUM = "checksum"
"""Key of the mark in JSON and in metadata."""

CHANGED = "its checksum does not match, so a part of it has changed since it was written"
CHECKSUMS = "checksums.sha256"
"""Name of a folder's list of checksums."""

_IN_FRONT = re.compile(rb'(?:(?:\xef\xbb\xbf)?# |\{\s*"[^"]*":\s*")' + MARK.encode())
"""The mark of a YAML file (an editor may have put a byte-order mark before it) or of a JSON file, as these begin."""

_IN_HEADER = re.compile(rb'":"' + MARK.encode())
"""That of a safetensors file: a whole value, as a quotation mark within a text has a backslash before it."""

_IN_FOOTER = re.compile(CHECKSUM.encode() + rb"\x18\x19" + MARK.encode())
"""That of a Parquet file: key and value of its metadata, with what Thrift puts between them (a text, of 25 bytes)."""

_ERRNO = re.compile(r"\(os error (\d+)\)|\[errno (\d+)\]")
_TORCH = ("PytorchStreamWriter", "inline_container.cc", "iostream error")
"""In what torch says when its C++ streams fail, which keep the reason for themselves."""
MOST_TRIES = 100
"""To make a scratch folder that no other process removes as a leftover; two or three are rare."""

SCRATCH = ".rmm"
"""How the name of every scratch folder ends, and that of nothing of anybody else's."""

DRAFT = ".recbole-mm-"
"""How that of `atomic_write` begins; the file's own name would make it longer than a disk takes."""

_RANDOM = re.compile(r"[a-z0-9_]{8}")
"""What `mkdtemp` puts between the two."""


class ChecksumError(ValueError):
    """A file has changed since it was written."""


# --- disks that give up ----------------------------------------------------------------------------------------------


@contextmanager
def disk_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn errors of the operating system within the block into one line about `path`.

    Raises:
        DiskError: a full or read-only disk, a folder that may not be written, a file where a folder should be, ...
    """
    try:
        yield
    except RecboleMMError:
        raise
    except Exception as error:
        reason = disk_reason(error)
        if reason is None:
            raise
        raise DiskError(f"{path}: cannot be written: {reason}") from error


def disk_reason(error: BaseException) -> str | None:
    """Return why a disk failed, in the words of the operating system; None if `error` is of another kind.

    Libraries written in Rust (safetensors, tokenizers) and C++ (torch, pyarrow) have their own ways to say it.
    """
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    if found := _ERRNO.search(str(error)):
        return os.strerror(int(found[1] or found[2]))
    if isinstance(error, OSError):
        return " ".join(str(error).split())
    if isinstance(error, RuntimeError) and any(words in str(error) for words in _TORCH):
        return "the disk did not take all of it; it may be full"
    return None


def make_folder(path: Path) -> None:
    """Make a folder and those above it, where they are not there yet.

    Raises:
        DiskError: it cannot be made.
    """
    with disk_errors(path):
        path.mkdir(parents=True, exist_ok=True)


# --- whole or not at all ---------------------------------------------------------------------------------------------


@contextmanager
def scratch_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """Make a new folder for the length of the block. Those that killed processes have left are removed first.

    A folder in use is locked; the lock ends with its process, on any machine.

    Args:
        parent: where it is made; it exists.
        prefix: of its name, the same for the same purpose; its end is `SCRATCH`.

    Raises:
        DiskError: it cannot be made.
    """
    remove_leftovers(parent, prefix)
    with disk_errors(parent):
        folder, descriptor = _held_folder(parent, prefix)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def remove_leftovers(parent: Path, prefix: str) -> None:
    """Remove what `scratch_folder` made of `prefix` in processes that do not exist any more, and nothing else."""
    for path in parent.glob(f"{glob.escape(prefix)}*{SCRATCH}"):
        random = path.name.removeprefix(prefix).removesuffix(SCRATCH)
        if fcntl is None or not _RANDOM.fullmatch(random) or not path.is_dir():
            continue
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except OSError:  # gone meanwhile, or somebody else's
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
        except OSError:  # in use, or in a folder that may not be written
            continue
        finally:
            os.close(descriptor)


def _held_folder(parent: Path, prefix: str) -> tuple[Path, int]:
    """Make a new folder, and return it with a descriptor that holds its lock.

    In the moment before it is locked, another process may take it for a leftover and remove it; the next one is tried.
    """
    for _ in range(MOST_TRIES):
        folder = Path(tempfile.mkdtemp(SCRATCH, prefix, parent))
        with suppress(FileNotFoundError):
            descriptor = _locked(folder)
            if folder.exists():
                return folder, descriptor
            os.close(descriptor)
    raise OSError("other processes remove every folder that is made there")


def _locked(folder: Path) -> int:
    """Lock a folder, and return the descriptor that holds the lock."""
    descriptor = os.open(folder, os.O_RDONLY)
    if fcntl is not None:
        with suppress(OSError):  # a file system without locks: leftovers stay there, nobody can lock them either
            fcntl.flock(descriptor, fcntl.LOCK_EX)
    return descriptor


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield the path of a draft to write within the block, which then replaces `path` at once.

    A kill, a full disk or an error leaves the old file or the new one, never a part of it. The draft has the name of
    `path`, in a separate folder, so that a writer may create other files there.

    Args:
        path: the file; its folder exists.

    Raises:
        DiskError: it cannot be written; the old file is untouched.
    """
    path = Path(path)
    with disk_errors(path), scratch_folder(path.parent, DRAFT) as folder:
        draft = folder / path.name
        draft.touch()
        permissions = stat.S_IMODE(draft.stat().st_mode)
        yield draft
        draft.chmod(permissions)  # safetensors leaves 0600, which locks the rest of a team out
        _sync(draft)
        os.replace(draft, path)
        _sync(path.parent)


def _sync(path: Path) -> None:
    """Ask the disk to keep a file's content, or a folder's names, through a power cut."""
    if path.is_dir() and os.name == "nt":  # Windows opens no folders and orders renames itself
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a text atomically, and fill in the digits of its mark if it has one.

    Raises:
        DiskError: as `atomic_write`.
    """
    with atomic_write(path) as draft:
        draft.write_text(text, encoding="utf-8")
        seal(draft)


def write_json(path: Path, content: Mapping[str, Any], **options: Any) -> None:
    """Write a JSON file for `read_json`; its first key is its mark.

    Args:
        path: the file; its folder exists.
        content: values that JSON has.
        options: arguments of `json.dumps`.

    Raises:
        DiskError: as `atomic_write`.
    """
    write_text(path, json.dumps({CHECKSUM: UNSEALED, **content}, **{"indent": 1, **options}) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read what `write_json` wrote.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no JSON object, or damaged.
    """
    check_seal(path)
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError("it is no JSON object")
    content.pop(CHECKSUM, None)
    return content


def write_parquet(path: Path, table: pa.Table) -> None:
    """Write a table with a mark among its metadata.

    Raises:
        DiskError: as `atomic_write`.
    """
    import pyarrow.parquet as pq

    with atomic_write(path) as draft:
        pq.write_table(table.replace_schema_metadata({CHECKSUM: UNSEALED}), draft, compression="zstd")
        seal(draft)


def read_parquet(path: Path, columns: list[str] | None = None) -> pa.Table:
    """Read what `write_parquet` wrote, or some columns of it.

    Raises:
        OSError, ValueError: it cannot be read, or is damaged (`pa.ArrowInvalid` is a ValueError).
    """
    import pyarrow.parquet as pq

    check_seal(path)
    return pq.read_table(path, columns=columns)


# --- checksums -------------------------------------------------------------------------------------------------------


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


def write_checksums(folder: Path) -> None:
    """List the SHA-256 of every file of a folder in the folder.

    Raises:
        DiskError: it cannot be written.
    """
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != CHECKSUMS)
    write_text(folder / CHECKSUMS, "".join(f"{file_digest(path).hex()}  {path.name}\n" for path in files))


def listed_checksums(folder: Path) -> dict[str, str]:
    """Return file name -> SHA-256 in hex, as `write_checksums` listed them; empty for a folder without a list.

    Raises:
        ChecksumError: the list cannot be read.
    """
    path = folder / CHECKSUMS
    if not path.is_file():
        return {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ChecksumError(f"{path} cannot be read ({error})") from error
    listed = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    if not all(listed) or not all(re.fullmatch(r"[0-9a-f]{64}", digest) for digest in listed.values()):
        raise ChecksumError(f"{path} is damaged")
    return listed


def check_checksums(folder: Path) -> None:
    """Check that the files of a folder have the checksums that `write_checksums` listed; one without a list passes.

    Raises:
        ChecksumError: naming the first file that is gone or has changed.
    """
    for name, digest in listed_checksums(folder).items():
        path = folder / name
        if not path.is_file():
            raise ChecksumError(f"{path} is gone")
        if file_digest(path).hex() != digest:
            raise ChecksumError(f"{path} is damaged: {CHANGED}")


def file_digest(path: Path) -> bytes:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
