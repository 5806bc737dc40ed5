"""Normalisation of an item graph, and MLLMRec's refined graph made of its two parts."""

from __future__ import annotations

import numpy as np
import torch
from scipy.sparse import csr_array

from recbole_mm.errors import ConfigError, DataError
from recbole_mm.graph.co_occurrence import co_occurrence_graph
from recbole_mm.graph.similarity import similarity_graph


def normalized(graph: csr_array, how: str = "symmetric") -> csr_array:
    """Return D^-1/2 A D^-1/2 ("symmetric") or D^-1 A ("row") with D = the row sums of A.

    A need not be symmetric and is not made so: column j is scaled by row j's sum, as in MLLMRec's released code. Rows
    without edges stay empty. A row whose sum is not positive (possible only with negative weights) has no such
    scale: the edges from it, and under "symmetric" those to it, are left out.

    Args:
        graph: (n, n) weights.
        how: "symmetric" or "row".

    Returns:
        (n, n) float32, a new matrix. Sums and scales are taken in float64 and rounded once.

    Raises:
        ConfigError: `how` is neither.

    Example:
        >>> normalized(csr_array([[1.0, 3.0], [0.0, 2.0]]), "row").toarray()
        array([[0.25, 0.75],
               [0.  , 1.  ]], dtype=float32)
    """
    if how not in ("symmetric", "row"):
        raise ConfigError(f"A graph is normalised 'symmetric' or 'row', not {how!r}.")
    lengths = np.diff(graph.indptr)
    row_of = np.repeat(np.arange(graph.shape[0]), lengths)
    weights = graph.data.astype(np.float64)
    sums = np.bincount(row_of, weights=weights, minlength=graph.shape[0])
    positive = sums > 0
    scale = np.zeros_like(sums)
    scale[positive] = sums[positive] ** -0.5 if how == "symmetric" else 1 / sums[positive]
    weights *= scale[row_of]
    if how == "symmetric":
        weights *= scale[graph.indices]
    result = csr_array((weights.astype(np.float32), graph.indices.copy(), graph.indptr.copy()), shape=graph.shape)
    result.eliminate_zeros()
    return result


def refined_graph(
    vectors: np.ndarray,
    users: np.ndarray,
    items: np.ndarray,
    similar_k: int = 10,
    co_k: int = 10,
    threshold: float = 0.7,
    denoise: bool = True,
    co_occur: bool = True,
    drop_identical: bool = False,
) -> csr_array:
    """Build MLLMRec's S* = D^-1/2 (S^s + S^c) D^-1/2, with D = the row sums of S^s + S^c.

    S^s is `similarity_graph` (the paper's threshold-controlled denoising), S^c is `co_occurrence_graph`.

    Args:
        vectors: (n_items, d), row 0 padding; items without a vector are zeros.
        users, items: (interactions,) ids of *training* interactions, and of no others.
        similar_k: K_s, most similar items kept of each item, itself included.
        co_k: K_c, co-occurring items kept of each item.
        threshold: alpha; of the K_s those with a cosine of at least alpha become edges of weight 1.
        denoise: False: all K_s are edges, weighted by their cosine, and `threshold` is not used.
        co_occur: False: S^c is left out.
        drop_identical: see `co_occurrence_graph`.

    Returns:
        (n_items, n_items) float32; row and column 0 are empty.
    """
    vectors = np.asarray(vectors)
    graph = similarity_graph(vectors, similar_k, threshold if denoise else None, binary=denoise)
    if co_occur:
        graph = graph + co_occurrence_graph(users, items, len(vectors), co_k, drop_identical)
    return normalized(graph)


def to_torch(graph: csr_array, device: str | torch.device = "cpu") -> torch.Tensor:
    """Return the graph as a coalesced float32 COO tensor, which `torch.sparse.mm` multiplies with gradients.

    Raises:
        DataError: the graph has unsorted or repeated columns.
    """
    if not graph.has_canonical_format:
        raise DataError("The graph has unsorted or repeated columns; call graph.sum_duplicates() first.")
    rows = np.repeat(np.arange(graph.shape[0]), np.diff(graph.indptr))
    places = torch.from_numpy(np.stack([rows, graph.indices.astype(np.int64)]))
    weights = torch.from_numpy(graph.data.astype(np.float32))
    return torch.sparse_coo_tensor(places, weights, graph.shape, is_coalesced=True, check_invariants=False).to(device)
