"""What the multimodal general recommenders share: features, user-item graph and its propagation, losses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_mm.errors import ConfigError
from recbole_mm.models.checks import read_choice
from recbole_mm.models.layers import standardise
from recbole_mm.models.propagating import PropagatingRecommender
from recbole_mm.models.sparse import SparseMatrix
from recbole_mm.models.whole_batch import whole_batch

if TYPE_CHECKING:
    from recbole_mm.config.resolved import Config
    from recbole_mm.data.dataset import MultimodalDataset

FEATURE_NORMALIZATIONS = ("none", "l2", "standard")


# ------------------------------------------------------------------------------------------------------------ settings


def read_features(config: Config, dataset: MultimodalDataset) -> list[Tensor]:
    """The features that `content_features` names, normalised as `feature_normalization` says.

    Returns:
        One tensor (n_items, d_m) float32 for each; row 0 and items without that modality are zeros, whatever the
        normalisation.

    Raises:
        ConfigError: no feature is named, one twice, there is none of that name, or the normalisation is unknown.
    """
    names = config["content_features"]
    if not isinstance(names, (list, tuple)) or not names:
        raise ConfigError("content_features names no feature; give entries of item_features, such as [image, text]")
    if len(set(names)) < len(names):
        raise ConfigError(f"content_features: {list(names)} names a feature twice")
    how = read_choice(config, "feature_normalization", FEATURE_NORMALIZATIONS)
    features = [torch.as_tensor(np.asarray(dataset.item_feature(name)), dtype=torch.float32) for name in names]
    if how == "l2":
        return [F.normalize(feature, dim=1) for feature in features]
    if how == "standard":
        # By the root of the width, so that a vector's length does not grow with its number of dimensions.
        return [standardise(feature) / feature.shape[1] ** 0.5 for feature in features]
    return features


# -------------------------------------------------------------------------------------------------------------- graphs


def training_pairs(dataset: MultimodalDataset) -> tuple[Tensor, Tensor]:
    """Distinct (user, item) pairs of the training dataset, int64 (E,) each, by user and then item."""
    matrix = dataset.inter_matrix(form="coo")
    keys = np.unique(matrix.row.astype(np.int64) * matrix.shape[1] + matrix.col)
    return torch.from_numpy(keys // matrix.shape[1]), torch.from_numpy(keys % matrix.shape[1])


def user_item_adjacency(
    users: Tensor, items: Tensor, n_users: int, n_items: int, device: torch.device | str = "cpu"
) -> SparseMatrix:
    """D^-1/2 A D^-1/2 of the graph of users and items, (n_users + n_items) square; items come after users.

    Args:
        users, items: int64 (E,) distinct edges. The degrees are those of these edges.
    """
    weight = (degrees(users, n_users)[users] * degrees(items, n_items)[items]).rsqrt()
    rows, columns = torch.cat([users, items + n_users]), torch.cat([items + n_users, users])
    size = n_users + n_items
    return SparseMatrix(rows, columns, torch.cat([weight, weight]), (size, size), device)


def degrees(ids: Tensor, count: int) -> Tensor:
    """How often each id from 0 to `count` - 1 occurs, float32 (count,)."""
    return torch.bincount(ids, minlength=count).float()


def light_propagation(adjacency: SparseMatrix, vectors: Tensor, layers: int) -> Tensor:
    """LightGCN's: the mean of `vectors` (n, d) and of what 1 to `layers` steps over the graph make of them."""
    total = step = vectors
    for _ in range(layers):
        step = adjacency @ step
        total = total + step
    return total / (layers + 1)


# -------------------------------------------------------------------------------------------------------------- losses


def bpr_loss(positive: Tensor, negative: Tensor, counts: Tensor | None = None) -> Tensor:
    """-ln sigmoid(positive - negative), averaged over the pairs (B,) where `counts` (bool) is True; 0 for none."""
    losses = F.softplus(negative - positive)
    if counts is None:
        return losses.mean()
    return mean_where(losses, counts)


def mean_where(values: Tensor, counts: Tensor) -> Tensor:
    """Mean of the rows (B,) of a batch where `counts` (bool) is True; 0 for none."""
    values, counts = whole_batch(values * counts, counts)
    return values.sum() / counts.sum().clamp_min(1)


def squared_length(*batches: Tensor) -> Tensor:
    """Half the squared length of the vectors (B, d) of each batch, summed over batches and averaged over rows."""
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
        """Frozen vectors (n_items, d_m) of the modality at that place of `content_features`; zeros where missing."""
        return self.get_buffer(f"feature_{place}")

    def features(self) -> list[Tensor]:
        return [self.feature(place) for place in range(self.feature_count)]

    def has_feature(self, place: int) -> Tensor:
        """Which items have that modality, bool (n_items,)."""
        return self.get_buffer(f"present_{place}")


def embedding_table(count: int, width: int) -> nn.Embedding:
    """ID embeddings (count, width), Xavier uniform."""
    table = nn.Embedding(count, width)
    nn.init.xavier_uniform_(table.weight)
    return table
