"""Lists of the best items, cut from blocks of scores; equal scores stand in the order of the items' ids."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from recbole_mm.errors import RecboleMMError
from recbole_mm.evaluation.csr import CSR
from recbole_mm.evaluation.rank_counting import rows_with_nan, top_columns
from recbole_mm.evaluation.ranking import mask
from recbole_mm.evaluation.scoring import Block


@dataclass(frozen=True)
class TopK:
    """Recommended items of n rows, the best first.

    Attributes:
        items: int64 (n, k) RecBole's item ids; 0 behind the end of a list that is shorter, for want of items.
        scores: float64 (n, k); -inf behind its end.

    Example:
        >>> top = TopK(np.array([[5, 2, 0]]), np.array([[0.5, 0.25, -np.inf]]))
        >>> top.row(0)
        [(5, 0.5), (2, 0.25)]
    """

    items: np.ndarray
    scores: np.ndarray

    def __len__(self) -> int:
        return len(self.items)

    def row(self, place: int) -> list[tuple[int, float]]:
        """Return item and score of each recommendation of a row."""
        there = self.items[place] > 0
        return list(zip(self.items[place][there].tolist(), self.scores[place][there].tolist(), strict=True))


@dataclass(frozen=True)
class TopKCollector:
    """Collects the lists of n rows.

    Args:
        k: items of each list.
        item_num: N, padding included.
        masked: (n rows) items that are left out of each row's list; None for none.
        allowed: (m,) the items that may be listed, ascending; None for all.
        model: its name, for errors.

    Example:
        >>> scores = torch.tensor([[0.0, 0.5, 0.9, 0.5]])
        >>> collector = TopKCollector(2, item_num=4, masked=CSR.from_lists([[2]]), allowed=None, model="Mine")
        >>> collector.collect([(np.array([0]), scores)], count=1).items
        array([[1, 3]])
    """

    k: int
    item_num: int
    masked: CSR | None
    allowed: np.ndarray | None
    model: str

    def collect(self, blocks: Iterable[Block], count: int) -> TopK:
        """Return the lists of `count` rows, whose scores come a block at a time and are changed.

        Raises:
            RecboleMMError: a score is NaN.
        """
        top = TopK(np.zeros((count, self.k), dtype=np.int64), np.full((count, self.k), -np.inf))
        columns = None if self.allowed is None else torch.from_numpy(self.allowed)
        available = self._available(count)
        for rows, scores in blocks:
            mask(scores, rows, self.masked)
            if columns is not None:
                scores = scores[:, columns.to(scores.device)]
            if len(rows_with_nan(scores)):
                raise RecboleMMError(f"{self.model} scores an item as NaN; it has diverged")
            best = top_columns(scores, min(self.k, scores.shape[1]))
            values = scores.gather(1, best).double().cpu().numpy()
            items = best.cpu().numpy() if self.allowed is None else self.allowed[best.cpu().numpy()]
            self._put(top, rows, items, values, available)
        return top

    def _available(self, count: int) -> np.ndarray:
        """Return how many items (n,) can be recommended to each row."""
        total = self.item_num - 1 if self.allowed is None else len(self.allowed)
        if self.masked is None:
            return np.full(count, total)
        items = self.masked.items
        hidden = np.ones(len(items), dtype=bool) if self.allowed is None else np.isin(items, self.allowed)
        return total - np.bincount(self.masked.rows[hidden], minlength=count)

    def _put(self, top: TopK, rows: np.ndarray, items: np.ndarray, values: np.ndarray, available: np.ndarray) -> None:
        """Write the lists of a block; masked items are at -inf, and so may be others that the model puts there."""
        width = items.shape[1]
        finite = np.isfinite(values) | (values > 0)
        top.items[rows, :width] = np.where(finite, items, 0)
        top.scores[rows, :width] = np.where(finite, values, -np.inf)
        for place in np.flatnonzero(finite.sum(1) < np.minimum(width, available[rows])):
            row, start = rows[place], int(finite[place].sum())
            others = np.arange(1, self.item_num) if self.allowed is None else self.allowed
            taken = [items[place, :start]]
            if self.masked is not None:
                taken.append(self.masked.take(rows[place : place + 1]).items)
            left = np.setdiff1d(others, np.concatenate(taken))[: width - start]
            top.items[row, start : start + len(left)] = left
