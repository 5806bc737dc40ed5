"""MLLMRec: "Exploring the Potential of Multimodal Large Language Models in Recommender Systems" (2508.15304)."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
import torch
from recbole.data.interaction import Interaction
from scipy.sparse import csr_array
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_mm.graph import TokenOrder, refined_graph
from recbole_mm.models.mllmrec.inputs import centred, filled_in, mean_of_items, propagated
from recbole_mm.models.mllmrec.residual import Residuals
from recbole_mm.models.mllmrec.settings import SETTINGS
from recbole_mm.models.multimodal_graph import bpr_loss, light_propagation, training_pairs, user_item_adjacency
from recbole_mm.models.propagating import PropagatingRecommender
from recbole_mm.models.sparse import SparseMatrix

if TYPE_CHECKING:
    from recbole_mm.config.resolved import Config
    from recbole_mm.data.dataset import MultimodalDataset

logger = logging.getLogger(__name__)

ROWS_AT_ONCE = 65536

STATES = "states"
"""`profile_form` of hidden states in place of a text's vector."""


class MLLMRec(PropagatingRecommender):
    """Scores an item by the dot product of two towers: one reads the user's profile, one the item's text and its
    neighbours' in a refined item graph. Both read frozen sentence vectors; there is no ID embedding unless
    `user_residual` or `item_residual` ask for one.

    Needs from the dataset: `fused_vectors`, float32 (n_items, d); and with `reasoning` `profile_vectors`,
    float32 (n_users, d). A user without a profile is given the mean of its training items' vectors, as all users are
    with `reasoning: False`; one without any training item with a text keeps zeros, so that all such users rank alike,
    as do those without a state with `profile_form: states`.

    Example:
        >>> recbole_mm.run("MLLMRec", "my-data")  # doctest: +SKIP
    """

    settings = SETTINGS
    supports_ddp = True
    user_inputs: Tensor
    item_inputs: Tensor

    def __init__(self, config: Config, dataset: MultimodalDataset) -> None:
        super().__init__(config, dataset)
        users = dataset.inter_feat[self.USER_ID].numpy()
        items = dataset.inter_feat[self.ITEM_ID].numpy()
        fused = np.asarray(dataset.inputs.fused_vectors, dtype=np.float32)
        graph = self._item_graph(config, TokenOrder(dataset.item_tokens()), fused, users, items)
        self._register("item_inputs", propagated(fused, graph, config["n_layers"]))
        self._register("user_inputs", self._user_inputs(config, dataset, fused, users, items))
        width = config["embedding_size"]
        self.user_tower, self.item_tower = tower(self.user_inputs.shape[1], width), tower(fused.shape[1], width)
        pairs, shape = training_pairs(dataset), (self.n_users, self.n_items)
        kinds = config["user_residual"], config["item_residual"]
        self.residuals = Residuals(*kinds, pairs, shape, width, self.device)
        self.gcn_ui_layers: int = config["gcn_ui_layers"] if config["gcn_ui"] else 0
        if self.gcn_ui_layers:
            self.user_item_graph = user_item_adjacency(*pairs, self.n_users, self.n_items, self.device)

    @classmethod
    def requirements(cls, config: Config) -> tuple[str, ...]:
        """What the dataset must bring; without reasoning nobody writes a profile."""
        if not config["reasoning"]:
            return ("item_text_features",)
        return ("item_text_features", "user_states" if config["profile_form"] == STATES else "user_profiles")

    # ---- frozen inputs ----

    def _register(self, name: str, vectors: np.ndarray) -> None:
        """Register frozen vectors as a buffer that moves with the model and is not saved with it."""
        self.register_buffer(name, torch.from_numpy(np.ascontiguousarray(vectors, dtype=np.float32)), persistent=False)

    def _item_graph(
        self, config, order: TokenOrder, fused: np.ndarray, users: np.ndarray, items: np.ndarray
    ) -> csr_array | None:
        """S*; None where vectors are not sent through it."""
        if config["n_layers"] == 0:
            return None
        settings = {key: config[key] for key in ("similar_k", "co_k", "denoise", "co_occur", "drop_identical")}
        settings["threshold"] = config["similar_threshold"]
        graph = order.graph(lambda vectors, had: refined_graph(vectors, users, had, **settings), fused, items)
        alone = int((np.diff(graph.indptr)[1:] == 0).sum())
        logger.info("item graph: %d edges; %d of %d items have none", graph.nnz, alone, self.n_items - 1)
        return graph

    def _user_inputs(
        self, config: Config, dataset: MultimodalDataset, fused: np.ndarray, users: np.ndarray, items: np.ndarray
    ) -> np.ndarray:
        means = mean_of_items(fused, users, items, self.n_users)
        if not config["reasoning"]:
            return means
        profiles = np.asarray(dataset.inputs.profile_vectors, dtype=np.float32)
        if config["profile_form"] == STATES:
            return centred(profiles)  # of another space than the items' vectors: nothing can stand in for one
        vectors, without = filled_in(profiles, means)
        if without[1:].any():
            logger.warning(
                "%d of %d users have no profile; the mean of their training items' vectors stands in for it",
                int(without[1:].sum()),
                self.n_users - 1,
            )
        return vectors

    # ---- user and item vectors ----

    def propagate(self) -> tuple[Tensor, Tensor]:
        """h of every user (n_users, d) and every item (n_items, d), convolved over the user-item graph if asked."""
        users = self.residuals.to_users(of_all(self.user_inputs, self.user_tower))
        items = self.residuals.to_items(of_all(self.item_inputs, self.item_tower))
        if self.gcn_ui_layers:
            both = convolved(torch.cat([users, items]), self.user_item_graph, self.gcn_ui_layers)
            users, items = both.split([self.n_users, self.n_items])
        return users, items

    def calculate_loss(self, interaction: Interaction) -> Tensor:
        """BPR: -log sigmoid(h_u . h_i - h_u . h_j), averaged over the batch; j is a sampled negative.

        The inputs are frozen, so only the batch's distinct users and items go through the towers. With `gcn_ui` every
        vector depends on every other one within two steps, so all of them do, as in LightGCN.
        """
        users = interaction[self.USER_ID]
        items = torch.cat([interaction[self.ITEM_ID], interaction[self.NEG_ITEM_ID]])
        if self.gcn_ui_layers:
            user_table, item_table = self.propagate()
            h_users, h_items = F.embedding(users, user_table), F.embedding(items, item_table)
        else:
            h_users = self.residuals.to_users(vectors_of(users, self.user_inputs, self.user_tower), users)
            h_items = self.residuals.to_items(vectors_of(items, self.item_inputs, self.item_tower), items)
        positive, negative = h_items.split(len(users))
        return bpr_loss((h_users * positive).sum(-1), (h_users * negative).sum(-1))


