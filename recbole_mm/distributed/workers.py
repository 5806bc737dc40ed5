"""The workers of a run as one of them sees it: who it is, what part of a batch is its own, and sums over all."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import numpy as np
import torch
from recbole.data.interaction import Interaction
from torch import distributed as dist

from recbole_mm.data.loaders import TARGET_MASK
from recbole_mm.training.checkpoint import rng_state, set_rng_state

T = TypeVar("T")


class Workers:
    """All workers, seen from one. torch's default process group must be there.

    Attributes:
        rank: number of this worker, from 0. The first one writes what a run leaves behind.
        size: how many there are.
        device: where tensors must be to be exchanged.
        group: process group for everything but gradients, which have the default one: so the exchanges of losses and
            those of gradients, which overlap, never wait for each other.
    """

    def __init__(self) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        on_gpu = dist.get_backend() == "nccl"
        self.device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
        self.group: Any = dist.new_group()

    @property
    def first(self) -> bool:
        return self.rank == 0

    def wait(self) -> None:
        """Go on when all workers are here."""
        self.sum(np.zeros(1))

    def sum(self, values: np.ndarray) -> np.ndarray:
        """Sum over all workers of an array of numbers, which has the same shape on each."""
        total = torch.from_numpy(np.array(values)).to(self.device)
        dist.all_reduce(total, group=self.group)
        return total.cpu().numpy()

    def own(self, things: Sequence[T]) -> Sequence[T]:
        """This worker's of some things that all workers list alike: every `size`-th."""
        return things[self.rank :: self.size]


_joined: ContextVar[Workers | None] = ContextVar("workers", default=None)


def joined() -> Workers | None:
    """The workers that this process is one of; None for a process that works alone."""
    return _joined.get()


@contextmanager
def working_with(workers: Workers) -> Iterator[None]:
    """Within the block this process is one of these workers."""
    token = _joined.set(workers)
    try:
        yield
    finally:
        _joined.reset(token)


# --------------------------------------------------------------------------------------------------------------- slices


def bounds(total: int, size: int) -> list[int]:
    """Where the parts of `total` rows begin and end: (size + 1,) numbers; parts differ by one row at most.

    >>> bounds(7, 3)
    [0, 2, 4, 7]
    """
    return [total * rank // size for rank in range(size + 1)]


def slice_of(batch: Interaction, rank: int, size: int) -> tuple[Interaction, float, bool]:
    """One worker's part of a batch, its share of the targets, and whether it is idle (see `batch.Part`).

    A target is a position of `target_mask` in a batch of sequences, and a row of any other batch.
    """
    edges = bounds(len(batch), size)
    start, stop = edges[rank], edges[rank + 1]
    idle = start == stop
    if idle:
        return _rows(batch, slice(0, 1)), 0.0, True
    mine = _rows(batch, slice(start, stop))
    if TARGET_MASK in batch:
        return mine, float(mine[TARGET_MASK].sum()) / float(batch[TARGET_MASK].sum()), False
    return mine, (stop - start) / len(batch), False


def _rows(batch: Interaction, rows: slice) -> Interaction:
    return Interaction({name: values[rows] for name, values in batch.interaction.items()})


# --------------------------------------------------------------------------------------------------------------- random


class OwnStream:
    """A worker's random stream for the loss, where dropout must differ by worker; outside of it all draw alike.

    Everywhere else - the order of batches, negatives, what a model draws for an epoch - the generators of all workers
    are in the same state, which is the one that a checkpoint keeps. The own stream begins anew with every epoch, by
    seed, epoch and rank, so it needs no place in a checkpoint.

    Args:
        seed: of the run.
        rank: of the worker.
    """

    def __init__(self, seed: int, rank: int) -> None:
        self.seed, self.rank = seed, rank
        self._own: dict[str, Any] = {}
        self._shared: dict[str, Any] | None = None

    def begin(self, epoch: int) -> None:
        """Begin the stream of an epoch."""
        before = rng_state()
        number = int(np.random.SeedSequence([self.seed, epoch, self.rank]).generate_state(1)[0])
        random.seed(number)
        np.random.seed(number)
        torch.manual_seed(number)
        self._own = rng_state()
        set_rng_state(before)

    @contextmanager
    def own(self) -> Iterator[None]:
        """Within the block everything draws from the own stream."""
        self._shared = rng_state()
        set_rng_state(self._own)
        try:
            yield
        finally:
            self._own = rng_state()
            set_rng_state(self._shared)
            self._shared = None

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Within the block, inside one of `own`, everything draws from the stream of all workers."""
        if self._shared is None:  # all draw alike already
            yield
            return
        own = rng_state()
        set_rng_state(self._shared)
        try:
            yield
        finally:
            self._shared = rng_state()
            set_rng_state(own)
