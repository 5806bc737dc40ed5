"""The actors that compute stages on a Ray cluster: a queue of batches, and a pool of workers that Ray Data manages.

Ray Data asks for inputs when it likes. Here batches are made one after another, and those of a preference chain's next
round exist only when the round before is written, by the same workers, which should not load their model again. So Ray
Data maps over tickets, an endless series of numbers: a worker takes the next batch for each ticket that it gets. Ray
Data restarts actors, retries their tickets and streams the results. A ticket that is retried takes the same batch as
before, and the process that sends batches owns them, so nothing is lost with a node.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from recbole_mm.artifacts.executor import Recipe, Worker
from recbole_mm.distributed.serialization import SCHEMA, error_table, to_table
from recbole_mm.errors import RecboleMMError

logger = logging.getLogger(__name__)

TICKETS_PER_WORKER = 2
"""One that the worker computes, and one that waits."""

TICKETS = 1 << 40
"""Number of tickets of a pass of Ray Data: more than there ever are batches."""

CHECK_SECONDS = 2.0
"""Seconds that a worker waits for a batch before the queue checks that all nodes are alive."""

Batch = tuple[int, list[Any]]
"""Number of a batch, and a list with the reference to its inputs; Ray would resolve a reference outside of a list."""


class BatchQueue:
    """The actor that gives batches to workers and collects results, on the node of the process that sends batches.

    Args:
        recipe: makes a worker.
        workers: number of workers.
        cpus, gpus: resources of each worker.
        threads: torch threads of each worker.
    """

    def __init__(self, recipe: Recipe, workers: int, cpus: float, gpus: float, threads: int) -> None:
        self.recipe, self.workers, self.cpus, self.gpus, self.threads = recipe, workers, cpus, gpus, threads
        self._offered: deque[Batch] = deque()
        self._given: dict[int, Batch] = {}
        self._results: list[pa.Table] = []
        self._broken: str | None = None
        self._passes = 0
        self._ending = False
        self._nodes: set[str] = set()
        self._changed = asyncio.Condition()
        self._thread: threading.Thread | None = None

    # --- for the process that sends batches ---------------------------------------------------------------------------

    async def put(self, number: int, inputs: list[Any]) -> None:
        """Add a batch, and start the workers with the first one."""
        if self._thread is None:
            me, loop = ray.get_runtime_context().current_actor, asyncio.get_running_loop()
            self._thread = threading.Thread(target=self._work, args=(me, loop), daemon=True)
            self._thread.start()
        async with self._changed:
            self._offered.append((number, inputs))
            self._changed.notify_all()

    async def results(self) -> tuple[list[pa.Table], str | None]:
        """Returns what has come since the last call, waiting for it, and why no more will come, if so."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._results or self._broken)
            found, self._results = self._results, []
            return found, self._broken

    # --- for the workers ---------------------------------------------------------------------------------------------

    async def take(self, ticket: int) -> Batch | None:
        """Returns the batch of a ticket; None if the pass is ending and the ticket is not needed."""
        while True:
            async with self._changed:
                if ticket in self._given:
                    return self._given[ticket]  # the ticket is retried after its worker died
                if self._ending:
                    return None
                if self._offered:
                    self._given[ticket] = self._offered.popleft()
                    return self._given[ticket]
                try:
                    await asyncio.wait_for(self._changed.wait(), CHECK_SECONDS)
                    continue
                except TimeoutError:
                    stuck = bool(self._given)
            if stuck and self._nodes - await asyncio.to_thread(_alive):
                await self._end()

    async def is_running(self) -> bool:
        """Returns whether the pass needs more tickets."""
        return not self._ending

    async def _end(self) -> None:
        """End the pass after a node was lost.

        Ray restarts its worker where there is room, which idle workers may take up; Ray Data ends them with its input.
        """
        async with self._changed:
            self._ending = True
            self._changed.notify_all()

    # --- passes of Ray Data ------------------------------------------------------------------------------------------

    def _work(self, me: Any, loop: asyncio.AbstractEventLoop) -> None:
        """Run pass after pass in a thread, until this actor ends."""
        try:
            while True:
                self._nodes, self._ending = _alive(), False
                for bundle in self._pass(me).iter_internal_ref_bundles():
                    for table in ray.get(bundle.block_refs):
                        if table.num_rows:
                            asyncio.run_coroutine_threadsafe(self._add(table), loop).result()
        except Exception as error:  # the caller of `results` must learn of any error, or it waits for ever
            asyncio.run_coroutine_threadsafe(self._break(error), loop).result()

    def _pass(self, me: Any) -> Any:
        """Returns the dataset that maps tickets to the values of their batches."""
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        context.target_max_block_size = 1  # byte: every ticket is a block, and is sent at once
        first, self._passes = self._passes * TICKETS, self._passes + 1
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        one: dict[str, Any] = {"batch_size": 1, "batch_format": "pyarrow"}
        workers = min(self.workers, self._room())
        numbers: Callable[..., Any] = _tickets
        tickets = ray.data.from_items([first]).map_batches(
            numbers, fn_args=(me,), num_cpus=0, scheduling_strategy=here, **one
        )
        return tickets.map_batches(
            TicketWorker,
            **one,
            compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=TICKETS_PER_WORKER),
            fn_constructor_args=(me, self.recipe, self.threads, "cuda" if self.gpus else "cpu"),
            num_cpus=self.cpus,
            num_gpus=self.gpus or None,
        )

    def _room(self) -> int:
        """Returns for how many workers the nodes that are left have room, at least 1."""
        has = ray.cluster_resources()
        by_gpu = has.get("GPU", 0) / self.gpus if self.gpus else float("inf")
        return max(int(min(has.get("CPU", 0) / self.cpus, by_gpu) + 1e-9), 1)

    async def _add(self, table: pa.Table) -> None:
        numbers = set(table["batch"].to_pylist())
        async with self._changed:
            self._given = {ticket: given for ticket, given in self._given.items() if given[0] not in numbers}
            self._results.append(table)
            self._changed.notify_all()

    async def _break(self, error: Exception) -> None:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        async with self._changed:
            self._broken = lines[-1]
            self._changed.notify_all()


