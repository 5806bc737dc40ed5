"""The run that is served now, and the change to a newer one while requests go on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from recbole_mm.errors import RecboleMMError
from recbole_mm.runs.folder import CONFIG, RESULT, is_finished
from recbole_mm.serving.batching import Batcher
from recbole_mm.serving.metrics import Metrics
from recbole_mm.serving.schema import Question
from recbole_mm.serving.served import Served
from recbole_mm.utils.escaping import one_line

logger = logging.getLogger(__name__)

Identity = tuple[Path, int]
"""A run's folder, links followed, and when its result was written."""


def newest_run(path: Path) -> Identity | None:
    """Return which finished run a path means: that of the folder, or of a folder of runs the one finished last."""
    inside = () if (path / CONFIG).is_file() else path.glob("*")
    folders = [folder for folder in (path, *inside) if (folder / CONFIG).is_file()]
    found = []
    for folder in folders:
        if is_finished(folder):
            found.append((folder.resolve(), (folder / RESULT).stat().st_mtime_ns))
    return max(found, key=lambda identity: (identity[1], identity[0]), default=None)


class Service:
    """Answers by one run at a time, and changes to another one when the path means another.

    Args:
        path: a run's folder, a link to one, or a folder of runs, of which the newest is served.
        open_at: opens a run's folder.
        look_every: seconds between two looks at what the path means; 0: only when `look()` is called.
        most_at_once: requests that are scored together.
        most_waiting: requests that wait to be scored.
        after_change: called, in a thread, once another run is served.

    Attributes:
        served: the run that answers now. Take it once for a request.
        metrics: counts of this service.

    Raises:
        RecboleMMError: the run cannot be opened.
    """

    def __init__(
        self,
        path: Path,
        open_at: Callable[[Path], Served],
        look_every: float = 0,
        most_at_once: int = 64,
        most_waiting: int = 256,
        after_change: Callable[[], None] = lambda: None,
    ) -> None:
        self.metrics = Metrics()
        self._after_change = after_change
        self._path, self._open_at, self._look_every = path, open_at, look_every
        self._sizes = (most_at_once, most_waiting)
        self._current = newest_run(path)
        self._refused: Identity | None = None
        self._wanted = asyncio.Event()
        self.served = open_at(path if self._current is None else self._current[0])
        self.metrics.serves(self.served.name)

    async def start(self) -> None:
        """Begin to answer, on the loop that runs."""
        self._batcher: Batcher[Question, dict[str, Any]] = Batcher(
            lambda questions: self.served.answer(questions), *self._sizes, on_batch=self.metrics.scored
        )
        self.metrics.watch_waiting(lambda: len(self._batcher))
        self._tasks = [asyncio.create_task(self._batcher.work()), asyncio.create_task(self._watch())]

    async def stop(self) -> None:
        """End what `start` began."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def ask(self, question: Question) -> dict[str, Any]:
        """Return what `Recommendations` or `SimilarItems` hold.

        Raises:
            RecboleMMError: it cannot be answered.
        """
        return await self._batcher.ask(question)

    def look_soon(self) -> None:
        """Have it looked whether the path means another run, from a handler of a signal."""
        self._wanted.set()

    async def _watch(self) -> None:
        while True:
            try:
                await asyncio.wait_for(self._wanted.wait(), self._look_every or None)
                self._refused = None  # who asks for a look wants another try
            except TimeoutError:
                pass
            self._wanted.clear()
            await self.look()

    async def look(self) -> None:
        """Change to the run that the path means now; the one that is served stays where that cannot be opened.

        Requests that came before are answered by either run, none is lost.
        """
        try:
            found = await asyncio.to_thread(newest_run, self._path)
        except OSError:
            return  # the run is being replaced, or has been removed: what is served is in memory
        if found is None or found in (self._current, self._refused):
            return
        try:
            served = await asyncio.to_thread(self._open_at, found[0])
        except Exception as error:  # whatever is wrong with another run, this one goes on
            self._refused = found
            self.metrics.changed("failed")
            trace = not isinstance(error, RecboleMMError)
            logger.warning("%s is served on: %s cannot be: %s", self.served.name, found[0], error, exc_info=trace)
            return
        self.served, self._current = served, found
        self.metrics.serves(served.name)
        self.metrics.changed("done")
        await asyncio.to_thread(self._after_change)
        print(one_line(f"serving {served.name} from now on"), flush=True)
