"""Scores of a few items for each state, without a tensor of all items or of all their vectors.

With n states, k items each and d dimensions, plain torch gathers n x k x d numbers, keeps them for the gradient, and
makes as many again there. Here a block of states has its items' vectors gathered, is scored, and lets go of them; what
is kept is n x k.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

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
    return _Blockwise.apply(states.to(items.dtype), items, ids)


def _blocks(states: Tensor, ids: Tensor) -> list[slice]:
    """Return slices of the states whose items' vectors take `BLOCK_BYTES` at most, or are those of one state."""
    rows = max(1, BLOCK_BYTES // max(1, ids.shape[1] * states.shape[1] * states.element_size()))
    return [slice(start, start + rows) for start in range(0, len(states), rows)]


class _Blockwise(torch.autograd.Function):
    """Gathers vectors anew for the gradient."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, items: Tensor, ids: Tensor) -> Tensor:
        ctx.save_for_backward(states, items, ids)
        scores = states.new_empty(ids.shape)
        with torch.autocast(states.device.type, enabled=False):
            for block in _blocks(states, ids):
                scores[block] = torch.bmm(items[ids[block]], states[block].unsqueeze(2)).squeeze(2)
        return scores

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        states, items, ids = ctx.saved_tensors
        (of_scores,) = outputs
        of_states = torch.empty_like(states) if ctx.needs_input_grad[0] else None
        if of_states is not None:
            for block in _blocks(states, ids):
                of_states[block] = torch.bmm(of_scores[block].unsqueeze(1), items[ids[block]]).squeeze(1)
        of_items = _of_items(of_scores, states, items, ids) if ctx.needs_input_grad[1] else None
        return of_states, of_items, None


def _of_items(of_scores: Tensor, states: Tensor, items: Tensor, ids: Tensor) -> Tensor:
    """Return the gradient (N, d) of the items: a sparse matrix (N, n) of the scores' gradients times the states."""
    owners = torch.arange(len(ids), device=ids.device).unsqueeze(1).expand_as(ids)
    places = torch.stack([ids.reshape(-1), owners.reshape(-1)])
    shape = (len(items), len(states))
    return torch.sparse_coo_tensor(places, of_scores.reshape(-1), shape, check_invariants=False) @ states
