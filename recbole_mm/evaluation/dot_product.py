"""Models whose score is the dot product of a user vector and an item vector: item vectors once, a product per block.

A model declares it by having both `user_vectors` and `item_vectors` (see `models/base.py`); `models/recbole_models.py`
has them for RecBole's own models. Models that score otherwise keep their `full_sort_predict`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from recbole_mm.models.hooks import has_dot_product, hooks_of
from recbole_mm.models.products import onednn_takes

# A score block that stays in the cache is counted at no cost compared to the product that makes it.
CPU_BLOCK_BYTES = 8 << 20
CPU_MIN_ROWS = 16


@dataclass(frozen=True)
class DotProduct:
    """The two halves of one model: `users(interaction) -> (B, d)`, `items() -> (N, d)`.

    Example:
        >>> halves = DotProduct(users=lambda rows: torch.ones(len(rows), 2), items=lambda: torch.eye(3, 2))
        >>> halves.users([0]) @ halves.items().T
        tensor([[1., 1., 0.]])
    """

    users: Callable[[Any], torch.Tensor]
    items: Callable[[], torch.Tensor]


def dot_product_of(model: Any) -> DotProduct | None:
    """Return the two halves of a model's score, or None where it scores in another way.

    A subclass of a RecBole model counts as that model unless it defines `full_sort_predict` anew.
    """
    hooks = hooks_of(type(model))
    if not has_dot_product(hooks):
        return None
    return DotProduct(partial(hooks.user_vectors, model), partial(hooks.item_vectors, model))


class ScoreBlocks:
    """Scores of blocks of users against all items, written into one buffer over and over.

    On a CPU in float32 the item vectors are packed once for oneDNN, which can be twice as fast as `torch.mm` because it
    uses the widest vector instructions of every make of processor; otherwise it is `torch.mm` into the buffer.

    Args:
        item_vectors: (N, d). Half precision is raised to float32, so that scores are not rounded into ties.
        memory_mb: bound in MiB of the scores; fewer rows are used on a CPU, where a block should fit its cache.

    Example:
        >>> blocks = ScoreBlocks(torch.eye(3), memory_mb=1)
        >>> blocks(torch.tensor([[1.0, 2.0, 3.0]]))
        tensor([[1., 2., 3.]])
    """

    def __init__(self, item_vectors: torch.Tensor, memory_mb: float) -> None:
        self.dtype = torch.float64 if item_vectors.dtype == torch.float64 else torch.float32
        self._items = item_vectors.detach().to(self.dtype)
        row_bytes = self._items.shape[0] * self._items.element_size()
        self.rows = max(1, int(memory_mb * 2**20) // row_bytes)
        if item_vectors.device.type == "cpu":
            self.rows = min(self.rows, max(CPU_MIN_ROWS, CPU_BLOCK_BYTES // row_bytes))
        self._packed: torch.Tensor | None = None
        self._buffer: torch.Tensor | None = None
        if can_pack(self._items):
            self._packed = torch.ops.mkldnn._reorder_linear_weight(self._items.contiguous(), self.rows)

    def __call__(self, user_vectors: torch.Tensor) -> torch.Tensor:
        """Return the (B, N) scores of (B, d) users, B <= `rows`; they are valid until the next call."""
        users = user_vectors.to(self.dtype)
        if self._packed is not None:
            return torch.ops.mkldnn._linear_pointwise(users.contiguous(), self._packed, None, "none", [], "")
        if self._buffer is None:
            self._buffer = users.new_empty((self.rows, len(self._items)))
        return torch.mm(users, self._items.T, out=self._buffer[: len(users)])


def can_pack(item_vectors: torch.Tensor) -> bool:
    """Return whether this build of torch has oneDNN's product with packed weights for such vectors."""
    return onednn_takes(item_vectors) and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
