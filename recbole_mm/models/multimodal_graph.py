"""Base of the multimodal general recommenders: features, graphs of users and items, propagation, losses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_mm.errors import ConfigError
from recbole_mm.graph import TokenOrder, refined_graph, similarity_graph
from recbole_mm.models.layers import standardise
from recbole_mm.models.propagating import PropagatingRecommender
from recbole_mm.models.sparse import SparseMatrix
from recbole_mm.models.whole_batch import whole_batch
from recbole_mm.utils.arrays import sorted_distinct

if TYPE_CHECKING:
    from recbole_mm.config.resolved import Config
    from recbole_mm.data.dataset import MultimodalDataset


# ------------------------------------------------------------------------------------------------------------ settings


def read_features(config: Config, dataset: MultimodalDataset) -> list[Tensor]:
    """Read the features that `content_features` names, normalised as `feature_normalization` says.

    Returns:
        One tensor (n_items, d_m) float32 for each; row 0 and items without that modality are zeros, whatever the
        normalisation.

    Raises:
        ConfigError: no feature is named, or one is named twice or is unknown.
    """
    names = config["content_features"]
    if not isinstance(names, (list, tuple)) or not names:
        raise ConfigError("content_features names no feature; give entries of item_features, such as [image, text]")
    if len(set(names)) < len(names):
        raise ConfigError(f"content_features: {list(names)} names a feature twice")
    how = config["feature_normalization"]
    features = [torch.as_tensor(np.asarray(dataset.item_feature(name)), dtype=torch.float32) for name in names]
    if how == "l2":
        return [F.normalize(feature, dim=1) for feature in features]
    if how == "standard":
        # By the root of the width, so that a vector's length does not grow with its number of dimensions.
        trained = [torch.as_tensor(dataset.training_feature(name), dtype=torch.float32) for name in names]
        return [standardise(one, known) / one.shape[1] ** 0.5 for one, known in zip(features, trained)]
    return features


# -------------------------------------------------------------------------------------------------------------- graphs


def training_pairs(dataset: MultimodalDataset) -> tuple[Tensor, Tensor]:
    """Return the distinct (user, item) pairs of the training dataset, int64 (E,) each, by user and then item."""
    matrix = dataset.inter_matrix(form="coo")
    keys = sorted_distinct(matrix.row.astype(np.int64) * matrix.shape[1] + matrix.col)
    return torch.from_numpy(keys // matrix.shape[1]), torch.from_numpy(keys % matrix.shape[1])


def user_item_adjacency(
    users: Tensor, items: Tensor, n_users: int, n_items: int, device: torch.device | str = "cpu"
) -> SparseMatrix:
    """Build D^-1/2 A D^-1/2 of the graph of users and items, (n_users + n_items) square; items come after users.

    Args:
        users, items: int64 (E,) distinct edges. The degrees are those of these edges.
    """
    weight = (degrees(users, n_users)[users] * degrees(items, n_items)[items]).rsqrt()
    rows, columns = torch.cat([users, items + n_users]), torch.cat([items + n_users, users])
    size = n_users + n_items
    return SparseMatrix(rows, columns, torch.cat([weight, weight]), (size, size), device)


def degrees(ids: Tensor, count: int) -> Tensor:
    """Count how often each id from 0 to `count` - 1 occurs: float32 (count,)."""
    return torch.bincount(ids, minlength=count).float()


def light_propagation(adjacency: SparseMatrix, vectors: Tensor, layers: int) -> Tensor:
    """Return LightGCN's mean of `vectors` (n, d) and their products with the graph's powers 1 to `layers`."""
    total = step = vectors
    for _ in range(layers):
        step = adjacency @ step
        total = total + step
    return total / (layers + 1)


def read_item_graphs(
    config: Config,
    order: TokenOrder,
    features: Sequence[Tensor],
    users: Tensor,
    items: Tensor,
    own: Callable[[np.ndarray], csr_array],
) -> list[csr_array]:
    """Build a normalised item graph (n_items, n_items) for each feature: a model's own, or MLLMRec's refined one.

    Args:
        config: `item_graph`, `own` or `refined`, and for `refined` the keys `refined_similar_k`, `refined_co_k` and
            `refined_threshold`.
        order: order of the items, for ties.
        features: (n_items, d_m) of each modality; an item without it has no edge there, except by co-occurrence.
        users, items: int64 (E,) training interactions, which the refined graph reads.
        own: builds the model's own graph of one feature.

    Raises:
        ConfigError: one of the keys is impossible.
    """
    kind = config["item_graph"]
    vectors = [feature.detach().cpu().numpy() for feature in features]
    if kind == "own":
        return [order.graph(own, one) for one in vectors]
    similar_k, co_k = config["refined_similar_k"], config["refined_co_k"]
    threshold = config["refined_threshold"]

    def refined(one: np.ndarray, had: np.ndarray) -> csr_array:
        """Build MLLMRec's graph of one feature."""
        return refined_graph(one, users.numpy(), had, similar_k, co_k, threshold)

    return [order.graph(refined, one, items.numpy()) for one in vectors]


