"""Processes of experiments: why one ended, a lock on a folder, and an end with the parent process."""

from __future__ import annotations

import ctypes
import fcntl
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from recbole_mm.errors import CheckpointError
from recbole_mm.utils.file_lock import holders
from recbole_mm.utils.files import make_folder

logger = logging.getLogger(__name__)


def failure(status: int, log: Path) -> str:
    """Returns in one line why a run ended without a result, from its exit status and its standard error."""
    if status == 0:
        return "it ended well but left no result of these settings"
    if status < 0:
        name = signal.Signals(-status).name
        return f"killed by {name}" + (", perhaps out of memory" if name == "SIGKILL" else "")
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if status == 2 and errors:
        return errors[-1]
    return lines[-1] if lines else f"ended with status {status} and no message"


@contextmanager
def alone_in(folder: Path, work: str = "comparison", option: str = "--checkpoint_dir") -> Iterator[int]:
    """Lock `folder` against other processes, which would resume the same unfinished runs; yields the lock's descriptor.

    Args:
        folder: of the runs; it is created.
        work: what is done there, for messages.
        option: the command line's option for another folder.

    Raises:
        CheckpointError: another process holds it.
        DiskError: it cannot be made.
    """
    make_folder(folder)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CheckpointError(
                f"{folder}: another {work}, or a run it started, is at work there ({holders(folder)}); wait for it or "
                f"stop it, or pass another {option}"
            ) from error
        except OSError as error:
            logger.warning("%s cannot be locked (%s): start no second %s there", folder, error.strerror, work)
        yield descriptor
    finally:
        os.close(descriptor)


_PR_SET_PDEATHSIG = 1
_prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None


def die_with_parent(parent: int) -> Callable[[], None] | None:
    """Returns what a child of process `parent` calls before `exec`: it asks Linux to be killed with its parent.

    A run may be killed at any moment and resumed. On other systems a run outlives a grid that is killed, and its copy
    of the lock refuses other grids until it is done.
    """
    if _prctl is None:
        return None
    prctl = _prctl

    def ask() -> None:
        """Ask Linux for SIGKILL when the parent ends."""
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the question
            os._exit(1)

    return ask


@contextmanager
def terminated_like_ctrl_c() -> Iterator[None]:
    """Raise KeyboardInterrupt on SIGTERM, so that it ends the runs too."""

    def interrupt(number: int, frame: Any) -> None:
        """Raise what Ctrl-C raises."""
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # only the main thread may ask for signals
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
