"""What runs on the cluster: the pool of workers, which Ray Data keeps, and the desk where they fetch their batches.

Ray Data asks for inputs as it sees fit. Here batches are made one after another, and those of a preference chain's next
round only when the round before is written, by the same workers, which are not to load their model again. So what Ray
Data maps over are tickets, plain numbers without an end: a worker that is handed a ticket fetches the next batch for
it. Actors, their restarts, the retries of what they were doing and the stream of results are Ray Data's. A ticket that
is retried fetches the same batch as before, and the desk's batches lie with the process that offers them, so a node
that dies loses nothing.
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
from recbole_mm.artifacts.wire import SCHEMA, error_table, to_table
from recbole_mm.errors import RecboleMMError

logger = logging.getLogger(__name__)

TICKETS_PER_WORKER = 2
"""One that is worked on, and one that waits behind it."""

TICKETS = 1 << 40
"""Of a pass of Ray Data: more than there ever are batches."""

LOOK_SECONDS = 2.0
"""A worker that waits for a batch for so long has the desk look after the nodes."""

Given = tuple[int, list[Any]]
"""A batch's number, and in a list, so that Ray hands on the reference and not what it refers to, its inputs."""


class Desk:
    """Where batches are handed out and results collected: an actor beside the process that offers them.

    Args:
        recipe: of the workers.
        workers: how many.
        cpus, gpus: of each.
        threads: of torch in each.
    """

    def __init__(self, recipe: Recipe, workers: int, cpus: float, gpus: float, threads: int) -> None:
        self.recipe, self.workers, self.cpus, self.gpus, self.threads = recipe, workers, cpus, gpus, threads
        self._offered: deque[Given] = deque()
        self._given: dict[int, Given] = {}
        self._results: list[pa.Table] = []
        self._broken: str | None = None
        self._passes = 0
        self._ending = False
        self._nodes: set[str] = set()
        self._changed = asyncio.Condition()
        self._thread: threading.Thread | None = None

    # --- for the process that has the work ---------------------------------------------------------------------------

    async def offer(self, number: int, inputs: list[Any]) -> None:
        """Put a batch on the desk."""
        if self._thread is None:
            me, loop = ray.get_runtime_context().current_actor, asyncio.get_running_loop()
            self._thread = threading.Thread(target=self._work, args=(me, loop), daemon=True)
            self._thread.start()
        async with self._changed:
            self._offered.append((number, inputs))
            self._changed.notify_all()

    async def results(self) -> tuple[list[pa.Table], str | None]:
        """What has come back since the last call, as soon as there is anything; and why no more will, if so."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._results or self._broken)
            found, self._results = self._results, []
            return found, self._broken

    # --- for the workers ---------------------------------------------------------------------------------------------

    async def take(self, ticket: int) -> Given | None:
        """The batch of a ticket; None to a ticket that is not needed any more, as the pass is ending."""
        while True:
            async with self._changed:
                if ticket in self._given:
                    return self._given[ticket]  # of a worker that died; or of its own call, that still stands here
                if self._ending:
                    return None
                if self._offered:
                    self._given[ticket] = self._offered.popleft()
                    return self._given[ticket]
                try:
                    await asyncio.wait_for(self._changed.wait(), LOOK_SECONDS)
                    continue
                except TimeoutError:
                    stuck = bool(self._given)
            if stuck and self._nodes - await asyncio.to_thread(_alive):
                await self._end()

    async def going_on(self) -> bool:
        """Whether the pass needs more tickets."""
        return not self._ending

    async def _end(self) -> None:
        """End the pass. A node is gone, with a worker that Ray restarts where there is room; those that have nothing
        left to do may be in its way, and Ray Data lets go of them when its inputs are used up."""
        async with self._changed:
            self._ending = True
            self._changed.notify_all()

    # --- passes of Ray Data ------------------------------------------------------------------------------------------

    def _work(self, me: Any, loop: asyncio.AbstractEventLoop) -> None:
        """Pass after pass, in a thread, until the desk is cleared away."""
        try:
            while True:
                self._nodes, self._ending = _alive(), False
                for bundle in self._pass(me).iter_internal_ref_bundles():
                    for table in ray.get(bundle.block_refs):
                        if table.num_rows:
                            asyncio.run_coroutine_threadsafe(self._come(table), loop).result()
        except Exception as error:  # whatever ends Ray Data must be told, or the other side waits for ever
            asyncio.run_coroutine_threadsafe(self._break(error), loop).result()

    def _pass(self, me: Any) -> Any:
        """Tickets, mapped to the values of the batches that they are exchanged for."""
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        context.target_max_block_size = 1  # byte: every ticket is a block, and goes out at once
        first, self._passes = self._passes * TICKETS, self._passes + 1
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        one: dict[str, Any] = {"batch_size": 1, "batch_format": "pyarrow"}
        workers = min(self.workers, self._room())
        numbers: Callable[..., Any] = _tickets
        tickets = ray.data.from_items([first]).map_batches(
            numbers, fn_args=(me,), num_cpus=0, scheduling_strategy=here, **one
        )
        return tickets.map_batches(
            Taker,
            **one,
            compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=TICKETS_PER_WORKER),
            fn_constructor_args=(me, self.recipe, self.threads, "cuda" if self.gpus else "cpu"),
            num_cpus=self.cpus,
            num_gpus=self.gpus or None,
        )

    def _room(self) -> int:
        """Workers that the nodes of now have room for, one at least: with fewer nodes than at first, fewer."""
        has = ray.cluster_resources()
        by_gpu = has.get("GPU", 0) / self.gpus if self.gpus else float("inf")
        return max(int(min(has.get("CPU", 0) / self.cpus, by_gpu) + 1e-9), 1)

    async def _come(self, table: pa.Table) -> None:
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


def _tickets(first: pa.Table, desk: Any) -> Iterator[pa.Table]:
    """Number after number, as fast as Ray Data takes them, while the pass goes on. A repetition gives the same ones."""
    start = first["item"][0].as_py()
    for ticket in range(start, start + TICKETS):
        if not ray.get(desk.going_on.remote()):
            return
        yield pa.table({"ticket": [ticket]})


class Taker:
    """A worker: Ray Data makes one in each actor of its pool and calls it with tickets.

    Args:
        desk: handle of the `Desk`.
        recipe: of the worker that does the work.
        threads: of torch.
        device: `cpu` or `cuda`.
    """

    def __init__(self, desk: Any, recipe: Recipe, threads: int, device: str) -> None:
        import torch

        torch.set_num_threads(threads)  # of as many as where the work comes from: other numbers may give other bits
        self.desk = desk
        self.where = ray.util.get_node_ip_address()
        self.worker: Worker | None = None
        self.error: Exception | None = None
        try:
            self.worker = recipe.open(device)
        except Exception as error:  # told with the first batch; raised here, Ray Data would try again and again
            self.error = error

    def __call__(self, tickets: pa.Table) -> pa.Table:
        """One ticket -> a table of values, empty if there is nothing to do for it."""
        given = ray.get(self.desk.take.remote(tickets["ticket"][0].as_py()))
        if given is None:
            return SCHEMA.empty_table()
        number, (reference,) = given
        if self.worker is None:
            assert self.error is not None
            return error_table(number, self.error, self.where)
        try:
            inputs = ray.get(reference)
            return to_table(number, self.worker.compute(inputs), self.worker.told())
        except RecboleMMError as error:
            return error_table(number, error, self.where)
        except Exception as error:  # as the loop in one process raises it, and not as a task for Ray to try again
            return error_table(number, error, self.where, f"\n{traceback.format_exc()}")


def _alive() -> set[str]:
    """Ids of the nodes."""
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}
