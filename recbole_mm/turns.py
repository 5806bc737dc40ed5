"""Several processes that want the same folder made: one makes it, the others wait and find it there."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

logger = logging.getLogger(__name__)


@contextmanager
def turn(folder: Path, work: str) -> Iterator[None]:
    """Hold the lock of a folder, `.<name>.lock` beside it, waiting for whoever has it.

    Args:
        folder: what is made; its parent is created.
        work: what is done, for people: "fine-tuning", "making".
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.warning("another process is %s %s; waiting for it", work, folder)
        lock.acquire()
    try:
        yield
        Path(lock.lock_file).unlink(missing_ok=True)  # whoever waits for it finds the work done
    finally:
        lock.release()
