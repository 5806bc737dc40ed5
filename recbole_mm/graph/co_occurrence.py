"""Graph of items that share their users: Jaccard indices, in blocks of rows of a sparse product."""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_array

from recbole_mm.errors import DataError
from recbole_mm.graph.rows import csr_from_edges, top_k_rows

# Entries of the product held at once: counts, columns, Jaccard and scratch take about 50 bytes each.
BLOCK_ENTRIES = 1 << 19


def co_occurrence_graph(
    users: np.ndarray, items: np.ndarray, n_items: int, k: int, drop_identical: bool = False
) -> csr_array:
    """Link each item to the k items with the most similar sets of users, weighted by the Jaccard index.

    C_ij = |U_i and U_j| / |U_i or U_j| (MLLMRec's co-occurrence enhancement), where U_i is the set of users of item i;
    the diagonal is left out. Entries are ranked by the exact fraction; of equal ones the smaller item id comes first.

    Args:
        users, items: (interactions,) ids of training interactions; a repeated pair counts once. Item 0 is padding.
        n_items: number of item ids, padding included.
        k: neighbours of each item at most.
        drop_identical: also leave out the pairs with C_ij = 1, as MLLMRec's released code does.

    Returns:
        (n_items, n_items) float32; not symmetric, since i may be among the best of j and not the other way round.

    Raises:
        DataError: an id is out of range, or users and items differ in length.

    Example:
        >>> graph = co_occurrence_graph(np.array([0, 0, 1, 1]), np.array([1, 2, 1, 3]), n_items=4, k=1)
        >>> graph.toarray()[1:, 1:]
        array([[0. , 0.5, 0. ],
               [0.5, 0. , 0. ],
               [0.5, 0. , 0. ]], dtype=float32)
    """
    audience, together = _incidence(users, items, n_items, k)
    at_most = np.minimum(_products_of_rows(together), n_items)
    ends = np.cumsum(at_most)
    by_user = together.T.tocsr()
    rows, columns, weights = [], [], []
    start = 0
    while start < n_items:
        done = ends[start - 1] if start else 0
        stop = max(int(np.searchsorted(ends, done + BLOCK_ENTRIES, side="right")), start + 1)
        block_rows, block_columns, block_weights = _block(together, by_user, audience, start, stop, k, drop_identical)
        rows.append(block_rows)
        columns.append(block_columns)
        weights.append(block_weights)
        start = stop
    return csr_from_edges(np.concatenate(rows), np.concatenate(columns), np.concatenate(weights), n_items)


def _incidence(users: np.ndarray, items: np.ndarray, n_items: int, k: int) -> tuple[np.ndarray, csr_array]:
    """Audience sizes (n_items,) and the items x users matrix of those users who had at least two items."""
    users, items = np.asarray(users), np.asarray(items)
    if users.shape != items.shape or users.ndim != 1:
        raise DataError(f"Interactions need one user and one item each; got shapes {users.shape} and {items.shape}.")
    if k < 1:
        raise DataError(f"k must be at least 1; got {k}.")
    if len(items) and (items.min() < 1 or items.max() >= n_items):
        raise DataError(f"Item ids of interactions must lie in 1..{n_items - 1}; got {items.min()}..{items.max()}.")
    users = _counted_from_zero(users)
    pairs = users.astype(np.int64) * n_items + items
    pairs.sort()
    pairs = pairs[np.diff(pairs, prepend=-1) > 0]
    users, items = np.divmod(pairs, n_items)
    audience = np.bincount(items, minlength=n_items).astype(np.int32)
    # A user of one item joins no two items, but counts in that item's audience.
    joins = np.bincount(users)[users] > 1 if len(users) else np.zeros(0, dtype=bool)
    users, items = _counted_from_zero(users[joins]), items[joins]
    ones = np.ones(len(users), dtype=np.int32)
    shape = (n_items, int(users.max()) + 1 if len(users) else 1)
    return audience, csr_array((ones, (items.astype(np.int32), users.astype(np.int32))), shape=shape)


def _counted_from_zero(ids: np.ndarray) -> np.ndarray:
    """Ids that are used, renumbered 0, 1, ...; as they are where few numbers are left out."""
    if not len(ids) or (ids.min() >= 0 and ids.max() < 4 * len(ids)):
        return ids
    return np.unique(ids, return_inverse=True)[1]


def _products_of_rows(together: csr_array) -> np.ndarray:
    """(n_items,) multiplications in each row of the product, which bound its entries."""
    had = np.bincount(together.indices, minlength=together.shape[1])
    sums = np.concatenate([[0], np.cumsum(had[together.indices])])
    return np.diff(sums[together.indptr])


def _block(
    together: csr_array, by_user: csr_array, audience: np.ndarray, start: int, stop: int, k: int, drop_identical: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, columns and weights of the neighbours of items start..stop-1."""
    shared = together[start:stop] @ by_user
    lengths = np.diff(shared.indptr)
    sizes = audience[shared.indices] - shared.data
    sizes += np.repeat(audience[start:stop], lengths)
    # float64 tells any two different fractions of audiences apart; float32 does not.
    jaccard = shared.data / sizes
    if drop_identical:
        jaccard[shared.data == sizes] = 0
    jaccard[shared.indices == np.repeat(np.arange(start, stop, dtype=np.int32), lengths)] = 0
    best = top_k_rows(shared.indptr, shared.indices, jaccard, k)
    best = best[jaccard[best] > 0]
    rows = start + np.searchsorted(shared.indptr, best, side="right") - 1
    return rows, shared.indices[best], jaccard[best].astype(np.float32)
