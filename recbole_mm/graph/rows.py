"""The k largest entries of each row, where rows are ragged; ties go to the smaller column."""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_array

# A padded bucket of rows: 256 K doubles are 2 MB and stay in the cache.
BUCKET_ENTRIES = 1 << 18


def top_k_rows(indptr: np.ndarray, columns: np.ndarray, values: np.ndarray, k: int) -> np.ndarray:
    """Return the positions of the kept entries, ordered by row, then by falling value, then by column.

    Args:
        indptr: (rows + 1,) where each row starts, as in a CSR matrix.
        columns: (entries,) of any order within a row.
        values: (entries,) without NaN.
        k: entries kept of each row; shorter rows are kept whole.

    Example:
        >>> top_k_rows(np.array([0, 3, 4]), np.array([5, 2, 9, 1]), np.array([0.5, 0.7, 0.7, 0.1]), k=2)
        array([1, 2, 3])
    """
    lengths = np.diff(indptr)
    floor = np.full(len(lengths), -np.inf, dtype=values.dtype)
    long = np.flatnonzero(lengths > k)
    # Rows of one power of two share a padded matrix, so that at most half of it is padding.
    exponents = np.frexp(lengths[long].astype(np.float64))[1]
    for exponent in np.unique(exponents):
        rows = long[exponents == exponent]
        width = int(lengths[rows].max())
        step = max(BUCKET_ENTRIES // width, 1)
        for start in range(0, len(rows), step):
            some = rows[start : start + step]
            offsets = np.arange(width)
            places = np.minimum(indptr[some, None] + offsets, len(values) - 1)
            padded = np.where(offsets < lengths[some, None], values[places], -np.inf)
            floor[some] = np.partition(padded, width - k, axis=1)[:, width - k]
    kept = np.flatnonzero(values >= np.repeat(floor, lengths))
    row_of = np.searchsorted(indptr, kept, side="right") - 1
    kept = kept[np.lexsort((columns[kept], -values[kept], row_of))]
    # More than k are left where several entries equal the k-th.
    counts = np.bincount(row_of, minlength=len(lengths))
    starts = np.cumsum(counts) - counts
    return kept[np.arange(len(kept)) - np.repeat(starts, counts) < k]


def csr_from_edges(rows: np.ndarray, columns: np.ndarray, values: np.ndarray, n_items: int) -> csr_array:
    """Build an (n_items, n_items) float32 CSR with sorted columns, without zeros, of distinct (row, column) pairs."""
    some = values != 0
    rows, columns, values = rows[some], columns[some], values[some]
    order = np.lexsort((columns, rows))
    indptr = np.zeros(n_items + 1, dtype=np.int64)
    np.cumsum(np.bincount(rows, minlength=n_items), out=indptr[1:])
    index = np.int32 if max(len(rows), n_items) < np.iinfo(np.int32).max else np.int64
    graph = csr_array(
        (values[order].astype(np.float32), columns[order].astype(index), indptr.astype(index)), shape=(n_items, n_items)
    )
    graph.has_canonical_format = True
    return graph
