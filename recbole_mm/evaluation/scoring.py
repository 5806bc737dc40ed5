"""Computes a model's scores: of all items for blocks of rows, or of given items for given rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from copy import copy
from typing import Any

import numpy as np
import torch
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import GeneralRecommender, KnowledgeRecommender, SequentialRecommender

from recbole_mm.errors import RecboleMMError
from recbole_mm.evaluation.dot_product import ScoreBlocks, dot_product_of
from recbole_mm.evaluation.padding import RowBatches
from recbole_mm.models.hooks import hooks_of

Block = tuple[np.ndarray, torch.Tensor]


class Scorer:
    """Scores of one model, in float32 or, if the model gives it, float64.

    Args:
        model: in evaluation mode.
        interaction: the model's input; indexing it with a numpy array of rows gives an `Interaction`.
        item_num: N, number of item ids, padding 0 included.
        device: the model's device; None for that of its parameters.
        memory_mb: bound in MiB of one block of scores; a single row is always possible.
        batch_size: bound of the rows that go through the model at once, and of the (row, item) pairs of a `predict`.
        item_features: one row per item id; None: the id alone, under the model's `ITEM_ID`, or `item_id`.
    """

    def __init__(
        self,
        model: Any,
        interaction: Any,
        item_num: int,
        *,
        device: torch.device | str | None = None,
        memory_mb: float = 256,
        batch_size: int = 4096,
        item_features: Interaction | None = None,
    ) -> None:
        self.model = model
        self.item_num = item_num
        self.device = torch.device(device) if device is not None else _device_of(model)
        self.memory_mb = memory_mb
        self.batch_size = batch_size
        if item_features is None:
            item_features = Interaction({_item_field(model): torch.arange(item_num)})
        self.item_features = item_features.to(self.device)
        self._rows = RowBatches(model, interaction, self.device)
        self._halves = dot_product_of(model)
        self._item_vectors: torch.Tensor | None = None
        self._blocks: ScoreBlocks | None = None

    def over(self, interaction: Any) -> Scorer:
        """Return the scorer of other rows, which shares the item vectors of this one."""
        if self._halves is not None:
            self._score_blocks()
        other = copy(self)
        other._rows = RowBatches(self.model, interaction, self.device)
        return other

    def with_item_vectors(self, vectors: torch.Tensor) -> Scorer:
        """Return the scorer of a dot-product model over other items: (N, d) vectors, padding first."""
        other = copy(self)
        other.item_num, other._item_vectors, other._blocks = len(vectors), vectors, None
        return other

    def order(self, groups: np.ndarray) -> np.ndarray:
        """Return all rows (n,), those of lower `groups` (n,) first, in the order that costs the model least."""
        return self._rows.order(groups)

    def batches(self, order: np.ndarray) -> list[np.ndarray]:
        """Cut the rows `order` into the batches that go through the model."""
        return self._rows.split(order, self.batch_size if self._halves is not None else self._rows_at_once())

    def all_items(self, batches: Iterable[np.ndarray]) -> Iterator[Iterator[Block]]:
        """Score all items for the rows of each batch.

        Yields:
            Per batch an iterator of (rows (B,), scores (B, N)); the scores may be written to, and hold only until the
            next block.
        """
        if self._halves is not None:
            blocks = self._score_blocks()
            for rows in batches:
                yield self._products(blocks, rows)
        else:
            for rows in batches:
                yield self._full_sort(rows)

    def item_vectors(self) -> torch.Tensor:
        """Return the (N, d) item vectors of a dot-product model, computed once.

        Raises:
            RecboleMMError: the model returns another number of vectors.
        """
        if self._item_vectors is None:
            assert self._halves is not None
            self._item_vectors = self._halves.items()
            if len(self._item_vectors) != self.item_num:
                raise RecboleMMError(
                    f"{type(self.model).__name__} has {len(self._item_vectors)} vectors for {self.item_num} item ids"
                )
        return self._item_vectors

    def user_vectors(self, rows: np.ndarray) -> torch.Tensor:
        """Return the (B, d) user vectors of a dot-product model for the rows (B,).

        Raises:
            RecboleMMError: the model returns another number of vectors.
        """
        assert self._halves is not None
        users = self._halves.users(self._rows[rows])
        if users.shape[0] != len(rows):
            raise RecboleMMError(f"{type(self.model).__name__} gave {users.shape[0]} user vectors for {len(rows)} rows")
        return users

    def _score_blocks(self) -> ScoreBlocks:
        if self._blocks is None:
            self._blocks = ScoreBlocks(self.item_vectors(), self.memory_mb)
        return self._blocks

    def of_items(self, rows: np.ndarray, items: torch.Tensor) -> torch.Tensor:
        """Return the (B, C) scores of the items (B, C) for the rows (B,)."""
        batch = self._rows[rows]
        items = items.to(self.device)
        if self._halves is not None:
            users = self._halves.users(batch)
            return torch.einsum("bd,bcd->bc", users, self.item_vectors()[items])
        pair_rows = torch.arange(len(rows), device=self.device).repeat_interleave(items.shape[1])
        return self._predict(batch, pair_rows, items.reshape(-1)).view(items.shape)

    def _rows_at_once(self) -> int:
        if hooks_of(type(self.model)).materializes_pairs:
            return max(1, self.batch_size // self.item_num)  # RecBole's own rule for general models
        return max(1, min(self.batch_size, int(self.memory_mb * 2**20) // (4 * self.item_num)))

    def _products(self, blocks: ScoreBlocks, rows: np.ndarray) -> Iterator[Block]:
        users = self.user_vectors(rows)
        for start in range(0, len(rows), blocks.rows):
            yield rows[start : start + blocks.rows], blocks(users[start : start + blocks.rows])

    def _full_sort(self, rows: np.ndarray) -> Iterator[Block]:
        batch = self._rows[rows]
        try:
            scores = self.model.full_sort_predict(batch)
        except NotImplementedError:
            pairs = torch.arange(len(rows) * self.item_num, device=self.device)
            scores = self._predict(batch, pairs // self.item_num, pairs % self.item_num)
        if scores.numel() != len(rows) * self.item_num:
            raise RecboleMMError(
                f"{type(self.model).__name__} gave {scores.numel()} scores for {len(rows)} x {self.item_num} item ids"
            )
        # RecBole models return (B, N) or flat. One row expanded to B, or a single row, may be the model's own tensor.
        scores = _floating(scores).reshape(len(rows), self.item_num).contiguous()
        yield rows, scores.clone() if len(rows) == 1 else scores

    def _predict(self, batch: Interaction, pair_rows: torch.Tensor, pair_items: torch.Tensor) -> torch.Tensor:
        """Return the (n,) scores of (row of the batch, item) pairs by `predict`, `batch_size` pairs at a time."""
        parts = []
        for start in range(0, len(pair_rows), self.batch_size):
            pairs = _at(batch, pair_rows[start : start + self.batch_size])
            pairs.update(_at(self.item_features, pair_items[start : start + self.batch_size]))
            parts.append(_floating(self.model.predict(pairs)).reshape(-1))
        return torch.cat(parts)


def _item_field(model: Any) -> str:
    known = isinstance(model, (GeneralRecommender, SequentialRecommender, KnowledgeRecommender))
    return model.ITEM_ID if known else "item_id"


def _at(interaction: Interaction, rows: torch.Tensor) -> Interaction:
    return Interaction({name: values[rows] for name, values in interaction.interaction.items()})


def _floating(scores: torch.Tensor) -> torch.Tensor:
    """Return scores in float64 where the model scores in it, or else in float32."""
    return scores if scores.dtype == torch.float64 else scores.float()


def _device_of(model: Any) -> torch.device:
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
