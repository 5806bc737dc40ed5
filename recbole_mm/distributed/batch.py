"""What a loss must know of the other workers: rows that are compared with each other, and draws that all must share.

A trainer on several workers hands each of them a part of every batch, and adds their losses up, each weighted by its
share of the targets. For a loss that is a mean over targets that is all there is to it. A loss that compares rows with
each other, or averages over something else, takes the rows of all workers first:

    states, owners = whole_batch(states, owners)
    loss = info_nce(states, owners)

and is then the same number on every worker, with the gradients of one process. What is drawn for the whole batch is
drawn under `shared_random`, by which all workers draw alike. In one process both do nothing.
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


class Streams(Protocol):
    """The random streams of a worker, of which one is that of all workers."""

    def shared(self) -> AbstractContextManager[None]:
        """Within the block everything draws from the stream of all workers."""


@dataclass(frozen=True)
class Part:
    """One worker's part of a batch, while its loss is computed.

    Attributes:
        group: process group for what losses exchange.
        size: number of workers.
        rank: which of them this is.
        share: of the batch's targets; the shares of all workers add up to 1.
        idle: whether there are fewer rows than workers and none for this one. It computes on a row of another's, so
            that it takes part in what all must do together; that row counts for nothing.
        streams: of this worker.
    """

    group: Any
    size: int
    rank: int
    share: float
    idle: bool
    streams: Streams


_part: ContextVar[Part | None] = ContextVar("part", default=None)


@contextmanager
def part_of_batch(part: Part) -> Iterator[None]:
    """Within the block the functions of this module speak of this part of a batch."""
    token = _part.set(part)
    try:
        yield
    finally:
        _part.reset(token)


def shared_random() -> AbstractContextManager[None]:
    """Within the block all workers draw the same, if each draws as much; in one process nothing changes."""
    part = _part.get()
    return nullcontext() if part is None else part.streams.shared()


@overload
def whole_batch(tensor: Tensor, /) -> Tensor: ...
@overload
def whole_batch(*tensors: Tensor) -> tuple[Tensor, ...]: ...
def whole_batch(*tensors: Tensor) -> Any:
    """Rows of all workers, in the order of the batch; a gradient of any of them returns to the worker it came from.

    Every worker must call it, and then compute the same from it: its share of that value's gradient is what counts.

    Args:
        tensors: (n, ...) each, with the same n; n may differ between workers. Several at once cost one exchange.

    Returns:
        (N, ...) each, N being the sum of all n; the tensors themselves in one process.
    """
    whole = Rows(len(tensors[0])).whole(*tensors)
    return whole[0] if len(whole) == 1 else whole


class Rows:
    """Where this worker's rows stand among those of the whole batch; every worker must make one at the same time.

    Args:
        count: number of rows here.

    Attributes:
        start: place of the first of them.
        total: number of all rows.
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
        """See `whole_batch`."""
        if self._part is None:
            return tensors
        mine = [tensor[: self._counts[self._part.rank]] for tensor in tensors]
        return _Gather.apply(self._counts, self._part, *mine)

    def own(self, whole: Tensor) -> Tensor:
        """This worker's rows (n, ...) of a tensor with a row for each of the whole batch (N, ...)."""
        start = 0 if self._part is not None and self._part.idle else self.start
        return whole[start : start + self.count]


def _device_of(part: Part) -> torch.device:
    """Where tensors must be to be exchanged."""
    on_gpu = dist.get_backend(part.group) == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")


def _counts(count: int, part: Part) -> list[int]:
    """`count` of every worker."""
    device = _device_of(part)
    found = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(part.size)]
    dist.all_gather(found, torch.tensor([count], device=device), group=part.group)
    return [int(one) for one in found]


class _Gather(torch.autograd.Function):
    """Rows of all workers. Its adjoint: the sum of all workers' gradients of this worker's rows.

    One node for all tensors of a call, so that the exchanges of the backward pass follow each other alike everywhere.
    """

    @staticmethod
    def forward(ctx: Any, counts: list[int], part: Part, *tensors: Tensor) -> tuple[Tensor, ...]:
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


def _gathered(tensor: Tensor, counts: list[int], part: Part) -> Tensor:
    """Rows of all workers; those of each are padded to the most that one has, since an exchange is of equal sizes."""
    sent = tensor.detach().to(torch.uint8) if tensor.dtype == torch.bool else tensor.detach()
    padded = sent.new_zeros((max(counts), *sent.shape[1:]))
    padded[: len(sent)] = sent
    device = _device_of(part)
    padded = padded.to(device)
    found = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(found, padded, group=part.group)
    return torch.cat([one[:count] for one, count in zip(found, counts)]).to(tensor.device, tensor.dtype)
