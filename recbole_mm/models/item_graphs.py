"""The item graph of each modality, frozen: a model's own, or MLLMRec's refined one in its place (`item_graph`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse import csr_array
from torch import Tensor

from recbole_mm.graph import TokenOrder, refined_graph, similarity_graph
from recbole_mm.models.checks import read_choice, read_number, read_whole

if TYPE_CHECKING:
    from recbole_mm.config.resolved import Config

ITEM_GRAPHS = ("own", "refined")


def read_item_graphs(
    config: Config,
    order: TokenOrder,
    features: Sequence[Tensor],
    users: Tensor,
    items: Tensor,
    own: Callable[[np.ndarray], csr_array],
) -> list[csr_array]:
    """A normalised item graph (n_items, n_items) for each feature, as `item_graph` says.

    Args:
        config: `item_graph`, and for `refined` the keys `refined_similar_k`, `refined_co_k` and `refined_threshold`.
        order: of the items, for ties.
        features: (n_items, d_m) of each modality; an item without it has no edge there, except by co-occurrence.
        users, items: int64 (E,) training interactions, which the refined graph reads.
        own: makes the model's own graph of one feature.

    Raises:
        ConfigError: one of the keys is impossible.
    """
    kind = read_choice(config, "item_graph", ITEM_GRAPHS)
    vectors = [feature.detach().cpu().numpy() for feature in features]
    if kind == "own":
        return [order.graph(own, one) for one in vectors]
    similar_k, co_k = read_whole(config, "refined_similar_k", 1), read_whole(config, "refined_co_k", 1)
    threshold = read_number(config, "refined_threshold", -1, 1)

    def refined(one: np.ndarray, had: np.ndarray) -> csr_array:
        return refined_graph(one, users.numpy(), had, similar_k, co_k, threshold)

    return [order.graph(refined, one, items.numpy()) for one in vectors]


def nearest(vectors: np.ndarray, k: int, binary: bool = False) -> csr_array:
    """Edges from each item to the k of the largest cosine, itself included, weighted by it; negative ones left out.

    Args:
        vectors: (n_items, d); zero vectors have no edge.
        k: neighbours of each item at most.
        binary: the edges weigh 1, whatever their cosine, also those that would be left out.
    """
    graph = similarity_graph(vectors, k, binary=binary)
    if not binary:
        graph.data = np.maximum(graph.data, 0)
        graph.eliminate_zeros()
    return graph
