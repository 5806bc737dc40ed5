"""Scores of a few items for each state, without a tensor of all items or of all their vectors.

With n states, k items each and d dimensions, plain torch gathers n x k x d numbers, keeps them for the gradient, and
makes as many again there. What is kept here is n x k: on a CPU the scores are a product at the places of a sparse
matrix, elsewhere a block of states has its items' vectors gathered; both gradients are weighted sums of rows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from recbole_mm.models.sparse import product_at

BLOCK_BYTES = 24 << 20
"""Of the vectors that are gathered at once."""


def sampled_scores(states: Tensor, items: Tensor, ids: Tensor) -> Tensor:
    """Return the product of each state with its own items, in the precision of the items. Differentiable once.

    Args:
        states: (n, d) floating.
        items: (N, d).
        ids: rows of `items` for each state, int64 (n, k).

    Returns:
        (n, k).

    Example:
        >>> sampled_scores(torch.eye(2), torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[0, 1], [1, 1]]))
        tensor([[1., 3.],
                [4., 4.]])
    """
    return _SampledScores.apply(states.to(items.dtype), items, ids)


class _SampledScores(torch.autograd.Function):
    """Differentiable by the states and by the items."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, items: Tensor, ids: Tensor) -> Tensor:
        ctx.save_for_backward(states, items, ids)
        if states.device.type != "cpu" or states.dtype not in (torch.float32, torch.float64):
            return _gathered(states, items, ids)
        if len(items) < ids.shape[1]:  # than which a sparse matrix has no more places
            return (states @ items.T).gather(1, ids)
        starts = torch.arange(0, ids.numel() + 1, ids.shape[1])
        return product_at(starts, ids.reshape(-1), states, items).view(ids.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        states, items, ids = ctx.saved_tensors
        weights = outputs[0].to(items.dtype).contiguous()
        of_states = F.embedding_bag(ids, items, per_sample_weights=weights, mode="sum")
        return of_states, _of_items(weights, states, ids, len(items)) if ctx.needs_input_grad[1] else None, None


def _gathered(states: Tensor, items: Tensor, ids: Tensor) -> Tensor:
    """Return the scores (n, k) by blocks of states whose items' vectors take `BLOCK_BYTES`, or are those of one."""
    scores = states.new_empty(ids.shape)
    rows = max(1, BLOCK_BYTES // (ids.shape[1] * states.shape[1] * states.element_size()))
    with torch.autocast(states.device.type, enabled=False):
        for block in (slice(start, start + rows) for start in range(0, len(states), rows)):
            scores[block] = torch.bmm(items[ids[block]], states[block].unsqueeze(2)).squeeze(2)
    return scores


def _of_items(weights: Tensor, states: Tensor, ids: Tensor, n_items: int) -> Tensor:
    """Return the gradient (N, d) of the items: of each, the sum of the states that it was scored for, weighted."""
    narrow = torch.int16 if n_items <= torch.iinfo(torch.int16).max else torch.int32  # sorted in half the time
    by_item = ids.reshape(-1).to(narrow).argsort(stable=True)
    counts = torch.bincount(ids.reshape(-1), minlength=n_items)
    owners, starts = by_item // ids.shape[1], counts.cumsum(0) - counts
    return F.embedding_bag(owners, states, starts, per_sample_weights=weights.reshape(-1)[by_item], mode="sum")
