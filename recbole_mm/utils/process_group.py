"""The workers that train one model, as each of them sees them: its rank, sums over all, and its share of a list."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import numpy as np
import torch
from torch import distributed as dist

T = TypeVar("T")


class Workers:
    """All workers, seen from one of them. torch's default process group must be initialised.

    Attributes:
        rank: number of this worker, from 0. The first one writes the files of a run.
        size: number of workers.
        device: where tensors must be to be exchanged.
        group: process group for everything but gradients, which have the default one: so the exchanges of losses and
            those of gradients, which overlap, never wait for each other.

    Example:
        >>> dist.init_process_group("gloo")                                              # doctest: +SKIP
        >>> workers = Workers()                                                          # doctest: +SKIP
        >>> workers.sum(np.array([workers.rank]))  # of two workers                      # doctest: +SKIP
        array([1])
    """

    def __init__(self) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        on_gpu = dist.get_backend() == "nccl"
        self.device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
        self.group: Any = dist.new_group()

    @property
    def is_first(self) -> bool:
        """Whether this worker is the one that writes files."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait until all workers have called this."""
        self.sum(np.zeros(1))

    def sum(self, values: np.ndarray) -> np.ndarray:
        """Returns the sum over all workers of an array, which has the same shape and dtype on each."""
        total = torch.from_numpy(np.array(values)).to(self.device)
        dist.all_reduce(total, group=self.group)
        return total.cpu().numpy()

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """Returns this worker's part of a list that is the same on all workers: every `size`-th item."""
        return items[self.rank :: self.size]


_current: ContextVar[Workers | None] = ContextVar("workers", default=None)


def current_workers() -> Workers | None:
    """Returns the workers that this process is one of; None in a process that trains alone."""
    return _current.get()


@contextmanager
def use_workers(workers: Workers) -> Iterator[None]:
    """Make `current_workers` return these workers within the block."""
    token = _current.set(workers)
    try:
        yield
    finally:
        _current.reset(token)
