"""Losses on several workers: the rows of the whole batch, and random numbers that are the same on all workers.

Each worker trains on a part of every batch, and the losses are summed, each weighted by its share of the targets. A
loss that is a mean over targets needs no more than that. A loss that compares rows with each other, or averages over
something else, gathers the rows of all workers first:

    states, owners = whole_batch(states, owners)
    loss = info_nce(states, owners)

and is then the same number on every worker, with the gradients of one process. What is drawn for the whole batch is
drawn within `shared_random`. In one process both do nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol, overload

import torch
from torch import Tensor
from torch import distributed as dist
from torch.autograd.function import once_differentiable


class RandomStreams(Protocol):
    """The random streams of a worker: its own, and the one that is the same on all workers."""

    def shared(self) -> AbstractContextManager[None]:
        """Draw from the stream of all workers within the block."""


@dataclass(frozen=True)
class BatchPart:
    """One worker's part of a batch, while its loss is computed.

    Attributes:
        group: process group in which losses exchange rows.
        size: number of workers.
        rank: number of this worker, from 0.
        share: share of the batch's targets; the shares of all workers sum to 1.
        idle: whether the batch has fewer rows than there are workers and none for this one. It then computes on a row
            of another worker, to take part in all exchanges, and that row counts for nothing.
        streams: random streams of this worker.
    """

    group: Any
    size: int
    rank: int
    share: float
    idle: bool
    streams: RandomStreams


_part: ContextVar[BatchPart | None] = ContextVar("part", default=None)


@contextmanager
def part_of_batch(part: BatchPart) -> Iterator[None]:
    """Let the functions of this module work on this part of a batch within the block."""
    token = _part.set(part)
    try:
        yield
    finally:
        _part.reset(token)


def shared_random() -> AbstractContextManager[None]:
    """Draw the same numbers on all workers within the block, if each draws as many; in one process nothing changes."""
    part = _part.get()
    return nullcontext() if part is None else part.streams.shared()


@overload
def whole_batch(tensor: Tensor, /) -> Tensor: ...
@overload
def whole_batch(*tensors: Tensor) -> tuple[Tensor, ...]: ...
def whole_batch(*tensors: Tensor) -> Any:
    """Gather the rows of all workers in the order of the batch; their gradients return to the workers they came from.

    Every worker must call it, and compute the same value from the result, of which its share counts.

    Args:
        tensors: (n, ...) each, with the same n; n may differ between workers. Several in one call cost one exchange.

    Returns:
        (N, ...) of each tensor, N being the sum of all n; the tensors themselves in one process.

    Example:
        >>> whole_batch(torch.arange(3))
        tensor([0, 1, 2])
    """
    whole = Rows(len(tensors[0])).whole(*tensors)
    return whole[0] if len(whole) == 1 else whole


class Rows:
    """The place of this worker's rows in the whole batch; every worker must make one at the same time.

    Args:
        count: number of this worker's rows.

    Attributes:
        start: index of its first row in the whole batch.
        total: number of rows of the whole batch.

    Example:
        >>> rows = Rows(3)
        >>> rows.start, rows.total
        (0, 3)
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._part = _part.get()
        if self._part is None:
            self._counts, self.start, self.total = [count], 0, count
            return
        self._counts = _counts(0 if self._part.idle else count, self._part)
        self.start, self.total = sum(self._counts[: self._part.rank]), sum(self._counts)

    def whole(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Returns (N, ...) of each (n, ...) tensor, as `whole_batch` does."""
        if self._part is None:
            return tensors
        mine = [tensor[: self._counts[self._part.rank]] for tensor in tensors]
        return _Gather.apply(self._counts, self._part, *mine)

    def own(self, whole: Tensor) -> Tensor:
        """Returns this worker's rows, (n, ...), of a tensor of the whole batch, (N, ...)."""
        start = 0 if self._part is not None and self._part.idle else self.start
        return whole[start : start + self.count]


def _device_of(part: BatchPart) -> torch.device:
    """Returns the device on which tensors are exchanged."""
    on_gpu = dist.get_backend(part.group) == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")


def _counts(count: int, part: BatchPart) -> list[int]:
    """Returns the `count` of every worker."""
    device = _device_of(part)
    found = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(part.size)]
    dist.all_gather(found, torch.tensor([count], device=device), group=part.group)
    return [int(one) for one in found]


class _Gather(torch.autograd.Function):
    """Gathers rows of all workers. Its adjoint sums all workers' gradients of this worker's rows.

    All tensors of a call are one node, so that the backward passes of all workers exchange in the same order.
    """

    @staticmethod
    def forward(ctx: Any, counts: list[int], part: BatchPart, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.counts, ctx.part = counts, part
        ctx.set_materialize_grads(True)
        whole = tuple(_gathered(tensor, counts, part) for tensor in tensors)
        ctx.mark_non_differentiable(*(one for one in whole if not one.is_floating_point()))
        return whole

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        start = sum(ctx.counts[: ctx.part.rank])
        stop = start + ctx.counts[ctx.part.rank]
        mine: list[Tensor | None] = []
        for gradient, needed in zip(gradients, ctx.needs_input_grad[2:], strict=True):
            if not needed:
                mine.append(None)
                continue
            total = gradient.to(torch.promote_types(gradient.dtype, torch.float32), copy=True).contiguous()
            dist.all_reduce(total, group=ctx.part.group)
            mine.append(total[start:stop].to(gradient.dtype))
        return None, None, *mine


def _gathered(tensor: Tensor, counts: list[int], part: BatchPart) -> Tensor:
    """Gather rows of all workers, padded to the largest number that one has, since all must send equal sizes."""
    sent = tensor.detach().to(torch.uint8) if tensor.dtype == torch.bool else tensor.detach()
    padded = sent.new_zeros((max(counts), *sent.shape[1:]))
    padded[: len(sent)] = sent
    device = _device_of(part)
    padded = padded.to(device)
    found = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(found, padded, group=part.group)
    return torch.cat([one[:count] for one, count in zip(found, counts)]).to(tensor.device, tensor.dtype)
