"""MMGCN: Multi-modal Graph Convolution Network for Personalized Recommendation of Micro-video (Wei et al., MM 2019)."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from recbole.data.interaction import Interaction
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_mm.config.kinds import NAMES, choice, layers, number, size
from recbole_mm.config.schema import Setting, section
from recbole_mm.config.settings import SETTINGS as SHARED
from recbole_mm.models.layers import linear
from recbole_mm.models.multimodal_graph import (
    MultimodalRecommender,
    bpr_loss,
    degrees,
    embedding_table,
    squared_length,
    training_pairs,
)
from recbole_mm.models.settings import AN_ITEM, IMAGE_AND_TEXT, ITEM_FEATURES
from recbole_mm.models.sparse import SparseMatrix

if TYPE_CHECKING:
    from recbole_mm.config.resolved import Config
    from recbole_mm.data.dataset import MultimodalDataset

# fmt: off
SETTINGS = (
    *section(AN_ITEM,
        Setting("content_features", NAMES, ["image", "text"], "Entries of item_features, each a modality with a "
            "convolution of its own."),
        SHARED["item_features"].but(IMAGE_AND_TEXT, ITEM_FEATURES),
        Setting("feature_normalization", choice("none", "l2", "standard"), "none", "none: as they are, as in the "
            "paper; l2: length 1; standard: zero mean, unit spread over items, divided by the root of the width.")),
    *section("Model",
        Setting("embedding_size", size(1), 64, "Width of ID embeddings and of every layer's output. Paper: 64."),
        Setting("modality_size", size(0), 0, "Width of a modality's space, in which each user has a preference: "
            "features are first mapped to it. 0: the feature's own width, as in the paper."),
        Setting("n_layers", layers(1), 2, "Layers of aggregation and combination. Paper: 1 to 3 compared."),
        Setting("combination", choice("concat", "elementwise"), "elementwise", "How neighbours h and node x' join. "
            "elementwise: LeakyReLU(W3 h + x'); concat: LeakyReLU(W3 [h, x']). Paper: both compared."),
        Setting("reg_weight", number(0), 1e-4, "Of half the squared length of a pair's ID embeddings and preferences. "
            "Paper: tuned.")),
    *section("Training",
        SHARED["train_batch_size"].but(2048, "Training pairs per optimizer step, each of which convolves the whole "
            "graph. Paper: tuned."),
        SHARED["learning_rate"].but(1e-3, "Of Adam. Paper: tuned.")),
)
# fmt: on


class MMGCN(MultimodalRecommender):
    """A graph convolution over users and items for each modality; a node's vector is the sum over modalities.

    Needs from the dataset: `item_feature(name)`, float32 (n_items, d_m), for each name in `content_features`.

    Raises:
        ConfigError: a feature that is not there, or settings out of range.

    Example:
        >>> recbole_mm.run("MMGCN", "my-data", config_dict={"content_features": ["image", "text"]})  # doctest: +SKIP
    """

    settings = SETTINGS
    supports_ddp = True

    def __init__(self, config: Config, dataset: MultimodalDataset) -> None:
        super().__init__(config, dataset)
        width = config["embedding_size"]
        n_layers = config["n_layers"]
        modality_size = config["modality_size"]
        combination = config["combination"]
        self.reg_weight = config["reg_weight"]
        self.neighbours = neighbour_means(
            *training_pairs(dataset), n_users=self.n_users, n_items=self.n_items, device=self.device
        )
        self.user_embedding = embedding_table(self.n_users, width)
        self.item_embedding = embedding_table(self.n_items, width)
        self.modalities = nn.ModuleList(
            ModalityGraph(self.n_users, feature.shape[1], modality_size, width, n_layers, combination)
            for feature in self.features()
        )

    def propagate(self) -> tuple[Tensor, Tensor]:
        """u* (n_users, d) and i* (n_items, d): sums over modalities of the last layer's vectors (Sec. 3.4)."""
        ids = torch.cat([self.user_embedding.weight, self.item_embedding.weight])
        parts = (graph(self.neighbours, feature, ids) for graph, feature in zip(self.modalities, self.features()))
        total = torch.stack(list(parts)).sum(0)
        users, items = total.split([self.n_users, self.n_items])
        return users, items

    def calculate_loss(self, interaction: Interaction) -> Tensor:
        """BPR and `reg_weight` times half the squared length of the batch's embeddings (Sec. 3.5).

        Of the paper's Theta these are the ID embeddings of users and items and the users' preferences; RecBole's
        `weight_decay` reaches all parameters.
        """
        user, chosen, other = (interaction[name] for name in (self.USER_ID, self.ITEM_ID, self.NEG_ITEM_ID))
        users, items = self.propagate()
        loss = bpr_loss((users[user] * items[chosen]).sum(-1), (users[user] * items[other]).sum(-1))
        if self.reg_weight == 0:
            return loss
        lengths = squared_length(
            self.user_embedding(user),
            self.item_embedding(chosen),
            self.item_embedding(other),
            *(cast(ModalityGraph, graph).preference(user) for graph in self.modalities),
        )
        return loss + self.reg_weight * lengths


