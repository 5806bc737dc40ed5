"""LATTICE: Mining Latent Structures for Multimedia Recommendation (ACM MM 2021, arXiv 2104.09036)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from recbole.data.interaction import Interaction
from scipy.sparse import csr_array
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_mm.graph import TokenOrder, normalized
from recbole_mm.models.checks import read_choice, read_number, read_whole
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
from recbole_mm.models.sparse import SparseMatrix

if TYPE_CHECKING:
    from recbole_mm.config.resolved import Config
    from recbole_mm.data.dataset import MultimodalDataset

BACKBONES = ("lightgcn", "mf")
GRADIENTS = ("every_batch", "first_batch")


Part = tuple[Tensor, SparseMatrix, Tensor]
"""A share of the item graph: its weight, its edges, and the weights (E,) of those."""


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

    supports_ddp = True

    def __init__(self, config: Config, dataset: MultimodalDataset) -> None:
        super().__init__(config, dataset)
        width, feature_width = read_whole(config, "embedding_size", 1), read_whole(config, "feature_embedding_size", 1)
        self.backbone = read_choice(config, "backbone", BACKBONES)
        self.frozen_after_first = read_choice(config, "graph_gradients", GRADIENTS) == "first_batch"
        self.n_ui_layers, self.n_mm_layers = read_whole(config, "n_ui_layers", 0), read_whole(config, "n_mm_layers", 1)
        self.k = read_whole(config, "knn_k", 1)
        self.initial_weight = read_number(config, "lambda_coeff", 0, 1)
        self.reg_weight = read_number(config, "reg_weight")
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
