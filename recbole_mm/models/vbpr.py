"""VBPR: Visual Bayesian Personalized Ranking from Implicit Feedback (AAAI 2016, arXiv 1510.01784)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from recbole.data.interaction import Interaction
from torch import Tensor, nn

from recbole_mm.config.kinds import choice, number, size
from recbole_mm.config.schema import Setting, section
from recbole_mm.config.settings import SETTINGS as SHARED
from recbole_mm.models.layers import ModalityDropout
from recbole_mm.models.multimodal_graph import MultimodalRecommender, bpr_loss, embedding_table, squared_length
from recbole_mm.models.settings import AN_ITEM, ITEM_CONTENT, MODALITY_DROPOUT

if TYPE_CHECKING:
    from recbole_mm.config.resolved import Config
    from recbole_mm.data.dataset import MultimodalDataset

# fmt: off
SETTINGS = (
    *section(AN_ITEM,
        *ITEM_CONTENT,
        Setting("feature_normalization", choice("none", "l2", "standard"), "standard", "standard: zero mean, unit "
            "spread over items, divided by the root of the width; l2: length 1; none: as they are. Paper: 4096 "
            "activations of an AlexNet-like network, no normalisation stated."),
        MODALITY_DROPOUT),
    *section("Model",
        Setting("embedding_size", size(1), 64, "K, width of gamma. Paper: 10."),
        Setting("content_embedding_size", size(1), 64, "D, width of theta and of the projected features. Paper: 10."),
        Setting("reg_weight", number(0), 0.01, "Of half the squared length of gamma, theta and beta_i, per pair. "
            "Paper: tuned per dataset."),
        Setting("content_reg_weight", number(0), 0.0, "Of half the squared length of E and beta'. Paper: 0.")),
    *section("Training",
        SHARED["train_batch_size"].but(2048, "Training pairs per optimizer step. Paper: 1, plain stochastic "
            "gradient."),
        SHARED["learning_rate"].but(1e-3, "Of Adam. Not stated.")),
)
# fmt: on


class VBPR(MultimodalRecommender):
    """Matrix factorisation with a second user vector for the items' content (Eq. 4).

    x_ui = alpha + beta_u + beta_i + gamma_u . gamma_i + theta_u . (E f_i) + beta' . f_i

    f_i are the features of `content_features` side by side. alpha and beta_u are the same for all items of a user: they
    cancel in every comparison of two items, in the loss as in the ranking, and are left out.

    Raises:
        ConfigError: see `MultimodalRecommender`; or a size or weight that is impossible.

    Example:
        >>> recbole_mm.run("VBPR", "my-data", config_dict={"content_features": ["image", "text"]})  # doctest: +SKIP
    """

    settings = SETTINGS
    supports_ddp = True

    def __init__(self, config: Config, dataset: MultimodalDataset) -> None:
        super().__init__(config, dataset)
        width, content_width = config["embedding_size"], config["content_embedding_size"]
        self.reg_weight = config["reg_weight"]
        self.content_reg_weight = config["content_reg_weight"]
        self.modality_dropout = ModalityDropout(config["modality_dropout"])
        feature_width = sum(feature.shape[1] for feature in self.features())
        self.user_embedding = embedding_table(self.n_users, width)  # gamma_u
        self.item_embedding = embedding_table(self.n_items, width)  # gamma_i
        self.user_content = embedding_table(self.n_users, content_width)  # theta_u
        self.projection = nn.Linear(feature_width, content_width, bias=False)  # E
        nn.init.xavier_uniform_(self.projection.weight)
        self.item_bias = nn.Parameter(torch.zeros(self.n_items))  # beta_i
        self.content_bias = nn.Parameter(torch.zeros(feature_width))  # beta'

    def propagate(self) -> tuple[Tensor, Tensor]:
        """Return the vectors of all users and items, whose dot product is the score."""
        users = torch.cat([self.user_embedding.weight, self.user_content.weight], dim=1)
        items = self._item_parts(torch.arange(self.n_items, device=self.item_bias.device))
        # The item's biases become one more dimension, against the 1 of every user.
        return torch.cat([users, users.new_ones(len(users), 1)], dim=1), torch.cat([*items[:2], items[2][:, None]], 1)

    def calculate_loss(self, interaction: Interaction) -> Tensor:
        """BPR (Eq. 8), with the squared length of what the batch uses as regularisation."""
        user = interaction[self.USER_ID]
        gamma, theta = self.user_embedding(user), self.user_content(user)
        scores, regularised = [], [gamma, theta]
        for field in (self.ITEM_ID, self.NEG_ITEM_ID):
            latent, content, bias = self._item_parts(interaction[field])
            scores.append((gamma * latent).sum(1) + (theta * content).sum(1) + bias)
            regularised += [latent, self.item_bias[interaction[field]][:, None]]
        of_content = self.projection.weight.square().sum() + self.content_bias.square().sum()
        regularisation = self.reg_weight * squared_length(*regularised) + self.content_reg_weight * of_content / 2
        return bpr_loss(*scores) + regularisation

    def _item_parts(self, items: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """gamma_i (B, K), E f_i (B, D) and beta_i + beta' . f_i (B,) of items (B,)."""
        features = torch.cat([self.modality_dropout(feature[items]) for feature in self.features()], dim=1)
        bias = self.item_bias[items] + features @ self.content_bias
        return self.item_embedding(items), self.projection(features), bias