class ModalityGraph(nn.Module):
    """The convolution of one modality: items start with their feature, users with a preference that is learnt.

    Args:
        n_users: rows of the preferences.
        feature_size: d_m.
        modality_size: width of this modality's space, to which features are mapped first; 0 keeps d_m.
        width: of every layer's output and of the ID embeddings, d.
        n_layers: at least 1.
        combination: one of `COMBINATIONS`.

    Example:
        >>> graph = ModalityGraph(2, feature_size=5, modality_size=0, width=4, n_layers=2, combination="concat")
        >>> neighbours = neighbour_means(torch.tensor([0, 1]), torch.tensor([2, 0]), n_users=2, n_items=3)
        >>> graph(neighbours, torch.ones(3, 5), torch.zeros(5, 4)).shape
        torch.Size([5, 4])
    """

    def __init__(
        self, n_users: int, feature_size: int, modality_size: int, width: int, n_layers: int, combination: str
    ) -> None:
        super().__init__()
        self.reduction = linear(feature_size, modality_size, bias=False) if modality_size else None
        start = modality_size or feature_size
        self.preference = embedding_table(n_users, start)
        self.layers = nn.ModuleList(
            ModalityLayer(start if place == 0 else width, width, combination) for place in range(n_layers)
        )

    def forward(self, neighbours: SparseMatrix, feature: Tensor, ids: Tensor) -> Tensor:
        """Features (n_items, d_m) and ID embeddings (n_users + n_items, d) -> vectors (n_users + n_items, d)."""
        items = feature if self.reduction is None else self.reduction(feature)
        nodes = torch.cat([self.preference.weight, items])
        for layer in self.layers:
            nodes = layer(neighbours, nodes, ids)
        return nodes


class ModalityLayer(nn.Module):
    """Aggregation and combination (Sec. 3.2 and 3.3), with slope 0.01 where the paper has a LeakyReLU.

    h = LeakyReLU(mean of W1 x over the node's neighbours); x' = LeakyReLU(W2 x) + id; the node's new vector is
    LeakyReLU(W3 [h, x']) for `concat` and LeakyReLU(W3 h + x') for `elementwise`.

    Example:
        >>> layer = ModalityLayer(width_in=3, width=4, combination="elementwise")
        >>> neighbours = neighbour_means(torch.tensor([0, 1]), torch.tensor([2, 0]), n_users=2, n_items=3)
        >>> layer(neighbours, torch.ones(5, 3), torch.zeros(5, 4)).shape
        torch.Size([5, 4])
    """

    def __init__(self, width_in: int, width: int, combination: str) -> None:
        super().__init__()
        self.message = linear(width_in, width, bias=False)
        self.own = linear(width_in, width, bias=False)
        self.concat = combination == "concat"
        self.combine = linear(2 * width if self.concat else width, width, bias=False)

    def forward(self, neighbours: SparseMatrix, nodes: Tensor, ids: Tensor) -> Tensor:
        """(n, width_in) and (n, width) -> (n, width)."""
        # W1 before the mean: the same vectors, and the sparse product is as wide as the output, not as the input.
        received = F.leaky_relu(neighbours @ self.message(nodes))
        own = F.leaky_relu(self.own(nodes)) + ids
        combined = self.combine(torch.cat([received, own], dim=1)) if self.concat else self.combine(received) + own
        return F.leaky_relu(combined)


def neighbour_means(
    users: Tensor, items: Tensor, n_users: int, n_items: int, device: torch.device | str = "cpu"
) -> SparseMatrix:
    """D^-1 A of the graph of users and items, (n_users + n_items) square; items come after users.

    Args:
        users, items: int64 (E,) distinct edges.
    """
    rows, columns = torch.cat([users, items + n_users]), torch.cat([items + n_users, users])
    size = n_users + n_items
    return SparseMatrix(rows, columns, degrees(rows, size)[rows].reciprocal(), (size, size), device)
