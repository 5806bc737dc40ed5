"""`recbole-mm serve` as a process of its own, started and ended as at a terminal."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import httpx2

ROOT = Path(__file__).parents[2]
REACHABLE = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
"""Ctrl-C reaches a server even where the tests run in a shell's background, whose jobs ignore it."""


class Server:
    """A server on a free port.

    Attributes:
        process, address, port: of it.
    """

    def __init__(self, run: Path, *options: str) -> None:
        command = [sys.executable, "-m", "recbole_mm.cli", "serve", str(run), "--port=0", *options]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, preexec_fn=REACHABLE
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.fullmatch(r"serving \S+ at (http://127\.0\.0\.1:(\d+))/\n", line)
        assert found is not None, (line, self.process.communicate()[1])
        self.address, self.port = found[1], int(found[2])

    def client(self) -> httpx2.Client:
        return httpx2.Client(base_url=self.address, trust_env=False, timeout=30)

    def ended(self) -> tuple[int, str, str]:
        """Return the exit status and what was printed, once it has ended."""
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out, err


@contextmanager
def server(run: Path, *options: str) -> Iterator[Server]:
    """Yield a server; it is ended afterwards where it still runs."""
    one = Server(run, *options)
    try:
        yield one
    finally:
        if one.process.poll() is None:
            one.process.kill()
            one.process.communicate()
