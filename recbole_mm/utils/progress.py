"""Progress of a loop: a bar on a terminal, which vanishes at the end; a log line every ten seconds anywhere else.

>>> from recbole_mm.utils.progress import progress
>>> sum(progress([1, 2, 3], "Adding"))
6
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import Generic, TypeVar

from tqdm import tqdm

logger = logging.getLogger(__name__)

T = TypeVar("T")

LOG_PERIOD = 10.0
"""Seconds between two log lines where there is no terminal. A loop that ends sooner logs nothing."""


class Progress(Generic[T]):
    """An iterable that reports its progress; see `progress` for the arguments.

    `note` adds a few words (a running loss, a count of failures) to the numbers.

    Example:
        >>> steps = Progress(range(3), "Training", total=None, unit="step", show=False)
        >>> steps.note("loss 0.5")
        >>> list(steps)
        [0, 1, 2]
    """

    def __init__(self, iterable: Iterable[T], desc: str, total: int | None, unit: str, show: bool) -> None:
        self._iterable = iterable
        self._desc = desc
        self._total = len(iterable) if total is None and isinstance(iterable, Sized) else total
        self._unit = unit
        self._show = show
        self._note = ""
        self._bar: tqdm | None = None

    def __iter__(self) -> Iterator[T]:
        if not self._show:
            return iter(self._iterable)
        return self._with_bar() if sys.stderr.isatty() else self._with_log()

    def note(self, text: str) -> None:
        """Add `text` to the numbers from the next report on."""
        self._note = text
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)

    def _with_bar(self) -> Iterator[T]:
        """Yield the elements and draw a tqdm bar on standard error; it is closed even when the loop is left early."""
        bar = tqdm(
            desc=self._desc, total=self._total, unit=self._unit, leave=False, dynamic_ncols=True, file=sys.stderr
        )
        self._bar = bar
        try:
            self.note(self._note)
            for value in self._iterable:
                yield value
                bar.update()
        finally:
            bar.close()
            self._bar = None

    def _with_log(self) -> Iterator[T]:
        """Yield the elements and log one line per `LOG_PERIOD`, and a last one if there was any before."""
        start = last = time.monotonic()
        done = 0
        for value in self._iterable:
            yield value
            done += 1
            now = time.monotonic()
            if now - last >= LOG_PERIOD:
                logger.info("%s", self._line(done, now - start))
                last = now
        if last > start:
            logger.info("%s", self._line(done, time.monotonic() - start, ended=True))

    def _line(self, done: int, seconds: float, ended: bool = False) -> str:
        """`Encoding: 300/1200 items (25%), 42.0 items/s, 21s left`; the rate is the mean since the start."""
        rate = done / seconds if seconds > 0 else 0.0
        of_total = f"/{self._total}" if self._total is not None else ""
        share = f" ({done / self._total:.0%})" if self._total else ""
        line = f"{self._desc}: {done}{of_total} {self._unit}{share}, {rate:.1f} {self._unit}/s"
        if ended:
            line += f", ended after {duration(seconds)}"
        elif self._total is not None and rate > 0:
            line += f", {duration(max(self._total - done, 0) / rate)} left"
        return f"{line}, {self._note}" if self._note else line


def progress(
    iterable: Iterable[T], desc: str, total: int | None = None, unit: str = "it", show: bool = True
) -> Progress[T]:
    """Wrap `iterable` so that iterating over it reports progress.

    On a terminal this is a tqdm bar, and otherwise (a file, a cluster's log, a notebook) one log line every
    `LOG_PERIOD` seconds, so that a long job is never silent and a short one leaves no noise.

    Args:
        iterable: any iterable.
        desc: the work, as in "Encoding items".
        total: number of elements; by default `len(iterable)` where it has one.
        unit: name of one element, as in "item" or "batch".
        show: False silences it.
    """
    return Progress(iterable, desc, total, unit, show)


def duration(seconds: float) -> str:
    """Format seconds as people write them.

    Example:
        >>> duration(8.34), duration(125), duration(11_400)
        ('8.3s', '2m05s', '3h10m')
    """
    if seconds < 10:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{rest}s"
    hours, minutes_left = divmod(minutes, 60)
    return f"{hours}h{minutes_left:02d}m" if hours else f"{minutes}m{rest:02d}s"
