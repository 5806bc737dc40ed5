"""Results computed in threads before they are needed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Given = TypeVar("Given")
Made = TypeVar("Made")


def prefetch(
    function: Callable[[Given], Made], inputs: Iterable[Given], threads: int, depth: int
) -> Generator[Made, None, None]:
    """Yield function(input) in order, computed in threads, up to `depth` results before they are asked for.

    Example:
        >>> list(prefetch(str.upper, ["a", "b", "c"], threads=2, depth=2))
        ['A', 'B', 'C']
    """
    pending: deque[Future[Made]] = deque()
    source = iter(inputs)
    with ThreadPoolExecutor(threads, thread_name_prefix="prefetch") as pool:
        try:
            while True:
                pending.extend(pool.submit(function, value) for value in islice(source, depth - len(pending)))
                if not pending:
                    return
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
