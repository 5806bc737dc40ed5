"""FREEDOM: A Tale of Two Graphs: Freezing and Denoising Graph Structures for Multimodal Recommendation (ACM MM 2023,
arXiv 2211.06924)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from recbole.data.interaction import Interaction
from scipy.sparse import csr_array, diags_array
from torch import Tensor, nn

from recbole_mm.config.kinds import choice, is_list_of, is_number, layers, list_of, number, size
from recbole_mm.config.schema import Setting, section
from recbole_mm.config.settings import SETTINGS as SHARED
from recbole_mm.errors import ConfigError
from recbole_mm.graph import TokenOrder, normalized
from recbole_mm.models.layers import ModalityDropout
from recbole_mm.models.multimodal_graph import (
    MultimodalRecommender,
    bpr_loss,
    degrees,
    embedding_table,
    light_propagation,
    nearest,
    read_item_graphs,
    training_pairs,
    user_item_adjacency,
)
from recbole_mm.models.propagating import Kept
from recbole_mm.models.settings import AN_ITEM, ITEM_CONTENT, MODALITY_DROPOUT, REFINED
from recbole_mm.models.sparse import SparseMatrix

if TYPE_CHECKING:
    from recbole_mm.config.resolved import Config
    from recbole_mm.data.dataset import MultimodalDataset

_WEIGHTS = replace(
    list_of(lambda weight: is_number(weight, 0), "numbers of at least 0 whose sum is 1", "list of float"),
    accepts=lambda value: (
        is_list_of(value, lambda weight: is_number(weight, 0)) and math.isclose(sum(value), 1.0, abs_tol=1e-4)
    ),
)

# fmt: off
SETTINGS = (
    *section(AN_ITEM,
        *ITEM_CONTENT,
        Setting("feature_normalization", choice("none", "l2", "standard"), "none", "none: as they are, as in the "
            "paper; l2: length 1, which leaves the graph of items as it is; standard: zero mean, unit spread over "
            "items, divided by the root of the width."),
        MODALITY_DROPOUT),
    *section("The graph of items, frozen",
        Setting("modality_weights", _WEIGHTS, [0.1, 0.9], "Share of each of content_features in it, of sum 1; one "
            "feature has all. Paper: 0.1 for images, 0.9 for text."),
        Setting("knn_k", size(1), 10, "Neighbours of each item in each modality, itself among them. Paper: 10."),
        Setting("n_mm_layers", layers(1), 1, "Steps over it. Paper: 1."),
        Setting("item_graph", choice("own", "refined"), "own", "own: as above; refined: MLLMRec's of the same features "
            "(docs/freedom.md)."),
        *REFINED),
    *section("The graph of users and items",
        Setting("dropout", number(0, 1, below=True), 0.8, "Share of its edges left out of each training epoch, "
            "below 1; 0: none. Paper: 0.8 or 0.9."),
        Setting("embedding_size", size(1), 64, "Width of ID embeddings and projected features. Paper: 64."),
        Setting("n_ui_layers", layers(0), 2, "Layers of LightGCN. Paper: 2."),
        Setting("reg_weight", number(0), 1e-3, "lambda, of the loss of projected features. Paper: tuned, 1e-3 among "
            "them.")),
    *section("Training",
        SHARED["train_batch_size"].but(2048, "Training pairs per optimizer step. Paper: 2048."),
        SHARED["learning_rate"].but(1e-3, "Of Adam. Paper: 1e-3.")),
)
# fmt: on


class FREEDOM(MultimodalRecommender):
    """LightGCN over a user-item graph that is pruned anew for every epoch, plus a frozen graph of similar items.

    - Item graph: S = sum over modalities m of w_m S^m; S^m has weight 1 from each item to its k most similar ones by
      the features of m, normalised symmetrically. An item's part in it is S^L of the ID embeddings (L: `n_mm_layers`).
    - User-item graph: of all |E| training edges, ceil((1 - dropout) |E|) are drawn without replacement with
      probabilities in proportion to 1 / sqrt(d_u d_i), so that edges of popular nodes go first, and are normalised
      among themselves. Evaluation uses all edges.
    - `modality_dropout` leaves modalities of items out of the last sum, drawn for each pair, and edges of items out of
      S^m, drawn for each epoch.
    - Vectors: u from LightGCN alone, i from LightGCN plus the item graph.
    - Loss: BPR(u, i) + reg_weight * sum over m of BPR(u, W_m f_i^m + b_m), the latter over pairs that both have m.

    Raises:
        ConfigError: see `MultimodalRecommender`; or a size, weight, ratio or `item_graph` that is impossible.

    Example:
        >>> recbole_mm.run("FREEDOM", "my-data", config_dict={"content_features": ["image", "text"]})  # doctest: +SKIP
    """

    settings = SETTINGS
    supports_ddp = True

    def __init__(self, config: Config, dataset: MultimodalDataset) -> None:
        super().__init__(config, dataset)
        width = config["embedding_size"]
        self.n_ui_layers, self.n_mm_layers = config["n_ui_layers"], config["n_mm_layers"]
        self.reg_weight = config["reg_weight"]
        self.dropout = config["dropout"]
        self.users, self.items = training_pairs(dataset)
        self.adjacency = self._adjacency(self.users, self.items)
        self.modality_dropout = ModalityDropout(config["modality_dropout"])
        self.modality_graphs = self._modality_graphs(config, TokenOrder(dataset.item_tokens()))
        self.item_graph = self._mixed(self.modality_graphs)
        self.user_embedding = embedding_table(self.n_users, width)
        self.item_embedding = embedding_table(self.n_items, width)
        self.projections = nn.ModuleList(nn.Linear(feature.shape[1], width) for feature in self.features())
        self._pruned, self._thinned = Kept(), Kept()

    def _modality_graphs(self, config: Config, order: TokenOrder) -> list[csr_array]:
        """Build w_m S^m of each modality."""
        k = config["knn_k"]
        weights = [1.0] if self.feature_count == 1 else config["modality_weights"]
        if len(weights) != self.feature_count:
            raise ConfigError(
                f"modality_weights must list {self.feature_count} numbers, one for each of content_features, "
                f"not {weights!r}"
            )

        def own(vectors: np.ndarray) -> csr_array:
            """Build FREEDOM's frozen graph of one modality."""
            return normalized(nearest(vectors, k, binary=True))

        graphs = read_item_graphs(config, order, self.features(), self.users, self.items, own)
        return [weight * graph for weight, graph in zip(weights, graphs)]

    def _mixed(self, graphs: Sequence[csr_array]) -> SparseMatrix:
        return SparseMatrix.of(sum(graphs, start=csr_array(graphs[0].shape)), self.device)

    def _adjacency(self, users: Tensor, items: Tensor) -> SparseMatrix:
        return user_item_adjacency(users, items, self.n_users, self.n_items, self.device)

    def start_epoch(self, epoch: int) -> None:
        """Prune both graphs for this epoch, by torch's generator, whose state checkpoints keep."""
        self._pruned.value = self.pruned() if self.dropout else self.adjacency
        self._thinned.value = self.thinned() if self.modality_dropout.rate else self.item_graph

    def thinned(self) -> SparseMatrix:
        """The item graph without the edges that newly drawn items have by a modality, drawn for each modality."""
        draws = (torch.rand(self.n_items) >= self.modality_dropout.rate for _ in self.modality_graphs)
        kept = (diags_array(draw.float().numpy()) for draw in draws)
        return self._mixed([csr_array(keep @ graph @ keep) for keep, graph in zip(kept, self.modality_graphs)])

    def pruned(self) -> SparseMatrix:
        """A newly drawn part of the user-item graph, normalised by the degrees that are left."""
        kept = self.draw_edges().sort().values
        return self._adjacency(self.users[kept], self.items[kept])

    def draw_edges(self) -> Tensor:
        """Places of the edges to keep, int64, in no order.

        Drawing one edge after the other in proportion to p is the same as giving each a waiting time of rate p and
        taking the shortest. That needs one number per edge, where `torch.multinomial` refuses more than 2^24 edges.
        """
        rate = (degrees(self.users, self.n_users)[self.users] * degrees(self.items, self.n_items)[self.items]).rsqrt()
        waiting = torch.empty_like(rate).exponential_() / rate
        count = math.ceil(round((1 - self.dropout) * len(rate), 6))  # (1 - 0.7) * 440 is a little more than 132
        return waiting.topk(max(count, 1), largest=False).indices

    def propagate(self) -> tuple[Tensor, Tensor]:
        """Return the vectors of all users and items, whose dot product is the score."""
        if self.training and self._pruned.value is None:
            self.start_epoch(0)
        adjacency = self._pruned.value if self.training else self.adjacency
        vectors = torch.cat([self.user_embedding.weight, self.item_embedding.weight])
        users, items = light_propagation(adjacency, vectors, self.n_ui_layers).split([self.n_users, self.n_items])
        similar, item_graph = self.item_embedding.weight, self._thinned.value if self.training else self.item_graph
        for _ in range(self.n_mm_layers):
            similar = item_graph @ similar
        return users, items + similar

    def calculate_loss(self, interaction: Interaction) -> Tensor:
        """BPR of the vectors, and of the projected features instead of the items' vectors."""
        positive, negative = interaction[self.ITEM_ID], interaction[self.NEG_ITEM_ID]
        users, items = self.propagate()
        user = users[interaction[self.USER_ID]]
        loss = bpr_loss((user * items[positive]).sum(1), (user * items[negative]).sum(1))
        for place, projection in enumerate(self.projections):
            feature = self.feature(place)
            good, bad = ((user * projection(feature[item])).sum(1) for item in (positive, negative))
            has = self.has_feature(place)[:, None]
            present = (self.modality_dropout(has[positive]) & self.modality_dropout(has[negative])).squeeze(1)
            loss = loss + self.reg_weight * bpr_loss(good, bad, present)
        return loss
