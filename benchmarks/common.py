"""What the benchmarks share: a quiet configuration, a watch on memory and a Markdown table."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import psutil
from tabulate import tabulate

import recbole_mm  # noqa: F401  (applies the compatibility shims)


def quiet_config(model: str, dataset: str, **settings):
    """A Config that logs warnings only; settings of None are left to their defaults."""
    from recbole_mm.config.resolved import Config

    given = {key: value for key, value in settings.items() if value is not None}
    return Config(model, dataset, config_dict={"state": "WARNING", "show_progress": False, **given})


class PeakMemory:
    """The most memory that this process holds while the block runs, looked at every 2 ms.

    Attributes:
        before, peak: bytes, as the operating system counts resident memory.

    Example:
        >>> with PeakMemory() as memory:
        ...     work()
        >>> memory.added_mib
    """

    def __init__(self) -> None:
        self.before = self.peak = 0
        self._process = psutil.Process()
        self._stop = threading.Event()
        self._watcher = threading.Thread(target=self._watch)

    def __enter__(self) -> PeakMemory:
        self.before = self.peak = self._process.memory_info().rss
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._watcher.join()
        self._look()

    def _watch(self) -> None:
        while not self._stop.wait(0.002):
            self._look()

    def _look(self) -> None:
        self.peak = max(self.peak, self._process.memory_info().rss)

    @property
    def peak_mib(self) -> float:
        return self.peak / 2**20

    @property
    def added_mib(self) -> float:
        return (self.peak - self.before) / 2**20


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table with padded cells."""
    return tabulate(rows, head, tablefmt="github", disable_numparse=True)
