"""What a grid of processes needs of the operating system: why one ended, a lock, and an orderly end."""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from recbole_mm.errors import CheckpointError

logger = logging.getLogger(__name__)


def failure(status: int, log: Path) -> str:
    """One line on why a run ended without a result, from its exit status and its standard error."""
    if status == 0:
        return "it ended well but left no result of these settings"
    if status < 0:
        name = signal.Signals(-status).name
        return f"killed by {name}" + (", perhaps out of memory" if name == "SIGKILL" else "")
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    told = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if status == 2 and told:
        return told[-1]
    return lines[-1] if lines else f"ended with status {status} and no message"


@contextmanager
def alone_in(folder: Path, work: str = "comparison", option: str = "--checkpoint_dir") -> Iterator[int]:
    """Hold `folder` against other processes, which would resume the same unfinished runs; gives the lock's descriptor.

    Args:
        folder: of the runs; it is created.
        work: what is done there, for people.
        option: names another folder on the command line.

    Raises:
        CheckpointError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CheckpointError(
                f"{folder}: another {work}, or a run it started, is at work there; wait for it, or pass another "
                f"{option}"
            ) from error
        except OSError as error:
            logger.warning("%s cannot be locked (%s): start no second %s there", folder, error.strerror, work)
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def terminated_like_ctrl_c() -> Iterator[None]:
    """Make SIGTERM stop the runs, too, instead of leaving them behind."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # only the main thread may ask for signals
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
