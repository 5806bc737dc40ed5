"""Graphs whose ties do not depend on RecBole's item numbers, which follow the order of all rows, held-out ones too."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy.sparse import csr_array


class TokenOrder:
    """Builds graphs of items that are numbered by their own ids, and gives the graphs in RecBole's numbers.

    Of equally similar items the smaller number wins a place among the k best. RecBole's numbers change when a held-out
    row does; the items' own ids do not.

    Args:
        tokens: the dataset's own item ids, index = RecBole's number; index 0 is padding and stays so.

    Example:
        >>> order = TokenOrder(dataset.item_tokens())                                      # doctest: +SKIP
        >>> order.graph(lambda vectors: similarity_graph(vectors, k=10), vectors)          # doctest: +SKIP
    """

    def __init__(self, tokens: Sequence[str]) -> None:
        self.items = np.array([0, *sorted(range(1, len(tokens)), key=lambda item: str(tokens[item]))], dtype=np.int64)
        self.rank = np.empty_like(self.items)
        self.rank[self.items] = np.arange(len(self.items))

    def graph(self, build: Callable[..., csr_array], vectors: np.ndarray, items: np.ndarray | None = None) -> csr_array:
        """`build(vectors, items)`, or `build(vectors)` without items.

        Args:
            build: makes an (n_items, n_items) graph.
            vectors: (n_items, d), row = RecBole's number.
            items: (M,) RecBole's numbers of the items of interactions.

        Returns:
            The graph in RecBole's numbers, columns ascending within a row.
        """
        found = build(vectors[self.items], *(() if items is None else (self.rank[items],)))
        found = found[self.rank][:, self.rank].tocsr()
        found.sort_indices()
        return csr_array(found)
