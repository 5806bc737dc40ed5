"""Graph of similar items: the k best cosines of each row, exact, with duplicate vectors searched once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
from scipy.sparse import csr_array

from recbole_mm.errors import DataError
from recbole_mm.graph.nearest import NearestCosines
from recbole_mm.graph.rows import csr_from_edges

# Rows handled at once outside the products: 4,096 x 384 doubles are 12 MB.
CHUNK = 4096
# Edges expanded from groups of duplicates at once, before the k best are cut out.
EXPANDED = 1 << 21


def similarity_graph(
    vectors: np.ndarray, k: int, threshold: float | None = None, binary: bool = True, block: int | None = None
) -> csr_array:
    """Link each item to the k items of the highest cosine, itself included (MLLMRec's S_hat), cut at a threshold.

    A cosine is the float64 quotient x.y / (|x| |y|) of the float32 vectors, rounded once to float32. It is this
    number that is ranked, compared with `float32(threshold)` and stored, so the result is the same for every block
    size, number of threads and kind of processor. Of equal cosines the smaller item id comes first. Item 0 (padding)
    and items whose vector is zero have no edges at all.

    Args:
        vectors: (n_items, d); other types than float32 are rounded to it.
        k: neighbours of each item at most, itself among them.
        threshold: keep only neighbours with a cosine of at least this; None keeps all k.
        binary: edges weigh 1; False: they weigh their cosine (an edge of cosine 0 is then no entry).
        block: rows of a block of the product, None for a good one. Changes time and memory, never the result.

    Returns:
        (n_items, n_items) float32, row i with the neighbours of i; not symmetric.

    Raises:
        DataError: vectors are not a finite (n_items, d) table, or k or block is below 1.

    Example:
        >>> vectors = np.array([[0, 0], [1, 0], [4, 3], [0, 2]])
        >>> similarity_graph(vectors, k=2, binary=False).toarray()[1:, 1:].round(2)
        array([[1. , 0.8, 0. ],
               [0.8, 1. , 0. ],
               [0. , 0.6, 1. ]], dtype=float32)
    """
    vectors = _table(vectors, k, threshold, block)
    some, leader = _leaders(vectors)
    if not len(some):
        return csr_array(vectors.shape[:1] * 2, dtype=np.float32)
    leaders, group = np.unique(leader, return_inverse=True)
    floor = -np.inf if threshold is None else float(np.float32(threshold))
    ids, cosines = NearestCosines(vectors, leaders, k, floor, block).search()
    if len(leaders) == len(some):
        found = cosines > -np.inf
        rows, columns, weights = np.repeat(some, found.sum(1)), some[ids[found]], cosines[found]
    else:
        parts = list(_expanded(some, group, ids, cosines, k))
        rows, columns, weights = (np.concatenate(each) for each in zip(*parts))
    return csr_from_edges(rows, columns, np.ones_like(weights) if binary else weights, len(vectors))


def _table(vectors: np.ndarray, k: int, threshold: float | None, block: int | None) -> np.ndarray:
    if k < 1 or (block is not None and block < 1):
        raise DataError(f"k and block must be at least 1; got k={k}, block={block}.")
    if threshold is not None and not np.isfinite(threshold):
        raise DataError(f"A threshold of cosines must be a finite number or None; got {threshold}.")
    with np.errstate(over="ignore"):  # reported below, with its row
        table = np.ascontiguousarray(vectors, dtype=np.float32)
    if table.ndim != 2 or not len(table):
        raise DataError(f"Item vectors must be a (n_items, d) table with the padding item; got shape {table.shape}.")
    for start in range(0, len(table), CHUNK):
        finite = np.isfinite(table[start : start + CHUNK]).all(1)
        if not finite.all():
            raise DataError(f"The vector of item {start + int(np.argmin(finite))} is not finite in float32.")
    return table


def _leaders(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the items that have a vector, in order, and for each the first item with exactly that vector."""
    first: dict[bytes, int] = {}
    some, leader = [], []
    for item in range(1, len(vectors)):
        row = vectors[item]
        if row.any():
            some.append(item)
            # + 0.0 makes one of the two zeros of floating point. 128 bits of a digest do not meet by chance.
            digest = hashlib.blake2b((row + np.float32(0)).tobytes(), digest_size=16).digest()
            leader.append(first.setdefault(digest, item))
    return np.array(some, dtype=np.int64), np.array(leader, dtype=np.int64)


def _expanded(
    some: np.ndarray, group: np.ndarray, ids: np.ndarray, cosines: np.ndarray, k: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield edges between items (rows, columns, cosines) from those between groups of duplicates, (groups, k) tables.

    The k best items of a row lie in its k best groups, since each group has at least its first item; and of one
    group, all of one cosine, only the first k can be among them.
    """
    order = np.argsort(group, kind="stable")
    sizes = np.bincount(group)
    begins = np.cumsum(sizes) - sizes
    capped = np.minimum(sizes, k)
    found = cosines > -np.inf
    lengths = np.where(found, capped[ids], 0)
    edges = np.concatenate([[0], np.cumsum(lengths.sum(1))])
    start = 0
    while start < len(ids):
        stop = max(int(np.searchsorted(edges, edges[start] + EXPANDED, side="right")) - 1, start + 1)
        inside = found[start:stop]
        near, repeats = ids[start:stop][inside], lengths[start:stop][inside]
        place = np.arange(repeats.sum()) - np.repeat(np.cumsum(repeats) - repeats, repeats)
        columns = some[order[np.repeat(begins[near], repeats) + place]]
        weights = np.repeat(cosines[start:stop][inside], repeats)
        rows = np.repeat(np.repeat(np.arange(start, stop), inside.sum(1)), repeats)
        sort = np.lexsort((columns, -weights, rows))
        counts = np.diff(edges[start : stop + 1])
        rank = np.arange(len(sort)) - np.repeat(np.cumsum(counts) - counts, counts)
        kept = sort[rank < k]
        yield from _for_members(some, order, begins, sizes, rows[kept], columns[kept], weights[kept])
        start = stop


def _for_members(
    some: np.ndarray,
    order: np.ndarray,
    begins: np.ndarray,
    sizes: np.ndarray,
    groups: np.ndarray,
    columns: np.ndarray,
    weights: np.ndarray,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield the row of a group for each of its members."""
    repeats = sizes[groups]
    place = np.arange(repeats.sum()) - np.repeat(np.cumsum(repeats) - repeats, repeats)
    rows = some[order[np.repeat(begins[groups], repeats) + place]]
    yield rows, np.repeat(columns, repeats), np.repeat(weights, repeats)
