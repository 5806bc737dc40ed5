"""Cross-entropy over all items without a matrix of all logits.

With n states and N items, plain torch keeps n x N logits, writes as many probabilities and as many gradients, and takes
fresh memory from the system for each; with tens of thousands of items that is most of a training step. Here a block of
rows goes from logits to its share of both gradients.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from recbole_mm.models.products import product

ROWS, BLOCK_BYTES = 128, 24 << 20
"""Of a block: enough rows for whole matrix products, but no matrix larger than what the process keeps when it is freed:
the C library gives pieces above 32 MB back to the system, which clears them page by page when they are wanted again."""


def linear_cross_entropy(states: Tensor, items: Tensor, targets: Tensor) -> Tensor:
    """Return `F.cross_entropy(states @ items.T, targets)`, computed blockwise on a CPU in float32 or float64.

    Blockwise it can be differentiated once. On a GPU, in half precision and under autocast it is torch's function.

    Args:
        states: (n, d) floating.
        items: (N, d), same dtype.
        targets: row of `items` for each state, int64 (n,).

    Returns:
        Mean over the states, a scalar.

    Example:
        >>> linear_cross_entropy(torch.zeros(2, 3), torch.ones(4, 3), torch.tensor([0, 3]))
        tensor(1.3863)
    """
    narrow = states.dtype not in (torch.float32, torch.float64) or torch.is_autocast_enabled("cpu")
    if states.device.type != "cpu" or narrow:
        return F.cross_entropy(states @ items.T, targets)
    return _Blockwise.apply(states, items, targets)


class _Blockwise(torch.autograd.Function):
    """Computes gradients with the loss, from the same logits: d loss / d logits = (softmax - one-hot) / n."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, items: Tensor, targets: Tensor) -> Tensor:
        differentiated = any(ctx.needs_input_grad[:2])
        of_states = torch.empty_like(states)
        of_items = torch.zeros(items.shape[::-1], dtype=items.dtype)
        total = torch.zeros((), dtype=torch.float64)
        rows, columns = (max(1, BLOCK_BYTES // (size * items.element_size())) for size in items.shape)
        rows = min(ROWS, rows)
        for start in range(0, len(states), rows):
            block, target = states[start : start + rows], targets[start : start + rows, None]
            logits = product(block, items)
            right = logits.gather(1, target)
            highest = logits.amax(dim=1, keepdim=True)
            powers = logits.sub_(highest).exp_()
            norm = powers.sum(dim=1, keepdim=True)
            total += (norm.log() + highest - right).sum()
            if differentiated:
                gradient = powers.mul_(1 / (len(states) * norm))
                gradient.scatter_add_(1, target, gradient.new_full(target.shape, -1 / len(states)))
                of_states[start : start + rows] = product(gradient, items.T)
                for part, share in zip(of_items.split(columns, dim=1), gradient.split(columns, dim=1)):
                    part += product(block.T, share.contiguous().T)
        if differentiated:
            ctx.save_for_backward(of_states, of_items.T.contiguous())
        return (total / len(states)).to(states.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor, Tensor, None]:
        of_states, of_items = ctx.saved_tensors
        return of_states * outputs[0], of_items * outputs[0], None