def tower(inputs: int, width: int) -> nn.Sequential:
    """h = W2 LeakyReLU(W1 x): inputs -> 4 * width -> width."""
    first, second = nn.Linear(inputs, 4 * width), nn.Linear(4 * width, width)
    for layer in (first, second):
        nn.init.xavier_normal_(layer.weight)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(first, nn.LeakyReLU(), second)


def of_all(inputs: Tensor, layers: nn.Module) -> Tensor:
    """Output of a tower for all rows (n, d) of its inputs; some at a time, whose hidden layers are then let go."""
    return torch.cat([layers(part) for part in inputs.split(ROWS_AT_ONCE)])


def vectors_of(ids: Tensor, inputs: Tensor, layers: nn.Module) -> Tensor:
    """Output of a tower for each of `ids` (n,), computed once for each distinct one: (n, d)."""
    distinct, place = torch.unique(ids, return_inverse=True)
    return F.embedding(place, layers(inputs[distinct]))


def convolved(vectors: Tensor, graph: SparseMatrix, layers: int) -> Tensor:
    """h + sum over l = 0..layers of A^l (h / |h|): the sum of LightGCN's layers as a residual, the variant `w/ GCN_UI`.

    Args:
        vectors: h of all users, then all items (n_users + n_items, d).
        graph: A, from `user_item_adjacency`.
        layers: number of convolutions.
    """
    return vectors + (layers + 1) * light_propagation(graph, F.normalize(vectors, dim=-1), layers)
