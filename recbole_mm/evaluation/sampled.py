"""Sampled candidates: the positives of each user are ranked among a few random items, as some papers report.

Sampled metrics are not comparable to full ranking, nor to samples of another size or distribution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from recbole_mm.errors import ConfigError
from recbole_mm.evaluation.csr import CSR, contains
from recbole_mm.utils.arrays import sorted_distinct

REJECTION_ROUNDS = 12
DENSE_BLOCK_CELLS = 1 << 24


@dataclass(frozen=True)
class SampledCandidates:
    """The items to rank for each row: its positives and its negatives.

    Attributes:
        items: the candidates of each row in ascending order of item id, positives included.

    Example:
        >>> drawn = SampledCandidates.draw(CSR.from_lists([[3], [1]]), None, item_num=50, per_positive=4, seed=0)
        >>> drawn.items.lengths
        array([5, 5])
    """

    items: CSR

    @classmethod
    def draw(
        cls,
        positives: CSR,
        known: CSR | None,
        item_num: int,
        per_positive: int,
        *,
        seed: int | Sequence[int],
        weights: np.ndarray | None = None,
    ) -> SampledCandidates:
        """Draw `per_positive` different negatives for every positive of a row, never an item that the user knows.

        A row with fewer unknown items than that gets all of them. The draw depends on the arguments alone.

        Args:
            positives: (n rows) ranked items.
            known: (n rows) items that are no negatives besides the positives, such as the history; None for none.
            item_num: number of item ids, padding 0 included.
            per_positive: the 20 of `uni20`.
            seed: one number or several.
            weights: (item_num,) chance of each item to be drawn, not normalised; zero is never drawn. None: all alike.

        Raises:
            ConfigError: weights that give no item a chance.
        """
        positives = positives.distinct(item_num)
        excluded = positives if known is None else positives.union(known.distinct(item_num), item_num)
        chances = np.ones(item_num) if weights is None else np.asarray(weights, dtype=np.float64).copy()
        chances[0] = 0
        if chances.shape != (item_num,) or np.any(chances < 0) or not chances.sum() > 0:
            raise ConfigError(f"sampling weights must be {item_num} numbers >= 0, one of them above 0")
        negatives = _Draw(excluded, positives.lengths * per_positive, chances, np.random.default_rng(seed)).run()
        return cls(positives.union(negatives, item_num))


class _Draw:
    """Draws without replacement for all rows at once, by rejection; the few rows that are left are drawn exactly.

    Both ways follow the same law: one item after the other, each with its chance among those that are left.
    """

    def __init__(self, excluded: CSR, wanted: np.ndarray, chances: np.ndarray, rng: np.random.Generator) -> None:
        self.item_num = len(chances)
        self.n_rows = len(excluded)
        self.rng = rng
        self.chances = chances
        self.excluded = excluded.keys(self.item_num)
        drawable = chances > 0
        left = drawable.sum() - np.bincount(excluded.rows, weights=drawable[excluded.items], minlength=self.n_rows)
        self.wanted = np.minimum(wanted, left.astype(np.int64))
        self.missing = self.wanted.copy()
        self.taken = np.zeros(0, dtype=np.int64)

    def run(self) -> CSR:
        """Return the negatives of each row."""
        bounds = np.cumsum(self.chances)
        uniform = np.all(self.chances[1:] == self.chances[-1])
        for _ in range(REJECTION_ROUNDS):
            rows = np.repeat(np.arange(self.n_rows), self.missing)
            if len(rows) == 0:
                break
            if uniform:
                items = self.rng.integers(1, self.item_num, size=len(rows))
            else:
                items = np.searchsorted(bounds, self.rng.random(len(rows)) * bounds[-1], side="right")
            self._accept(rows * self.item_num + np.minimum(items, self.item_num - 1))
        rows_left = np.flatnonzero(self.missing)
        step = max(1, DENSE_BLOCK_CELLS // self.item_num)
        for start in range(0, len(rows_left), step):
            self._draw_exactly(rows_left[start : start + step])
        return CSR.from_keys(self.taken, self.n_rows, self.item_num)

    def _accept(self, keys: np.ndarray) -> None:
        """Keep the drawn pairs that are new, each once."""
        keys = sorted_distinct(keys)
        keys = keys[~contains(self.excluded, keys) & ~contains(self.taken, keys)]
        self.taken = sorted_distinct(np.concatenate([self.taken, keys]))
        self.missing -= np.bincount(keys // self.item_num, minlength=self.n_rows)

    def _draw_exactly(self, rows: np.ndarray) -> None:
        """The `missing` smallest of exponential times with rates `chances` are a draw without replacement."""
        with np.errstate(divide="ignore"):
            times = self.rng.exponential(size=(len(rows), self.item_num)) / self.chances
        barred = sorted_distinct(np.concatenate([self.excluded, self.taken]))
        place, item = np.searchsorted(rows, barred // self.item_num), barred % self.item_num
        inside = contains(rows, barred // self.item_num)
        times[place[inside], item[inside]] = np.inf
        order = np.argsort(times, axis=1)
        chosen = np.arange(self.item_num) < self.missing[rows, None]
        keys = np.repeat(rows, self.missing[rows]) * self.item_num + order[chosen]
        self._accept(keys)
