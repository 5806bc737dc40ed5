"""Stages of the artifact store on a Ray cluster: batches are sent to a pool of workers, and values come back.

The calling process keeps the store, cuts the batches, and is the only one that writes: SQLite's write-ahead log does
not work over a network. The number of batches in flight is bounded, so a stage may be larger than Ray's object store.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from itertools import count
from typing import TYPE_CHECKING, Any

import torch

from recbole_mm.artifacts.executor import Executor, Failure, Recipe, RemoteWork
from recbole_mm.artifacts.values import Value
from recbole_mm.distributed.cluster import Names, Resources, check_resources, inside_ray, ray_session
from recbole_mm.errors import ConfigError, RecboleMMError

if TYPE_CHECKING:
    from recbole_mm.config.resolved import Config
    from recbole_mm.distributed.serialization import BatchResult

logger = logging.getLogger(__name__)

NAMES = Names(
    cpus="ray_cpus_per_worker",
    gpus="ray_gpus_per_worker",
    jobs="ray_workers",
    store="ray_object_store_mb",
    address="ray_address",
)

STORE_MB = 512
"""Object store of a Ray that is started here: enough for some batches of images."""

BATCHES_PER_WORKER, BATCHES_AHEAD = 2, 2
"""Batches in flight: for each worker one that it computes and one that waits for it; and some more in all."""

RESERVED_SHARE = 0.5
"""Share of the object store for batches; Ray Data needs the rest."""


def stage_resources(config: Config) -> Resources | None:
    """Returns what the stages of a run ask of Ray; None where this process computes them.

    By default a worker has one GPU if the run has one, else as many CPUs as torch has threads in this process.
    """
    address = config["ray_address"]
    if address is None:
        return None
    gpus = config["ray_gpus_per_worker"]
    gpus = float(config["device"].type == "cuda") if gpus is None else gpus
    cpus = config["ray_cpus_per_worker"]
    cpus = (1 if gpus else torch.get_num_threads()) if cpus is None else cpus
    return Resources(cpus, gpus, config["ray_workers"], address, config["ray_object_store_mb"], NAMES)


def check_stages(config: Config) -> None:
    """Make sure that the cluster of `ray_address` can compute the stages of a run, before anything is computed.

    Raises:
        ConfigError: more workers than there is room for, a cluster that cannot be reached.
    """
    asked = stage_resources(config)
    if asked is not None and not inside_ray():
        check_resources(asked)


def open_executor(config: Config) -> AbstractContextManager[Executor | None]:
    """Open the executor of the cluster of `ray_address`; gives None where this process computes the stages itself.

    One of Ray's own processes, such as a trial of a search, computes its stages itself: trials take up the cluster.
    """
    asked = stage_resources(config)
    if asked is None:
        return nullcontext()
    if inside_ray():
        logger.info("ray_address has no effect on stages here: this process is one of Ray's itself")
        return nullcontext()
    return RayExecutor(asked)


@dataclass
class _InFlight:
    """A batch that was sent: the keys of its inputs, failures of those that were not sent, and the reference to it."""

    keys: list[str]
    unsent: dict[str, Value | Failure]
    reference: Any


class RayExecutor:
    """Computes stages by a pool of Ray actors that Ray Data manages; one pool at a time.

    Ray is started or connected to with the first batch, so not at all where nothing is missing. Workers keep their
    models from stage to stage while the recipe stays the same.

    Args:
        asked: resources of the workers.

    Example:
        >>> with RayExecutor(stage_resources(config)) as executor:                       # doctest: +SKIP
        ...     fill(store, stage, inputs, work, batches, executor=executor, remote_work=remote_work)
    """

    def __init__(self, asked: Resources) -> None:
        self.asked = replace(asked, store_mb=asked.store_mb or STORE_MB) if asked.is_local else asked
        self._session = ExitStack()
        self._workers = 0
        self._recipe: Recipe | None = None
        self._queue: Any = None
        self._numbers = count()

    def __enter__(self) -> RayExecutor:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers, and the Ray session unless it was there before."""
        self.release()
        self._session.close()
        self._workers = 0

    def release(self) -> None:
        """End the workers, and with them their models."""
        if self._queue is not None:
            import ray

            ray.kill(self._queue)  # Ray also ends the actors that it has started
            self._queue = self._recipe = None

    def stream(self, work: RemoteWork, missing: Mapping[str, Any]) -> Iterator[Mapping[str, Value | Failure]]:
        """Yields every key of `missing` once with its value, a batch as soon as it is computed, in any order.

        Raises:
            ConfigError: no cluster answers, or it or its object store has too little room.
            RecboleMMError: raised by a worker.
        """
        source = iter(work.batches(missing))
        in_flight: dict[int, _InFlight] = {}
        left = True
        try:
            while left or in_flight:
                while left and len(in_flight) < self._most_in_flight():
                    batch = next(source, None)
                    left = batch is not None
                    if batch is None:
                        continue
                    unsent = {key: value for key, value in batch.items() if isinstance(value, Failure)}
                    inputs = {key: value for key, value in batch.items() if key not in unsent}
                    if inputs:
                        number = next(self._numbers)
                        in_flight[number] = _InFlight(list(inputs), dict(unsent), None)
                        in_flight[number].reference = self._send(work.recipe, number, list(inputs.values()))
                    elif unsent:
                        yield unsent
                if in_flight:
                    for number, result in self._finished():
                        if number in in_flight:
                            yield _values(in_flight.pop(number), result, work.on_report)
        finally:
            if in_flight:  # interrupted: nobody waits for the results any more
                self.release()

    def _most_in_flight(self) -> int:
        return BATCHES_PER_WORKER * self._workers + BATCHES_AHEAD if self._workers else 1

    # --- Ray ---------------------------------------------------------------------------------------------------------

    def _send(self, recipe: Recipe, number: int, inputs: list[Any]) -> Any:
        """Send a batch; returns the reference that keeps it in the object store while a worker may need it again."""
        import ray

        if not self._workers:
            check_resources(self.asked)
            self._workers = self._session.enter_context(ray_session(self.asked))
            logger.info(
                "Ray workers: %d, each with CPUs: %g, GPUs: %g", self._workers, self.asked.cpus, self.asked.gpus
            )
        if self._queue is None or recipe != self._recipe:
            self.release()
            self._check_object_store(inputs)
            self._queue, self._recipe = self._start_queue(recipe), recipe
        reference = ray.put(inputs)
        ray.get(self._queue.put.remote(number, [reference]))
        return reference

    def _start_queue(self, recipe: Recipe) -> Any:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        from recbole_mm.distributed.stage_actors import BatchQueue

        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor: Any = ray.remote(BatchQueue)
        cpus, gpus, threads = self.asked.cpus, self.asked.gpus, torch.get_num_threads()
        return actor.options(num_cpus=0, scheduling_strategy=here).remote(recipe, self._workers, cpus, gpus, threads)

    def _check_object_store(self, inputs: list[Any]) -> None:
        """Make sure, by the first batch, that the object store has room for all batches in flight."""
        import ray

        size = len(ray.cloudpickle.dumps(inputs))
        stores = [node["Resources"].get("object_store_memory", 0) for node in ray.nodes() if node["Alive"]]
        needed = size * self._most_in_flight() / RESERVED_SHARE
        if needed > min(stores):
            raise ConfigError(
                f"Ray's object store of {min(stores) / 2**20:.0f} MB is too small for {self._workers} workers: batches "
                f"of {size / 2**20:.1f} MB need {needed / 2**20:.0f} MB; give ray_object_store_mb, or "
                "`ray start --object-store-memory`, or fewer ray_workers"
            )

    def _finished(self) -> Iterator[tuple[int, BatchResult]]:
        """Yields the numbers and results of finished batches, as soon as there are any."""
        import ray

        from recbole_mm.distributed.serialization import from_table

        try:
            tables, broken = ray.get(self._queue.results.remote())
        except ray.exceptions.RayError as error:
            raise RecboleMMError(f"the Ray cluster was lost: {' '.join(str(error).split())}; run again") from error
        for table in tables:
            yield from from_table(table).items()
        if broken is not None and not tables:
            raise RecboleMMError(f"the workers on Ray have stopped: {broken}")


def _values(
    sent: _InFlight, result: BatchResult, on_report: Callable[[Mapping[str, Any]], None]
) -> dict[str, Value | Failure]:
    """Returns a batch's values by key.

    Raises:
        Exception: raised by the worker.
    """
    if result.error is not None:
        raise result.error
    if result.report:
        on_report(result.report)
    if len(result.outcomes) != len(sent.keys):
        raise ValueError(f"the worker returned {len(result.outcomes)} values for {len(sent.keys)} inputs")
    return {**sent.unsent, **dict(zip(sent.keys, result.outcomes))}
