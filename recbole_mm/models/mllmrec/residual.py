"""Collaborative residuals of MLLMRec's towers: learned vectors that say who chose what where texts do not (ours).

    h_u + e_u                                 user_residual: id
    h_u + |I_u|^(-1/2) * sum of y_i, i in I_u user_residual: items, as SVD++ has it; I_u are u's training items
    h_i + e_i                                 item_residual: True

All of them start as zeros, so that a model begins as MLLMRec itself, and an item or a user without any training
interaction keeps what its text says.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_mm.models.multimodal_graph import degrees
from recbole_mm.models.sparse import SparseMatrix

NONE, ID, ITEMS = "none", "id", "items"
"""Values of `user_residual`."""


class Residuals(nn.Module):
    """Learned vectors that are added to the towers' outputs.

    Args:
        of_users: `none`, `id` or `items`.
        of_items: whether items have one.
        pairs: distinct training pairs, user ids and item ids (M,) each; read for `items` alone.
        shape: number of users and of items.
        width: d.
        device: of the products over `pairs`.

    Example:
        >>> pairs = torch.tensor([1, 1]), torch.tensor([1, 2])
        >>> found = Residuals("items", True, pairs, (2, 3), width=4)
        >>> [(name, tuple(weight.shape)) for name, weight in found.named_parameters()]
        [('chosen', (3, 4)), ('items', (3, 4))]
    """

    def __init__(
        self,
        of_users: str,
        of_items: bool,
        pairs: tuple[Tensor, Tensor],
        shape: tuple[int, int],
        width: int,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        n_users, n_items = shape
        self.users = nn.Parameter(torch.zeros(n_users, width)) if of_users == ID else None
        self.chosen = nn.Parameter(torch.zeros(n_items, width)) if of_users == ITEMS else None
        self.items = nn.Parameter(torch.zeros(n_items, width)) if of_items else None
        self._history: SparseMatrix | None = None
        if of_users == ITEMS:
            users, items = pairs
            weight = degrees(users, n_users).clamp_min(1).rsqrt()[users]
            self._history = SparseMatrix(users, items, weight, shape, device)

    def to_users(self, vectors: Tensor, ids: Tensor | None = None) -> Tensor:
        """Return users' vectors with their residual.

        Args:
            vectors: h_u, (n, d).
            ids: (n,) whose they are; None: all users' in order.
        """
        table: Tensor | None = self.users
        if self._history is not None and self.chosen is not None:
            table = self._history @ self.chosen
        return _added(vectors, table, ids)

    def to_items(self, vectors: Tensor, ids: Tensor | None = None) -> Tensor:
        """Return items' vectors (n, d) with their residual; `ids` as in `to_users`."""
        return _added(vectors, self.items, ids)


def _added(vectors: Tensor, table: Tensor | None, ids: Tensor | None) -> Tensor:
    if table is None:
        return vectors
    return vectors + (table if ids is None else F.embedding(ids, table))
