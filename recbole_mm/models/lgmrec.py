"""LGMRec: Local and Global Graph Learning for Multimodal Recommendation (AAAI 2024, arXiv 2312.16400)."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

import torch
from recbole.data.interaction import Interaction
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_mm.config.kinds import above_zero, layers, number, size
from recbole_mm.config.schema import Setting, section
from recbole_mm.config.settings import SETTINGS as SHARED
from recbole_mm.models.layers import linear
from recbole_mm.models.losses import info_nce
from recbole_mm.models.multimodal_graph import (
    MultimodalRecommender,
    bpr_loss,
    degrees,
    embedding_table,
    light_propagation,
    squared_length,
    training_pairs,
    user_item_adjacency,
)
from recbole_mm.models.settings import ITEMS_AS_THEY_ARE
from recbole_mm.models.sparse import SparseMatrix
from recbole_mm.models.whole_batch import shared_random

if TYPE_CHECKING:
    from recbole_mm.config.resolved import Config
    from recbole_mm.data.dataset import MultimodalDataset

# fmt: off
SETTINGS = (
    *ITEMS_AS_THEY_ARE,
    *section("Local: the graph of users and items",
        Setting("embedding_size", size(1), 64, "Width of ID embeddings and projected features. Paper: 64."),
        Setting("n_ui_layers", layers(0), 2, "L, layers over the ID embeddings. Paper: tuned."),
        Setting("n_mm_layers", layers(0), 2, "K, layers over the features. Paper: tuned.")),
    *section("Global: a hypergraph of each modality",
        Setting("hyperedges", size(1), 4, "A, learnt attributes that items and users depend on. Paper: tuned."),
        Setting("n_hyper_layers", layers(1), 1, "H, passes over it. Paper: tuned."),
        Setting("gumbel_temperature", above_zero(), 0.2, "tau of the dependencies' softmax. Paper: not stated."),
        Setting("dropout", number(0, 1, below=True), 0.5, "Of dependencies, below 1. Paper: tuned."),
        Setting("global_weight", number(0), 0.3, "alpha, of the global vectors. Paper: tuned.")),
    *section("Loss",
        Setting("cl_weight", number(0), 1e-4, "lambda_2, of the contrast of modalities' global vectors. Paper: tuned."),
        Setting("temperature", above_zero(), 0.2, "tau of the contrast. Paper: 0.2."),
        Setting("reg_weight", number(0), 1e-6, "lambda_1, of half the squared length of a pair's ID embeddings. Paper: "
            "tuned.")),
    *section("Training",
        SHARED["train_batch_size"].but(2048, "Training pairs per optimizer step. Paper: 2048."),
        SHARED["learning_rate"].but(1e-3, "Of Adam. Paper: 1e-3.")),
)
# fmt: on


class LGMRec(MultimodalRecommender):
    """Local vectors of behaviour and of content, apart from each other, and global ones over learnt hyperedges.

    - Behaviour: e_id, the mean over `n_ui_layers` layers of LightGCN of the ID embeddings.
    - Content: e_m = A^K [mean over chosen items of W_m f, W_m f], A the normalised graph of users and items.
    - Dependencies on `hyperedges` attributes v: H_i = f . v, H_u = R H_i with R the chosen items, each through
      softmax((log d - log(1 - d) + H) / tau), d uniform noise, in training alone.
    - Global: g_i = H_i H_i^T g_i and g_u = H_u H_i^T g_i, `n_hyper_layers` times from the items' e_id, with dropout of
      each H; summed over modalities.
    - Vectors: e_id + sum over m of e_m / |e_m| + global_weight * g / |g|.
    - Loss: BPR + cl_weight * InfoNCE between the modalities' global vectors of users and of items
      + reg_weight * |ID embeddings|^2 / 2.

    Raises:
        ConfigError: see `MultimodalRecommender`.

    Example:
        >>> recbole_mm.run("LGMRec", "my-data", config_dict={"content_features": ["image", "text"]})  # doctest: +SKIP
    """

    settings = SETTINGS
    supports_ddp = True
    of_user: Tensor

    def __init__(self, config: Config, dataset: MultimodalDataset) -> None:
        super().__init__(config, dataset)
        width, count = config["embedding_size"], config["hyperedges"]
        self.n_ui_layers, self.n_mm_layers = config["n_ui_layers"], config["n_mm_layers"]
        self.n_hyper_layers: int = config["n_hyper_layers"]
        self.gumbel_temperature, self.dropout = config["gumbel_temperature"], config["dropout"]
        self.global_weight, self.temperature = config["global_weight"], config["temperature"]
        self.cl_weight, self.reg_weight = config["cl_weight"], config["reg_weight"]
        users, items = training_pairs(dataset)
        self.adjacency = user_item_adjacency(users, items, self.n_users, self.n_items, self.device)
        ones = torch.ones(len(users))
        self.chosen = SparseMatrix(users, items, ones, (self.n_users, self.n_items), self.device)
        self.register_buffer("of_user", degrees(users, self.n_users).clamp_min(1)[:, None], persistent=False)
        self.user_embedding = embedding_table(self.n_users, width)
        self.item_embedding = embedding_table(self.n_items, width)
        self.projections = nn.ModuleList(linear(feature.shape[1], width, bias=False) for feature in self.features())
        self.attributes = nn.ModuleList(linear(feature.shape[1], count, bias=False) for feature in self.features())

    def local_content(self, place: int) -> Tensor:
        """e_m of all users, then all items, (n_users + n_items, d), m by its place in `content_features`."""
        items = self.projections[place](self.feature(place))
        vectors = torch.cat([(self.chosen @ items) / self.of_user, items])
        for _ in range(self.n_mm_layers):
            vectors = self.adjacency @ vectors
        return vectors

    def dependencies(self, place: int) -> tuple[Tensor, Tensor]:
        """H of all users (n_users, A) and items (n_items, A), after softmax and dropout."""
        items = self.attributes[place](self.feature(place))
        return self._attached(self.chosen @ items), self._attached(items)

    def _attached(self, logits: Tensor) -> Tensor:
        if not self.training:
            return (logits / self.gumbel_temperature).softmax(dim=1)
        with shared_random():
            noise = torch.rand_like(logits).clamp(1e-6, 1 - 1e-6).logit()
            found = ((noise + logits) / self.gumbel_temperature).softmax(dim=1)
            return F.dropout(found, self.dropout)

    def global_vectors(self, items: Tensor) -> list[Tensor]:
        """g of each modality of all users, then all items, from the items' e_id (n_items, d)."""
        found = []
        for place in range(self.feature_count):
            of_users, of_items = self.dependencies(place)
            own = items
            for _ in range(self.n_hyper_layers):
                hub = of_items.T @ own
                users, own = of_users @ hub, of_items @ hub
            found.append(torch.cat([users, own]))
        return found

    def parts(self) -> tuple[Tensor, list[Tensor]]:
        """Vectors of all users, then all items, (n_users + n_items, d), and the global ones of each modality."""
        start = torch.cat([self.user_embedding.weight, self.item_embedding.weight])
        vectors = light_propagation(self.adjacency, start, self.n_ui_layers)
        apart = self.global_vectors(vectors[self.n_users :])
        for place in range(self.feature_count):
            vectors = vectors + F.normalize(self.local_content(place), dim=1)
        return vectors + self.global_weight * F.normalize(sum(apart, torch.zeros_like(vectors)), dim=1), apart

    def propagate(self) -> tuple[Tensor, Tensor]:
        """Return the vectors of all users and items, whose dot product is the score."""
        users, items = self.parts()[0].split([self.n_users, self.n_items])
        return users, items

    def calculate_loss(self, interaction: Interaction) -> Tensor:
        """BPR + cl_weight * InfoNCE + reg_weight * |ID embeddings|^2 / 2, averaged over the batch."""
        user, positive, negative = (interaction[name] for name in (self.USER_ID, self.ITEM_ID, self.NEG_ITEM_ID))
        vectors, apart = self.parts()
        own, items = vectors[user], vectors[self.n_users :]
        loss = bpr_loss((own * items[positive]).sum(1), (own * items[negative]).sum(1))
        if self.cl_weight:
            for one, other in combinations(apart, 2):
                for nodes, ids in ((user, user), (self.n_users + positive, positive)):
                    loss = loss + self.cl_weight * info_nce(one[nodes], other[nodes], ids, self.temperature)
        of_items = self.item_embedding(positive), self.item_embedding(negative)
        return loss + self.reg_weight * squared_length(self.user_embedding(user), *of_items)
