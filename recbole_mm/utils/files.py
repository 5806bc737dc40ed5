"""Atomic writes, checksums of files, and one-line errors of disks.

    >>> write_json(tmp_path / "result.json", {"ndcg@10": 0.25})
    >>> read_json(tmp_path / "result.json")
    {'ndcg@10': 0.25}

A folder with files of other programs (a model's) has a list of checksums, `checksums.sha256`, which
`sha256sum --check` reads, too.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recbole_mm.errors import DiskError, RecboleMMError
from recbole_mm.utils.seal import CHANGED, CHECKSUM, UNSEALED, ChecksumError, check_seal, seal

if TYPE_CHECKING:
    import pyarrow as pa

try:
    import fcntl
except ImportError:  # Windows: what a killed process has left stays there
    fcntl = None  # type: ignore[assignment]

CHECKSUMS = "checksums.sha256"
"""Name of a folder's list of checksums."""

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


def parse_json(text: str) -> Any:
    """Read JSON that anybody may have written.

    Raises:
        ValueError: it is none, or nested too deep.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def read_json(path: Path) -> dict[str, Any]:
    """Read what `write_json` wrote.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no JSON object, or damaged.
    """
    check_seal(path)
    content = parse_json(path.read_text(encoding="utf-8"))
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


# --- checksums of folders --------------------------------------------------------------------------------------------


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
