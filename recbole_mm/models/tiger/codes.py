"""Semantic IDs: an item as a short tuple of codes, coarse ones first (section 3.1 of TIGER)."""

from __future__ import annotations

import numpy as np
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits


def semantic_ids(vectors: np.ndarray, levels: int, size: int, seed: int) -> np.ndarray:
    """Return the codes of items: those of their vectors, and a last one that tells apart items that share them.

    Args:
        vectors: (n, d) of all items.
        levels: number of codes that the vectors decide.
        size: number of codes of each of these levels.
        seed: of the clusters.

    Returns:
        (n, levels + 1) int64 from 0, no two rows alike.

    Example:
        >>> semantic_ids(np.array([[0.0], [10.0], [0.0]]), levels=1, size=2, seed=0)[:, 1]
        array([0, 0, 1])
    """
    codes = residual_codes(vectors, levels, size, seed)
    return np.column_stack([codes, places_in_group(codes)])


def residual_codes(vectors: np.ndarray, levels: int, size: int, seed: int) -> np.ndarray:
    """Quantise vectors level by level: r_0 = x; c_l = the nearest of the level's centroids e; r_l = r_(l-1) - e_(c_l).

    The centroids are those of k-means over all r_(l-1). TIGER learns them with an autoencoder around them (RQ-VAE).

    Returns:
        (n, levels) int64, from 0 to below `size`.

    Example:
        >>> residual_codes(np.array([[0.0], [1.0], [10.0], [11.0]]), levels=2, size=2, seed=0).shape
        (4, 2)
    """
    rest = np.asarray(vectors, dtype=np.float64)
    codes = np.zeros((len(rest), levels), dtype=np.int64)
    for level in range(levels):
        distinct = len(np.unique(rest, axis=0))
        with threadpool_limits(1):  # sums of several threads have no fixed order
            found = KMeans(min(size, distinct), n_init=1, random_state=seed).fit(rest)
        codes[:, level] = found.labels_
        rest = rest - found.cluster_centers_[found.labels_]
    return codes


def places_in_group(codes: np.ndarray) -> np.ndarray:
    """Number the rows that are alike, each group from 0, in their order: (n, levels) -> (n,) int64.

    Example:
        >>> places_in_group(np.array([[5, 1], [2, 2], [5, 1]]))
        array([0, 0, 1])
    """
    _, group = np.unique(codes, axis=0, return_inverse=True)
    order = np.argsort(group, kind="stable")
    first = np.searchsorted(group[order], np.arange(group.max() + 1))
    places = np.empty(len(codes), dtype=np.int64)
    places[order] = np.arange(len(codes)) - first[group[order]]
    return places


class CodeTree:
    """The prefixes of all items' codes, as a tree; a node of a level is a prefix of that many codes.

    Args:
        codes: (n, K) int64, no two rows alike.

    Attributes:
        paths: of each level 1..K, its nodes' codes (N_l, l), in lexicographic order.
        parents: of each level, the node of the level above that each node is under (N_l,); zeros for level 1.
        of_items: of each level, the node of each item (n,).

    Example:
        >>> tree = CodeTree(np.array([[0, 1], [1, 0], [0, 0]]))
        >>> [len(nodes) for nodes in tree.paths], tree.parents[1], tree.of_items[1]
        ([2, 3], array([0, 0, 1]), array([1, 2, 0]))
    """

    def __init__(self, codes: np.ndarray) -> None:
        self.paths: list[np.ndarray] = []
        self.parents: list[np.ndarray] = []
        self.of_items: list[np.ndarray] = []
        for level in range(1, codes.shape[1] + 1):
            nodes, first, of_items = np.unique(codes[:, :level], axis=0, return_index=True, return_inverse=True)
            self.parents.append(self.of_items[-1][first] if self.of_items else np.zeros(len(nodes), dtype=np.int64))
            self.paths.append(nodes)
            self.of_items.append(of_items)