def _tickets(first: pa.Table, queue: Any) -> Iterator[pa.Table]:
    """Yields tickets as fast as Ray Data takes them while the pass is running; the same ones when it is retried."""
    start = first["item"][0].as_py()
    for ticket in range(start, start + TICKETS):
        if not ray.get(queue.is_running.remote()):
            return
        yield pa.table({"ticket": [ticket]})


class TicketWorker:
    """A worker of Ray Data's pool: takes the batch of each ticket from the queue, and returns its values.

    Args:
        queue: handle of the `BatchQueue`.
        recipe: makes the worker that computes.
        threads: torch threads.
        device: `cpu` or `cuda`.
    """

    def __init__(self, queue: Any, recipe: Recipe, threads: int, device: str) -> None:
        import torch

        torch.set_num_threads(threads)  # as many as in the calling process: other numbers may give other bits
        self.queue = queue
        self.where = ray.util.get_node_ip_address()
        self.worker: Worker | None = None
        self.error: Exception | None = None
        try:
            self.worker = recipe.open(device)
        except Exception as error:  # returned with the first batch: raised here, Ray Data would try again and again
            self.error = error

    def __call__(self, tickets: pa.Table) -> pa.Table:
        """Returns the values of one ticket's batch as a table, empty if there is no batch for it."""
        given = ray.get(self.queue.take.remote(tickets["ticket"][0].as_py()))
        if given is None:
            return SCHEMA.empty_table()
        number, (reference,) = given
        if self.worker is None:
            assert self.error is not None
            return error_table(number, self.error, self.where)
        try:
            inputs = ray.get(reference)
            return to_table(number, self.worker.compute(inputs), self.worker.report())
        except RecboleMMError as error:
            return error_table(number, error, self.where)
        except Exception as error:  # to be raised by the calling process, instead of retried by Ray
            return error_table(number, error, self.where, f"\n{traceback.format_exc()}")


def _alive() -> set[str]:
    """Returns the ids of the nodes that are alive."""
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}
