"""Lists of items of different lengths, one per row, as two flat arrays."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from recbole_mm.utils.arrays import sorted_distinct


@dataclass(frozen=True, eq=False)
class CSR:
    """Row `r` holds `items[offsets[r]:offsets[r + 1]]`.

    Args:
        offsets: (n + 1,) int64, starting at 0 and never falling.
        items: (offsets[-1],) int64.

    Raises:
        ValueError: the two arrays do not fit together.

    >>> lists = CSR.from_lists([[5, 3], [], [7]])
    >>> lists.lengths
    array([2, 0, 1])
    """

    offsets: np.ndarray
    items: np.ndarray

    def __post_init__(self) -> None:
        object.__setattr__(self, "offsets", np.asarray(self.offsets, dtype=np.int64))
        object.__setattr__(self, "items", np.asarray(self.items, dtype=np.int64))
        if self.offsets.ndim != 1 or self.items.ndim != 1 or len(self.offsets) == 0:
            raise ValueError("offsets and items must be flat arrays, and offsets must not be empty")
        if self.offsets[0] != 0 or self.offsets[-1] != len(self.items) or np.any(np.diff(self.offsets) < 0):
            raise ValueError("offsets must start at 0, never fall, and end at the number of items")

    @classmethod
    def from_lists(cls, lists: Iterable[Sequence[int] | np.ndarray]) -> CSR:
        """Build from one sequence of items per row."""
        arrays = [np.asarray(one, dtype=np.int64) for one in lists]
        items = np.concatenate(arrays) if arrays else np.zeros(0, dtype=np.int64)
        return cls(offsets_of([len(one) for one in arrays]), items)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """(n,) number of items of each row."""
        return np.diff(self.offsets)

    def lengths_of(self, rows: np.ndarray) -> np.ndarray:
        """(len(rows),) number of items of the given rows."""
        return self.offsets[rows + 1] - self.offsets[rows]

    @property
    def rows(self) -> np.ndarray:
        """(nnz,) row of each item."""
        return np.repeat(np.arange(len(self)), self.lengths)

    def positions(self, rows: np.ndarray) -> np.ndarray:
        """Return the indices into `items` of all items of the given rows, row after row."""
        starts, lengths = self.offsets[rows], self.lengths_of(rows)
        ends = np.cumsum(lengths)
        return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - lengths), lengths)

    def take(self, rows: np.ndarray) -> CSR:
        """Return the given rows, in the given order."""
        return CSR(offsets_of(self.lengths_of(rows)), self.items[self.positions(rows)])

    def keys(self, item_num: int) -> np.ndarray:
        """(nnz,) `row * item_num + item`: one number per pair, and the place of the item in a (n, item_num) matrix."""
        return self.rows * item_num + self.items

    def distinct(self, item_num: int) -> CSR:
        """Return each row's distinct items in ascending order, without the padding item 0."""
        keys = self.keys(item_num)
        if np.all(np.diff(keys) > 0) and np.all(self.items != 0):
            return self
        keys = sorted_distinct(keys)
        return CSR.from_keys(keys[keys % item_num != 0], len(self), item_num)

    def without(self, other: CSR, item_num: int) -> CSR:
        """Return the items that `other` does not hold in the same row. Both must be `distinct`."""
        keys = self.keys(item_num)
        shared = contains(other.keys(item_num), keys)
        return CSR.from_keys(keys[~shared], len(self), item_num) if shared.any() else self

    def union(self, other: CSR, item_num: int) -> CSR:
        """Return the distinct items of either, row by row, ascending."""
        keys = sorted_distinct(np.concatenate([self.keys(item_num), other.keys(item_num)]))
        return CSR.from_keys(keys, len(self), item_num)

    @classmethod
    def from_keys(cls, keys: np.ndarray, n_rows: int, item_num: int) -> CSR:
        """Build from what the method `keys` returns; `keys` must be ascending."""
        rows, items = np.divmod(keys, item_num)
        return cls(offsets_of(np.bincount(rows, minlength=n_rows)), items)


def offsets_of(lengths: Sequence[int] | np.ndarray) -> np.ndarray:
    """(n + 1,) int64 offsets of consecutive lists of these lengths."""
    return np.concatenate([[0], np.cumsum(np.asarray(lengths, dtype=np.int64))]).astype(np.int64)


def contains(sorted_keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """(len(wanted),) bool: whether each wanted key is in the ascending `sorted_keys`."""
    if len(sorted_keys) == 0:
        return np.zeros(len(wanted), dtype=bool)
    at = np.searchsorted(sorted_keys, wanted)
    return sorted_keys[np.minimum(at, len(sorted_keys) - 1)] == wanted
