"""File locks: of several processes that need a folder, one makes it, and the others wait and find it made."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from recbole_mm.utils.files import disk_errors, make_folder

logger = logging.getLogger(__name__)

_OURS = re.compile(r"\..+-[0-9a-f]{8,16}(-\d+)?(-beside)?\.lock")
"""Locks of runs, of models made here and of values in the store: all of these are named by a digest."""


@contextmanager
def locked(folder: Path, work: str) -> Iterator[None]:
    """Hold the lock of a folder, `.<name>.lock` in its parent, for the length of the block, and wait for it if need be.

    The lock's file is removed afterwards, with those that killed processes have left in the same place.

    Args:
        folder: the folder to make; its parent is created.
        work: the work, for the log line of a process that waits: "fine-tuning", "making".

    Raises:
        DiskError: the lock cannot be made there.

    Example:
        >>> with locked(tmp_path / "model", "making"):
        ...     (tmp_path / ".model.lock").exists()
        True
    """
    make_folder(folder.parent)
    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    with disk_errors(lock.lock_file):
        try:
            lock.acquire(timeout=0)
        except Timeout:
            logger.warning("%s is %s %s; waiting for it", holders(Path(lock.lock_file)), work, folder)
            lock.acquire()
    _remove_stale_locks(folder.parent, Path(lock.lock_file))
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(
            missing_ok=True
        )  # a process that waits for it locks the file anew, or finds the work done
        lock.release()


def _remove_stale_locks(parent: Path, mine: Path) -> None:
    """Remove locks of ours that no process holds; one that waits for it, or is about to take it, makes it anew."""
    for path in parent.glob(".*.lock"):
        if path == mine or not _OURS.fullmatch(path.name):
            continue
        stale = FileLock(path)
        with suppress(Timeout, OSError), stale.acquire(timeout=0):
            path.unlink(missing_ok=True)


def holders(path: Path) -> str:
    """Return the other processes that have a file or folder open: `process 4711`, or `another process` if unknown."""
    found = sorted(pid for pid in _processes() if pid != os.getpid() and _has_open(pid, path))
    if not found:
        return "another process"
    return f"process{'es' * (len(found) > 1)} {', '.join(map(str, found))}"


def _processes() -> list[int]:
    """Return the ids of this machine's processes, where the system has /proc."""
    proc = Path("/proc")
    return [int(name) for name in os.listdir(proc) if name.isdigit()] if proc.is_dir() else []


def _has_open(pid: int, path: Path) -> bool:
    try:
        wanted, folder = path.stat(), Path(f"/proc/{pid}/fd")
        return any(os.path.samestat(wanted, (folder / name).stat()) for name in os.listdir(folder))
    except OSError:  # it has ended meanwhile, or is another user's
        return False