def nearest(vectors: np.ndarray, k: int, binary: bool = False) -> csr_array:
    """Link each item to the k items of the largest cosine, itself included, weighted by it; negative ones are left out.

    Args:
        vectors: (n_items, d); zero vectors have no edge.
        k: neighbours of each item at most.
        binary: every edge weighs 1, whatever its cosine, and none is left out.
    """
    graph = similarity_graph(vectors, k, binary=binary)
    if not binary:
        graph.data = np.maximum(graph.data, 0)
        graph.eliminate_zeros()
    return graph


# -------------------------------------------------------------------------------------------------------------- losses


def bpr_loss(positive: Tensor, negative: Tensor, counts: Tensor | None = None) -> Tensor:
    """Return the mean -ln sigmoid(positive - negative) of the pairs (B,) where `counts` (bool) is True; 0 for none."""
    losses = F.softplus(negative - positive)
    if counts is None:
        return losses.mean()
    return mean_where(losses, counts)


def mean_where(values: Tensor, counts: Tensor) -> Tensor:
    """Return the mean of the rows (B,) of a batch where `counts` (bool) is True; 0 for none."""
    values, counts = whole_batch(values * counts, counts)
    return values.sum() / counts.sum().clamp_min(1)


def squared_length(*batches: Tensor) -> Tensor:
    """Return half the squared length of the vectors (B, d) of each batch, summed over batches, averaged over rows."""
    return sum((batch.square().sum() / (2 * len(batch)) for batch in batches), start=batches[0].new_zeros(()))


# --------------------------------------------------------------------------------------------------------------- model


class MultimodalRecommender(PropagatingRecommender):
    """A general recommender over item features, scored by dot products.

    Attributes:
        feature_count: number of features; `feature(m)` is the m-th of `content_features`, (n_items, d_m).
    """

    def __init__(self, config: Config, dataset: MultimodalDataset) -> None:
        super().__init__(config, dataset)
        features = read_features(config, dataset)
        self.feature_count = len(features)
        for place, feature in enumerate(features):
            self.register_buffer(f"feature_{place}", feature, persistent=False)
            self.register_buffer(f"present_{place}", feature.any(dim=1), persistent=False)

    def feature(self, place: int) -> Tensor:
        """Return the frozen (n_items, d_m) vectors of a modality, by place in `content_features`; 0 where missing."""
        return self.get_buffer(f"feature_{place}")

    def features(self) -> list[Tensor]:
        """Return the frozen vectors of every modality."""
        return [self.feature(place) for place in range(self.feature_count)]

    def has_feature(self, place: int) -> Tensor:
        """Return whether each item has that modality, bool (n_items,)."""
        return self.get_buffer(f"present_{place}")


def embedding_table(count: int, width: int) -> nn.Embedding:
    """Build ID embeddings (count, width), Xavier uniform."""
    table = nn.Embedding(count, width)
    nn.init.xavier_uniform_(table.weight)
    return table
