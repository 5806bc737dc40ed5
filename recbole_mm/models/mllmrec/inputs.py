"""The frozen vectors that MLLMRec's towers read, computed once: they have no trainable part."""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_array


def propagated(vectors: np.ndarray, graph: csr_array | None, layers: int) -> np.ndarray:
    """E* = sum over l = 0..L of (S*)^l E.

    Args:
        vectors: E, float32 (n_items, d).
        graph: S*, (n_items, n_items); None stands for L = 0.
        layers: L.
    """
    total = current = np.asarray(vectors, dtype=np.float32)
    if graph is None:
        return total
    for _ in range(layers):
        current = graph @ current
        total = total + current
    return total


def has_vector(vectors: np.ndarray) -> np.ndarray:
    """Which rows (n,) of (n, d) are not zeros, which stand for "none"."""
    return np.asarray((vectors != 0).any(axis=1))


def mean_of_items(vectors: np.ndarray, users: np.ndarray, items: np.ndarray, n_users: int) -> np.ndarray:
    """Each user's mean over the vectors of its interactions' items; an item chosen twice counts twice.

    Items without a vector (a row of zeros) are left out of the mean. A user who has none but such items, or no
    interaction, gets zeros.

    Args:
        vectors: (n_items, d).
        users, items: training interactions, ids (M,).
        n_users: number of rows to give.

    Returns:
        float32 (n_users, d).
    """
    known = has_vector(vectors)[items]
    chosen = csr_array(
        (np.ones(int(known.sum()), dtype=np.float32), (users[known], items[known])), shape=(n_users, len(vectors))
    )
    counts = np.asarray(chosen.sum(axis=1)).reshape(-1, 1)
    return (chosen @ np.asarray(vectors, dtype=np.float32)) / np.maximum(counts, 1)


def filled_in(profiles: np.ndarray, means: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Profile vectors, with `means` where a user has no profile.

    Args:
        profiles: (n_users, d), zeros where there is none.
        means: (n_users, d), of the same space: both are sentence vectors of one encoder.

    Returns:
        float32 (n_users, d), and which rows were filled in (n_users,).
    """
    without = ~has_vector(profiles)
    return np.where(without[:, None], means, profiles).astype(np.float32), without


def centred(vectors: np.ndarray) -> np.ndarray:
    """Vectors without what all of them have in common, of length 1: hidden states of an LLM point almost the same way.

    Args:
        vectors: (n, d); rows of zeros stand for "none", count for nothing and stay zeros.

    Returns:
        float32 (n, d).
    """
    known = has_vector(vectors)
    found = np.zeros(vectors.shape, dtype=np.float32)
    if known.any():
        apart = vectors[known].astype(np.float64) - vectors[known].mean(axis=0, dtype=np.float64)
        found[known] = apart / np.maximum(np.linalg.norm(apart, axis=1, keepdims=True), 1e-12)
    return found
