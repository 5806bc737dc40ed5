"""What MGCN and SMORE share: a behaviour view over users and items, content views over graphs of similar items."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

import numpy as np
import torch
from recbole.data.interaction import Interaction
from scipy.sparse import csr_array
from torch import Tensor
from torch.nn import functional as F

from recbole_mm.config.kinds import above_zero, choice, layers, number, size
from recbole_mm.config.schema import Setting, section
from recbole_mm.config.settings import SETTINGS as SHARED
from recbole_mm.graph import TokenOrder, normalized
from recbole_mm.models.losses import info_nce
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
from recbole_mm.models.settings import ITEMS_AS_THEY_ARE, REFINED
from recbole_mm.models.sparse import SparseMatrix

if TYPE_CHECKING:
    from recbole_mm.config.resolved import Config
    from recbole_mm.data.dataset import MultimodalDataset

# fmt: off
SETTINGS = (
    *ITEMS_AS_THEY_ARE,
    *section("The graphs of items",
        Setting("knn_k", size(1), 10, "Neighbours of each item in each modality, itself among them. Paper: 10."),
        Setting("n_mm_layers", layers(1), 1, "Steps over them. Paper: 1."),
        Setting("item_graph", choice("own", "refined"), "own", "own: as above; refined: MLLMRec's of the same features "
            "(docs/item-graph.md)."),
        *REFINED),
    *section("The graph of users and items",
        Setting("embedding_size", size(1), 64, "Width of ID embeddings and projected features. Paper: 64."),
        Setting("n_ui_layers", layers(0), 2, "Layers of LightGCN. Paper: tuned by dataset.")),
    *section("Loss",
        Setting("cl_weight", number(0), 0.01, "lambda_C, of the contrast of content and behaviour. Paper: tuned by "
            "dataset."),
        Setting("temperature", above_zero(), 0.2, "tau of the contrast. Paper: 0.2."),
        Setting("reg_weight", number(0), 1e-4, "Of half the squared length of a pair's ID embeddings. Paper: 1e-4.")),
    *section("Training",
        SHARED["train_batch_size"].but(2048, "Training pairs per optimizer step. Paper: 2048."),
        SHARED["learning_rate"].but(1e-3, "Of Adam. Paper: 1e-3.")),
)
# fmt: on


class MultiViewRecommender(MultimodalRecommender):
    """Scores by the sum of two views of users and items: one of behaviour, one of content.

    - Behaviour: the mean over the layers of LightGCN of the ID embeddings.
    - Content: what `views` makes of items' signals, each smoothed over a graph of items, which users receive from the
      items they chose: e_u = sum over i of e_i / sqrt(d_u d_i).
    - Loss: BPR + cl_weight * (InfoNCE over users + InfoNCE over items) + reg_weight * |ID embeddings|^2 / 2, where
      InfoNCE contrasts the two views of a batch's users and of its chosen items.

    Raises:
        ConfigError: see `MultimodalRecommender`.
    """

    settings = SETTINGS
    supports_ddp = True

    def __init__(self, config: Config, dataset: MultimodalDataset) -> None:
        super().__init__(config, dataset)
        self.width: int = config["embedding_size"]
        self.n_ui_layers, self.n_mm_layers = config["n_ui_layers"], config["n_mm_layers"]
        self.cl_weight, self.temperature = config["cl_weight"], config["temperature"]
        self.reg_weight: float = config["reg_weight"]
        users, items = training_pairs(dataset)
        self.adjacency = user_item_adjacency(users, items, self.n_users, self.n_items, self.device)
        k = config["knn_k"]

        def own(vectors: np.ndarray) -> csr_array:
            """Build the paper's graph of one modality: D^-1/2 S D^-1/2 of the k largest cosines S of each item."""
            return normalized(nearest(vectors, k))

        order = TokenOrder(dataset.item_tokens())
        graphs = self.all_graphs(read_item_graphs(config, order, self.features(), users, items, own))
        self.item_graphs = [SparseMatrix.of(graph, self.device) for graph in graphs]
        self.user_embedding = embedding_table(self.n_users, self.width)
        self.item_embedding = embedding_table(self.n_items, self.width)

    def all_graphs(self, graphs: list[csr_array]) -> list[csr_array]:
        """The graphs of items that the model smooths over, from those of each modality."""
        return graphs

    def behaviour(self) -> Tensor:
        """LightGCN of the ID embeddings of all users, then all items: (n_users + n_items, d)."""
        start = torch.cat([self.user_embedding.weight, self.item_embedding.weight])
        return light_propagation(self.adjacency, start, self.n_ui_layers)

    def smoothed(self, items: Tensor, graph: SparseMatrix) -> Tensor:
        """Signals of items (n_items, d) over a graph of items, and what users receive: (n_users + n_items, d)."""
        for _ in range(self.n_mm_layers):
            items = graph @ items
        users = (self.adjacency @ F.pad(items, (0, 0, self.n_users, 0)))[: self.n_users]
        return torch.cat([users, items])

    @abstractmethod
    def views(self) -> tuple[Tensor, Tensor]:
        """Behaviour and content of all users, then all items, (n_users + n_items, d) each."""

    def propagate(self) -> tuple[Tensor, Tensor]:
        """Return the sums of both views of all users and items, whose dot product is the score."""
        behaviour, content = self.views()
        users, items = (behaviour + content).split([self.n_users, self.n_items])
        return users, items

    def calculate_loss(self, interaction: Interaction) -> Tensor:
        """BPR + cl_weight * InfoNCE + reg_weight * |ID embeddings|^2 / 2, averaged over the batch."""
        user, positive, negative = (interaction[name] for name in (self.USER_ID, self.ITEM_ID, self.NEG_ITEM_ID))
        behaviour, content = self.views()
        users, items = (behaviour + content).split([self.n_users, self.n_items])
        own = users[user]
        loss = bpr_loss((own * items[positive]).sum(1), (own * items[negative]).sum(1))
        if self.cl_weight:
            for nodes, ids in ((user, user), (self.n_users + positive, positive)):
                contrast = info_nce(content[nodes], behaviour[nodes], ids, self.temperature)
                loss = loss + self.cl_weight * contrast
        of_items = self.item_embedding(positive), self.item_embedding(negative)
        return loss + self.reg_weight * squared_length(self.user_embedding(user), *of_items)
