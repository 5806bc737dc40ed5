"""Commands that a test starts and stops as a user would at a terminal."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

TO_BE_READY_SECONDS = 240


def started(command: Sequence[str], is_ready: Callable[[], object], **options: Any) -> subprocess.Popen:
    """Start a command whose standard error is kept, and wait until `is_ready()` says something true.

    Ctrl-C reaches it even where the tests run in a shell's background, whose jobs ignore it.
    """
    reachable = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=reachable, **options)
    deadline = time.monotonic() + TO_BE_READY_SECONDS
    while not is_ready():
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.1)
    return process
