"""LATTICE: Mining Latent Structures for Multimedia Recommendation (ACM MM 2021, arXiv 2104.09036)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from recbole.data.interaction import Interaction
from scipy.sparse import csr_array
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_mm.config.kinds import SHARE, choice, layers, number, size
from recbole_mm.config.schema import Setting, section
from recbole_mm.config.settings import SETTINGS as SHARED
from recbole_mm.graph import TokenOrder, normalized
from recbole_mm.models.multimodal_graph import (
    MultimodalRecommender,
    bpr_loss,
    embedding_table,
    light_propagation,
    nearest,
    read_item_graphs,
    squared_length,
    training_pairs,
    user_item_adjacency,
)
from recbole_mm.models.propagating import Kept
from recbole_mm.models.settings import AN_ITEM, ITEM_CONTENT, REFINED
from recbole_mm.models.sparse import SparseMatrix

if TYPE_CHECKING:
    from recbole_mm.config.resolved import Config
    from recbole_mm.data.dataset import MultimodalDataset


Part = tuple[Tensor, SparseMatrix, Tensor]
"""A share of the item graph: its weight, its edges, and the weights (E,) of those."""

# fmt: off
SETTINGS = (
    *section(AN_ITEM,
        *ITEM_CONTENT,
        Setting("feature_normalization", choice("none", "l2", "standard"), "none", "none: as they are, as in the "
            "paper; l2: length 1, which leaves the initial graph as it is; standard: zero mean, unit spread over "
            "items, divided by the root of the width.")),
    *section("The graph of items",
        Setting("knn_k", size(1), 10, "Neighbours of each item in each modality, itself among them. Paper: 10."),
        Setting("lambda_coeff", SHARE, 0.7, "Share of the initial graph, from 0 to 1; the rest is the learnt one's. "
            "Paper: 0.7."),
        Setting("feature_embedding_size", size(1), 64, "Width of the projected features that the learnt graph is made "
            "of. Paper: 64."),
        Setting("n_mm_layers", layers(1), 1, "Steps over the graph of items. Paper: 1 or 2 by dataset."),
        Setting("graph_gradients", choice("every_batch", "first_batch"), "every_batch", "When the projections learn: "
            "every_batch: the weights of the edges are computed in every step. first_batch: in the first of each "
            "epoch, and stay for the rest of it, which is cheaper."),
        Setting("item_graph", choice("own", "refined"), "own", "The initial graph. own: as above; refined: MLLMRec's "
            "of the same features (docs/lattice.md)."),
        *REFINED),
    *section("The collaborative filter",
        Setting("backbone", choice("lightgcn", "mf"), "lightgcn", "lightgcn or mf (ID embeddings alone). Paper: both, "
            "and NGCF."),
        Setting("embedding_size", size(1), 64, "Width of ID embeddings. Paper: 64."),
        Setting("n_ui_layers", layers(0), 2, "Layers of LightGCN. Paper: not stated."),
        Setting("reg_weight", number(0), 1e-4, "Of half the squared length of a pair's ID embeddings. Paper: tuned.")),
    *section("Training",
        SHARED["train_batch_size"].but(2048, "Training pairs per optimizer step. Paper: 1024."),
        SHARED["learning_rate"].but(1e-3, "Of Adam. Paper: tuned.")),
)
# fmt: on


class LATTICE(MultimodalRecommender):
    """A collaborative filter whose item vectors are enriched over a graph of items that is learnt from their features.

    - For each modality m: S^m joins each item with its k most similar ones by cosine of the raw features, negative
      cosines out, D^-1/2 S D^-1/2. L^m is made in the same way of the projected features W_m f + b_m.
    - A = sum over m of a_m (lambda S^m + (1 - lambda) L^m), with a = softmax of a learnt number per modality.
    - h = A^L x of the ID embeddings x (L: `n_mm_layers`); an item's vector is that of the backbone plus h / |h|.

    Which items L^m joins is decided at the start of every epoch and, in evaluation, for the weights that are
    evaluated. With `graph_gradients: every_batch` the weights of those edges are computed in every step, so that the
    projections and a learn in all of them; with `first_batch` only in the first step of an epoch, after which A stays.

    Raises:
        ConfigError: see `MultimodalRecommender`; or a size, number or choice that is impossible.

    Example:
        >>> recbole_mm.run("LATTICE", "my-data", config_dict={"content_features": ["image", "text"]})  # doctest: +SKIP
    """

    settings = SETTINGS
    supports_ddp = True

    def __init__(self, config: Config, dataset: MultimodalDataset) -> None:
        super().__init__(config, dataset)
        width, feature_width = config["embedding_size"], config["feature_embedding_size"]
        self.backbone = config["backbone"]
        self.frozen_after_first = config["graph_gradients"] == "first_batch"
        self.n_ui_layers, self.n_mm_layers = config["n_ui_layers"], config["n_mm_layers"]
        self.k = config["knn_k"]
        self.initial_weight = config["lambda_coeff"]
        self.reg_weight = config["reg_weight"]
        users, items = training_pairs(dataset)
        self.adjacency = user_item_adjacency(users, items, self.n_users, self.n_items, self.device)
        self.order = TokenOrder(dataset.item_tokens())
        graphs = read_item_graphs(config, self.order, self.features(), users, items, self._own_graph)
        self.initial_graphs = [SparseMatrix.of(graph, self.device) for graph in graphs]
        self.user_embedding = embedding_table(self.n_users, width)
        self.item_embedding = embedding_table(self.n_items, width)
        layers = [nn.Linear(feature.shape[1], feature_width) for feature in self.features()]
        for layer in layers:
            nn.init.xavier_uniform_(layer.weight)
        self.projections = nn.ModuleList(layers)
        self.modality_logits = nn.Parameter(torch.zeros(self.feature_count))
        self._learned = Kept()
        self._frozen = Kept()

    def _own_graph(self, vectors: np.ndarray) -> csr_array:
        return normalized(nearest(vectors, self.k))

    # ---------------------------------------------------------------------------------------------- learned item graph

    def start_epoch(self, epoch: int) -> None:
        """Choose every item's neighbours anew, by the features as they are projected now."""
        self._choose_neighbours()
        self._frozen.value = None

    def projected(self, place: int) -> Tensor:
        """W_m f + b_m at length 1 (n_items, feature_embedding_size); zeros for items without that modality."""
        vectors = F.normalize(self.projections[place](self.feature(place)).float(), dim=1)
        return vectors * self.has_feature(place)[:, None]

    @torch.no_grad()
    def _choose_neighbours(self) -> None:
        """What the last evaluation has chosen is right as long as no weight has changed since."""
        key = self.weights_key()
        if self._learned.key != key:
            vectors = [self.projected(place).cpu().numpy() for place in range(self.feature_count)]
            graphs = [self.order.graph(lambda rows: nearest(rows, self.k), one) for one in vectors]
            self._learned.value = [SparseMatrix.of(graph, self.device) for graph in graphs]
            self._learned.key = key

    def learned_graph(self, place: int) -> tuple[SparseMatrix, Tensor]:
        """L^m: the chosen edges, and their weights (E,), differentiable."""
        edges, vectors = self._learned.value[place], self.projected(place)
        cosines = F.relu(edges.dots(vectors, vectors))
        sums = edges.row_sums(cosines)
        scale = torch.where(sums > 0, sums.clamp_min(1e-12).rsqrt(), 0.0)
        return edges, cosines * scale[edges.rows] * scale[edges.columns]

    def item_graphs(self) -> list[Part]:
        """The parts of A, each with its a_m lambda or a_m (1 - lambda)."""
        shares = self.modality_logits.softmax(0)
        parts: list[Part] = []
        for place, initial in enumerate(self.initial_graphs):
            parts.append((shares[place] * self.initial_weight, initial, initial.values))
            parts.append((shares[place] * (1 - self.initial_weight), *self.learned_graph(place)))
        return parts

    def _current_item_graphs(self) -> list[Part]:
        if not self.training or self._learned.value is None:
            self._choose_neighbours()
        if not (self.training and self.frozen_after_first):
            return self.item_graphs()
        if self._frozen.value is not None:
            return self._frozen.value
        parts = self.item_graphs()
        self._frozen.value = [(share.detach(), edges, weights.detach()) for share, edges, weights in parts]
        return parts

    # ------------------------------------------------------------------------------------------------- recommendation

    def propagate(self) -> tuple[Tensor, Tensor]:
        """Return the vectors of all users and items, whose dot product is the score."""
        parts = self._current_item_graphs()
        users, items = self.user_embedding.weight, self.item_embedding.weight
        similar = items
        for _ in range(self.n_mm_layers):
            steps = [share * edges.matmul(similar, weights) for share, edges, weights in parts]
            similar = torch.stack(steps).sum(0)
        if self.backbone == "lightgcn":
            vectors = light_propagation(self.adjacency, torch.cat([users, items]), self.n_ui_layers)
            users, items = vectors.split([self.n_users, self.n_items])
        return users, items + F.normalize(similar, dim=1)

    def calculate_loss(self, interaction: Interaction) -> Tensor:
        """BPR, with the squared length of the ID embeddings of the batch as regularisation."""
        user, positive, negative = (interaction[key] for key in (self.USER_ID, self.ITEM_ID, self.NEG_ITEM_ID))
        users, items = self.propagate()
        scores = [(users[user] * items[item]).sum(1) for item in (positive, negative)]
        ids = (self.user_embedding(user), self.item_embedding(positive), self.item_embedding(negative))
        return bpr_loss(*scores) + self.reg_weight * squared_length(*ids)
