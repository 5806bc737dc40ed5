"""BM3: Bootstrap Latent Representations for Multi-modal Recommendation (Zhou et al., WWW 2023, arXiv 2207.05969)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from recbole.data.interaction import Interaction
from recbole.utils import InputType
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_mm.config.kinds import layers, number, size
from recbole_mm.config.schema import Setting, section
from recbole_mm.config.settings import SETTINGS as SHARED
from recbole_mm.errors import ConfigError
from recbole_mm.models.layers import linear
from recbole_mm.models.multimodal_graph import (
    MultimodalRecommender,
    embedding_table,
    light_propagation,
    mean_where,
    training_pairs,
    user_item_adjacency,
)
from recbole_mm.models.settings import ITEMS_AS_THEY_ARE

if TYPE_CHECKING:
    from recbole_mm.config.resolved import Config
    from recbole_mm.data.dataset import MultimodalDataset

# fmt: off
SETTINGS = (
    *ITEMS_AS_THEY_ARE,
    *section("Model",
        Setting("embedding_size", size(1), 64, "Width of ID embeddings and projected features. Paper: 64."),
        Setting("n_layers", layers(0), 1, "Layers of LightGCN; 0: none. Paper: 1 or 2 by dataset."),
        Setting("dropout", number(0, 1, below=True), 0.5, "Share of a vector that its contrastive view lacks, below 1. "
            "Paper: 0.3 or 0.5 by dataset.")),
    *section("Loss",
        Setting("cl_weight", number(0), 2.0, "Of the features' losses; 0: ID embeddings alone. Paper: 1 in the "
            "formula, 2 in its settings."),
        Setting("reg_weight", number(0), 1e-3, "lambda, of the squared length of a pair's vectors. Paper: 0.1 or 0.01 "
            "by dataset (docs/bm3.md).")),
    *section("Training",
        SHARED["train_batch_size"].but(2048, "Training pairs per optimizer step, each of which propagates the whole "
            "graph. Not stated."),
        SHARED["learning_rate"].but(1e-3, "Of Adam. Paper: 1e-3."),
        SHARED["train_neg_sample_args"].but(None, "No negatives; nothing else is accepted.")),
)
# fmt: on


class BM3(MultimodalRecommender):
    """LightGCN whose user, item and modality vectors are pulled together by cosine alone; it draws no negatives.

    Needs from the dataset: `item_feature(name)`, float32 (n_items, d_m), for each name in `content_features`. Batches
    hold positive pairs only.

    Raises:
        ConfigError: a feature that is not there, settings out of range, or negatives asked for in
            `train_neg_sample_args`: their rows would be trained on as if they had been chosen.

    Example:
        >>> recbole_mm.run("BM3", "my-data", config_dict={"content_features": ["image", "text"]})  # doctest: +SKIP
    """

    settings = SETTINGS
    input_type = InputType.POINTWISE
    supports_ddp = True

    def __init__(self, config: Config, dataset: MultimodalDataset) -> None:
        super().__init__(config, dataset)
        if config["train_neg_sample_args"]["distribution"] != "none":
            raise ConfigError("BM3 learns from chosen items alone; set train_neg_sample_args to null (~)")
        width = config["embedding_size"]
        self.n_layers = config["n_layers"]
        self.dropout = config["dropout"]
        self.reg_weight = config["reg_weight"]
        self.cl_weight = config["cl_weight"]
        self.adjacency = user_item_adjacency(
            *training_pairs(dataset), n_users=self.n_users, n_items=self.n_items, device=self.device
        )
        self.user_embedding = embedding_table(self.n_users, width)
        self.item_embedding = embedding_table(self.n_items, width)
        self.projections = nn.ModuleList(linear(feature.shape[1], width) for feature in self.features())
        self.predictor = linear(width, width)

    def latent(self) -> tuple[Tensor, Tensor]:
        """h_u (n_users, d) and h_i (n_items, d): the mean over layers of LightGCN, items with a residual (Sec. 3.1)."""
        start = torch.cat([self.user_embedding.weight, self.item_embedding.weight])
        users, items = light_propagation(self.adjacency, start, self.n_layers).split([self.n_users, self.n_items])
        return users, items + self.item_embedding.weight

    def propagate(self) -> tuple[Tensor, Tensor]:
        """Return the predictor's outputs of all users and items, whose dot product is the score (Sec. 3.3)."""
        users, items = self.latent()
        return self.predictor(users), self.predictor(items)

    def calculate_loss(self, interaction: Interaction) -> Tensor:
        """L_rec + cl_weight * (L_align + L_mask) + reg_weight * (|h_u|^2 + |h_i|^2), averaged over the pairs of the
        batch; the two in brackets are summed over modalities (Sec. 3.2)."""
        item_ids = interaction[self.ITEM_ID]
        all_users, all_items = self.latent()
        users, items = all_users[interaction[self.USER_ID]], all_items[item_ids]
        user_view, item_view = self.view(users), self.view(items)
        loss = distance(self.predictor(users), item_view).mean() + distance(self.predictor(items), user_view).mean()
        loss = loss + self.reg_weight * (users.square().sum(1) + items.square().sum(1)).mean()
        if self.cl_weight == 0:
            return loss
        for place, projection in enumerate(self.projections):
            feature = self.feature(place)[item_ids]
            known = self.has_feature(place)[item_ids]
            modality = projection(feature)
            predicted = self.predictor(modality)
            distances = distance(predicted, item_view) + distance(predicted, self.view(modality))
            # An item without that modality has nothing to align: its projection is the bias, alike for all of them.
            loss = loss + self.cl_weight * mean_where(distances, known)
        return loss

    def view(self, vectors: Tensor) -> Tensor:
        """The contrastive view of `vectors` (B, d): a part of their entries dropped, without gradient (Sec. 3.2.1)."""
        return F.dropout(vectors.detach(), self.dropout, self.training)


def distance(predicted: Tensor, target: Tensor) -> Tensor:
    """Return 1 - cosine of the rows of two batches (B, d): (B,). The paper's C lacks the 1, which has no gradient."""
    return 1 - F.cosine_similarity(predicted, target, dim=-1)
