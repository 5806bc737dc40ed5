"""Batches of like history length, without the padding after the longest one.

Histories are padded on the right to `MAX_ITEM_LIST_LENGTH`, and most are far shorter: at a mean of 7 of 50 items, a
model spends six sevenths of its time on padding. A model that reads a history's state at its last real item and never
looks beyond gives the same state without the padding. Only such models are handed cut histories.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import SequentialRecommender

from recbole_mm.models.hooks import hooks_of

CPU_BATCH_TOKENS = 4096
GPU_BATCH_TOKENS = 1 << 16
"""Positions of histories that go through a model at once. On a CPU their activations should stay in the cache, and not
be taken from and given back to the system for every operation; a GPU should be kept busy, and those of a language model
should fit."""


class RowBatches:
    """Cuts rows into batches for a model and hands out their `Interaction`, on the model's device.

    Args:
        model: a sequential model has the names of the history field and its length (RecBole's `ITEM_SEQ`,
            `ITEM_SEQ_LEN` and `ITEM_ID`); another one has no histories.
        interaction: the model's input; indexing it with a numpy array of rows gives an `Interaction`.
        device: the model's device.

    Example:
        >>> users = Interaction({"user_id": torch.arange(5)})
        >>> batches = RowBatches(torch.nn.Identity(), users, torch.device("cpu"))
        >>> batches.split(batches.order(np.array([1, 0, 0, 1, 0])), most=3)
        [array([1, 2, 4]), array([0, 3])]
    """

    def __init__(self, model: Any, interaction: Any, device: torch.device) -> None:
        self.interaction = interaction
        self.device = device
        sequential = isinstance(model, SequentialRecommender)
        self._list_field: str | None = model.ITEM_SEQ if sequential else None
        self._length_field: str | None = model.ITEM_SEQ_LEN if sequential else None
        known = self._list_field is not None and self._list_field in interaction
        self._lengths: np.ndarray | None = None
        if known and self._length_field in interaction and hooks_of(type(model)).ignores_right_padding:
            self._lengths = interaction[self._length_field].cpu().numpy()
            self._suffix = str(self._list_field).removeprefix(model.ITEM_ID)
        self._width = 0
        if known and len(interaction):
            self._width = interaction[np.arange(1)][self._list_field].shape[1]

    def order(self, groups: np.ndarray) -> np.ndarray:
        """Return all rows (n,): lower `groups` (n,) first, within a group long histories first, otherwise in order."""
        keys = () if self._lengths is None else (-self._lengths,)
        return np.lexsort((*keys, groups))

    def split(self, order: np.ndarray, most: int) -> list[np.ndarray]:
        """Cut the rows `order` into consecutive batches of at least one row.

        A batch has at most `most` rows and, padding included, `CPU_BATCH_TOKENS` or `GPU_BATCH_TOKENS` positions.
        """
        limit = CPU_BATCH_TOKENS if self.device.type == "cpu" else GPU_BATCH_TOKENS
        widths = np.full(len(order), self._width) if self._lengths is None else self._lengths[order]
        batches, start = [], 0
        while start < len(order):
            size = min(most, len(order) - start)
            positions = np.maximum.accumulate(widths[start : start + size]) * np.arange(1, size + 1)
            size = max(1, int(np.searchsorted(positions, limit, side="right")))
            batches.append(order[start : start + size])
            start += size
        return batches

    def __getitem__(self, rows: np.ndarray) -> Interaction:
        """Return the rows' fields; histories are cut to the longest of them where the model allows it."""
        batch = self.interaction[rows]
        if self._lengths is not None:
            longest = int(self._lengths[rows].max(initial=1))
            batch = Interaction({name: self._cut(name, values, longest) for name, values in batch.interaction.items()})
        return batch.to(self.device)

    def _cut(self, name: str, values: torch.Tensor, longest: int) -> torch.Tensor:
        if name.endswith(self._suffix) and values.dim() > 1 and values.shape[1] == self._width:
            return values[:, :longest].contiguous()
        return values
