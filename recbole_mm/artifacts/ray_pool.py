"""Stages on a Ray cluster: batches go out to a pool of workers and come back as values.

The process that calls keeps the store, cuts the batches, and is the only one that writes: SQLite's write-ahead log does
not work over a network. What is under way at a time is bounded, so a stage may be larger than Ray's object store.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import torch

from recbole_mm.artifacts.executor import Executor, Failure, Portable, Recipe
from recbole_mm.artifacts.values import Value
from recbole_mm.artifacts.wire import Done, from_table
from recbole_mm.distributed.cluster import Names, Resources, check_resources, inside_ray, ray_session
from recbole_mm.errors import ConfigError, RecboleMMError

logger = logging.getLogger(__name__)

NAMES = Names(
    cpus="ray_cpus_per_worker",
    gpus="ray_gpus_per_worker",
    jobs="ray_workers",
    several="workers",
    store="ray_object_store_mb",
    address="ray_address",
)

STORE_MB = 512
"""Object store of a Ray that is started here: some batches of pictures."""

BATCHES_PER_WORKER, BATCHES_AHEAD = 2, 2
"""Under way at a time: one that a worker is at and one that waits for it; and some more that are ready."""

RESERVED_SHARE = 0.5
"""Of the object store, for batches; Ray Data and others need the rest."""


def stage_resources(config) -> Resources | None:
    """What the settings of a run ask of Ray; None where its stages run in the loop of this process.

    By default a worker has one GPU if the run has, else as many CPUs as torch has threads here.
    """
    address = config["ray_address"]
    if address is None:
        return None
    gpus = config["ray_gpus_per_worker"]
    gpus = float(config["device"].type == "cuda") if gpus is None else gpus
    cpus = config["ray_cpus_per_worker"]
    cpus = (1 if gpus else torch.get_num_threads()) if cpus is None else cpus
    return Resources(cpus, gpus, config["ray_workers"], address, config["ray_object_store_mb"], NAMES)


def check_stages(config) -> None:
    """Finds what keeps the stages of a run from running on the cluster of `ray_address`, before anything is spent.

    Raises:
        ConfigError: more workers than there is room for, a cluster that cannot be reached.
    """
    asked = stage_resources(config)
    if asked is not None and not inside_ray():
        check_resources(asked)


def open_executor(config) -> AbstractContextManager[Executor | None]:
    """Returns what computes the stages of a run on the cluster of `ray_address`; None for this process.

    A process of Ray's, such as a trial of a search, computes its own: its cluster is taken up by trials.
    """
    asked = stage_resources(config)
    if asked is None:
        return nullcontext()
    if inside_ray():
        logger.info("ray_address has no effect on stages here: this process is one of Ray's itself")
        return nullcontext()
    return RayExecutor(asked)


@dataclass
class _UnderWay:
    """A batch that was sent out: the keys of its inputs, what could not be sent, and the reference that keeps it."""

    keys: list[str]
    unsent: dict[str, Value | Failure]
    reference: Any


class RayExecutor:
    """Has work done by a pool of Ray actors, which Ray Data keeps; one pool at a time.

    Ray is started or connected to with the first batch, so never where nothing is missing. While the recipe stays the
    same the workers stay, with their models, from stage to stage.

    Args:
        asked: of Ray.

    Example:
        >>> with RayExecutor(stage_resources(config)) as executor:                       # doctest: +SKIP
        ...     fill(store, stage, inputs, work, batches, executor=executor, portable=portable)
    """

    def __init__(self, asked: Resources) -> None:
        self.asked = replace(asked, store_mb=asked.store_mb or STORE_MB) if asked.is_local else asked
        self._session = ExitStack()
        self._workers = 0
        self._recipe: Recipe | None = None
        self._desk: Any = None
        self._numbers = count()

    def __enter__(self) -> RayExecutor:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the workers, and of Ray unless it was running before."""
        self.release()
        self._session.close()
        self._workers = 0

    def release(self) -> None:
        """Let go of the workers and their models."""
        if self._desk is not None:
            import ray

            ray.kill(self._desk)  # Ray ends the actors that it has made, too
            self._desk = self._recipe = None

    def stream(self, work: Portable, missing: Mapping[str, Any]) -> Iterator[Mapping[str, Value | Failure]]:
        """Yield every key of `missing` once, with its value, a batch as soon as it is done, in any order.

        Raises:
            ConfigError: what is asked for cannot be had: a cluster, room on it, room in its object store.
            RecboleMMError: what a worker has raised.
        """
        source = iter(work.batches(missing))
        under_way: dict[int, _UnderWay] = {}
        left = True
        try:
            while left or under_way:
                while left and len(under_way) < self._most_under_way():
                    batch = next(source, None)
                    left = batch is not None
                    if batch is None:
                        continue
                    unsent = {key: value for key, value in batch.items() if isinstance(value, Failure)}
                    inputs = {key: value for key, value in batch.items() if key not in unsent}
                    if inputs:
                        number = next(self._numbers)
                        under_way[number] = _UnderWay(list(inputs), dict(unsent), None)
                        under_way[number].reference = self._offer(work.recipe, number, list(inputs.values()))
                    elif unsent:
                        yield unsent
                if under_way:
                    for number, done in self._come_back():
                        if number in under_way:
                            yield _values(under_way.pop(number), done, work.hear)
        finally:
            if under_way:  # interrupted: what still comes back is of nobody's interest
                self.release()

    def _most_under_way(self) -> int:
        return BATCHES_PER_WORKER * self._workers + BATCHES_AHEAD if self._workers else 1

    # --- Ray ---------------------------------------------------------------------------------------------------------

    def _offer(self, recipe: Recipe, number: int, inputs: list[Any]) -> Any:
        """Send a batch out; gives the reference that keeps it while a worker may want it again."""
        import ray

        if not self._workers:
            check_resources(self.asked)
            self._workers = self._session.enter_context(ray_session(self.asked))
            logger.info("Ray: %d workers of %g CPUs and %g GPUs", self._workers, self.asked.cpus, self.asked.gpus)
        if self._desk is None or recipe != self._recipe:
            self.release()
            self._check_object_store(inputs)
            self._desk, self._recipe = self._open_desk(recipe), recipe
        reference = ray.put(inputs)
        ray.get(self._desk.offer.remote(number, [reference]))
        return reference

    def _open_desk(self, recipe: Recipe) -> Any:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        from recbole_mm.artifacts.ray_actors import Desk

        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor: Any = ray.remote(Desk)
        cpus, gpus, threads = self.asked.cpus, self.asked.gpus, torch.get_num_threads()
        return actor.options(num_cpus=0, scheduling_strategy=here).remote(recipe, self._workers, cpus, gpus, threads)

    def _check_object_store(self, inputs: list[Any]) -> None:
        """Make sure that there is room for the batches that are under way at a time, told by the first one."""
        import ray

        size = len(ray.cloudpickle.dumps(inputs))
        stores = [node["Resources"].get("object_store_memory", 0) for node in ray.nodes() if node["Alive"]]
        needed = size * self._most_under_way() / RESERVED_SHARE
        if needed > min(stores):
            raise ConfigError(
                f"Ray's object store of {min(stores) / 2**20:.0f} MB is too small for {self._workers} workers: batches "
                f"of {size / 2**20:.1f} MB need {needed / 2**20:.0f} MB; give ray_object_store_mb, or "
                "`ray start --object-store-memory`, or fewer ray_workers"
            )

    def _come_back(self) -> Iterator[tuple[int, Done]]:
        """Batches that are done, by number."""
        import ray

        try:
            tables, broken = ray.get(self._desk.results.remote())
        except ray.exceptions.RayError as error:
            raise RecboleMMError(f"the Ray cluster was lost: {' '.join(str(error).split())}; run again") from error
        for table in tables:
            yield from from_table(table).items()
        if broken is not None and not tables:
            raise RecboleMMError(f"the workers on Ray have stopped: {broken}")


def _values(sent: _UnderWay, done: Done, hear: Callable[[Mapping[str, Any]], None]) -> dict[str, Value | Failure]:
    """A batch's values under their keys.

    Raises:
        Exception: what the worker raised.
    """
    if done.error is not None:
        raise done.error
    if done.told:
        hear(done.told)
    if len(done.outcomes) != len(sent.keys):
        raise ValueError(f"the worker returned {len(done.outcomes)} values for {len(sent.keys)} inputs")
    return {**sent.unsent, **dict(zip(sent.keys, done.outcomes))}
