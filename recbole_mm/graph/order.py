"""Graphs whose ties do not depend on RecBole's item numbers, which follow the order of all rows, held-out ones too."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy.sparse import csr_array


class TokenOrder:
    """Builds graphs of items in the order of their tokens, and returns the graphs in RecBole's ids.

    Of equally similar items the smaller number wins a place among the k best. RecBole's ids change when a held-out row
    does; the order of tokens does not.

    Args:
        tokens: the dataset's item tokens, index = RecBole's id; index 0 is padding and stays so.

    Example:
        >>> order = TokenOrder(["[PAD]", "pear", "apple"])
        >>> order.items
        array([0, 2, 1])
        >>> order.graph(lambda vectors: csr_array(vectors @ vectors.T), np.array([[0.0], [1.0], [2.0]])).toarray()
        array([[0., 0., 0.],
               [0., 1., 2.],
               [0., 2., 4.]])
    """

    def __init__(self, tokens: Sequence[str]) -> None:
        self.items = np.array([0, *sorted(range(1, len(tokens)), key=lambda item: str(tokens[item]))], dtype=np.int64)
        self.rank = np.empty_like(self.items)
        self.rank[self.items] = np.arange(len(self.items))

    def graph(self, build: Callable[..., csr_array], vectors: np.ndarray, items: np.ndarray | None = None) -> csr_array:
        """Return `build(vectors, items)`, or `build(vectors)` without items.

        Args:
            build: returns an (n_items, n_items) graph.
            vectors: (n_items, d), row = RecBole's id.
            items: (M,) RecBole's ids of the items of interactions.

        Returns:
            The graph in RecBole's ids, columns ascending within a row.
        """
        found = build(vectors[self.items], *(() if items is None else (self.rank[items],)))
        found = found[self.rank][:, self.rank].tocsr()
        found.sort_indices()
        return csr_array(found)
