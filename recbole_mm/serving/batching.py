"""Answers the questions of many connections in batches: while one batch is scored, the next one gathers."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

from recbole_mm.errors import RecboleMMError

logger = logging.getLogger(__name__)

Question = TypeVar("Question")
Answer = TypeVar("Answer")


class BusyError(RecboleMMError):
    """More is asked than can be answered."""


class Batcher(Generic[Question, Answer]):
    """Passes questions on in batches, in the order in which they came, to a function that runs in one thread.

    Nothing waits for a batch to fill: a question that comes alone is answered alone.

    Args:
        answer: returns for each question its answer, or the error that is to be raised.
        most_at_once: bound of a batch.
        most_waiting: bound of the questions that wait for their batch.
        on_batch: called with the size of each batch.
    """

    def __init__(
        self,
        answer: Callable[[Sequence[Question]], Sequence[Answer | Exception]],
        most_at_once: int = 64,
        most_waiting: int = 256,
        on_batch: Callable[[int], None] = lambda size: None,
    ) -> None:
        self._answer = answer
        self._most_at_once, self._most_waiting = most_at_once, most_waiting
        self._on_batch = on_batch
        self._waiting: deque[tuple[Question, asyncio.Future[Answer]]] = deque()
        self._has_waiting = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="scoring")

    def __len__(self) -> int:
        return len(self._waiting)

    async def ask(self, question: Question) -> Answer:
        """Return the answer. Who is cancelled meanwhile is not answered.

        Raises:
            BusyError: too many wait already.
        """
        if len(self._waiting) >= self._most_waiting:
            raise BusyError(f"{self._most_waiting} requests wait already; ask again later")
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((question, future))
        self._has_waiting.set()
        return await future

    async def work(self) -> None:
        """Answer until cancelled."""
        try:
            while True:
                await self._has_waiting.wait()
                batch = self._next()
                if batch:
                    await self._answered(batch)
                else:
                    self._has_waiting.clear()
        finally:
            self._thread.shutdown(wait=False, cancel_futures=True)

    def _next(self) -> list[tuple[Question, asyncio.Future[Answer]]]:
        batch: list[tuple[Question, asyncio.Future[Answer]]] = []
        while self._waiting and len(batch) < self._most_at_once:
            question, future = self._waiting.popleft()
            if not future.done():
                batch.append((question, future))
        return batch

    async def _answered(self, batch: Sequence[tuple[Question, asyncio.Future[Answer]]]) -> None:
        questions = [question for question, _ in batch]
        self._on_batch(len(batch))
        answers: Sequence[Answer | Exception]
        try:
            answers = await asyncio.get_running_loop().run_in_executor(self._thread, self._answer, questions)
        except Exception:  # an answer for each is the contract; whatever it is, the next batch is answered
            logger.exception("a batch of %d could not be answered", len(batch))
            answers = [RuntimeError("the scores could not be computed") for _ in batch]
        for (_, future), answer in zip(batch, answers, strict=True):
            if future.done():
                continue
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)
