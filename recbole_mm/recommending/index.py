"""An index of item vectors for other programs (FAISS), and what its approximation costs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recbole_mm.errors import ConfigError
from recbole_mm.utils.files import atomic_write

KINDS = ("hnsw", "flat")
"""hnsw: a graph of neighbours, approximate and fast; flat: exact, for programs that want one interface."""

QUERIES, K = 1000, 10
LINKS, BUILT_WIDE, SEARCHED_WIDE = 32, 200, 128
"""Of HNSW: neighbours of an item, and how many are looked at while it is built and searched."""


@dataclass(frozen=True)
class Recall:
    """How many of the exact top items an index finds.

    Attributes:
        kind: of the index.
        queries: number of users.
        k: of the lists.
        recall: share of the exact top k that is found.
        milliseconds, exact_milliseconds: a user takes, one after the other, with the index and without.

    Example:
        >>> print(Recall("hnsw", 1000, 10, 0.998, 0.2, 2.5))
        hnsw: recall@10 0.9980 against exact search over 1,000 users; 0.20 ms a user, exact 2.50 ms
    """

    kind: str
    queries: int
    k: int
    recall: float
    milliseconds: float
    exact_milliseconds: float

    def __str__(self) -> str:
        return (
            f"{self.kind}: recall@{self.k} {self.recall:.4f} against exact search over {self.queries:,} users; "
            f"{self.milliseconds:.2f} ms a user, exact {self.exact_milliseconds:.2f} ms"
        )


def check_index(kind: str) -> None:
    """Make sure that an index can be built.

    Raises:
        ConfigError: another kind than `KINDS`, or FAISS is not installed.
    """
    if kind not in KINDS:
        raise ConfigError(f"--index={kind} is not accepted; give {' or '.join(KINDS)}")
    try:
        import faiss  # noqa: F401
    except ImportError as error:
        raise ConfigError("--index needs FAISS: pip install 'recbole_mm[index]', or pip install faiss-cpu") from error


def build_index(kind: str, items: np.ndarray, some_users: Callable[[int], np.ndarray], path: Path) -> Recall:
    """Build a FAISS index of items for inner products, write it, and compare it with exact search.

    Args:
        kind: one of `KINDS`.
        items: (n, d) float32; row r is found as r.
        some_users: returns the vectors of at most so many users, as queries.
        path: of the index.

    Raises:
        ConfigError: see `check_index`.
        DiskError: it cannot be written.
    """
    check_index(kind)
    import faiss

    index: Any
    if kind == "flat":
        index = faiss.IndexFlatIP(items.shape[1])
    else:
        index = faiss.IndexHNSWFlat(items.shape[1], LINKS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction, index.hnsw.efSearch = BUILT_WIDE, SEARCHED_WIDE
    index.add(np.ascontiguousarray(items, dtype=np.float32))
    with atomic_write(path) as draft:
        faiss.write_index(index, str(draft))
    return measured(kind, index, items, np.ascontiguousarray(some_users(QUERIES), dtype=np.float32))


def measured(kind: str, index: Any, items: np.ndarray, users: np.ndarray) -> Recall:
    """Compare an index with exact search.

    An item that scores as high as the last one of the exact list counts as found: which of equals is listed is chance.

    Args:
        kind: of the index, for the result.
        index: with FAISS's `search`.
        items: (n, d).
        users: (q, d).
    """
    k = min(K, len(items))
    seconds, exact_seconds, found = 0.0, 0.0, 0
    for user in users:
        start = time.perf_counter()
        scores = items @ user
        exact = np.partition(scores, len(scores) - k)[-k:]
        middle = time.perf_counter()
        _, rows = index.search(user[None], k)
        exact_seconds, seconds = exact_seconds + middle - start, seconds + time.perf_counter() - middle
        listed = rows[0][rows[0] >= 0]
        found += int((scores[listed] >= exact.min() - 1e-6 * abs(exact.min())).sum())
    per_user = 1000 / len(users)
    return Recall(kind, len(users), k, found / (k * len(users)), seconds * per_user, exact_seconds * per_user)
