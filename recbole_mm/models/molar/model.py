"""Molar: "Multimodal LLMs with Collaborative Filtering Alignment for Enhanced Sequential Recommendation"
(2412.18176)."""

from __future__ import annotations

from typing import Any

import torch
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import InputType
from torch import Tensor, nn

from recbole_mm.data.loaders import NEGATIVES, TARGET_MASK, TARGETS
from recbole_mm.errors import ConfigError
from recbole_mm.models.layers import standardise
from recbole_mm.models.losses import alignment_loss, pointwise_loss, sampled_softmax_loss, softmax_loss
from recbole_mm.models.molar.dueg import TextStackDUEG
from recbole_mm.models.molar.id_model import build_id_model

CHOICES = {
    "rec_loss": ("bce", "ce", "sampled_softmax"),
    "score": ("content", "id", "fused"),
    "item_projection": ("linear", "mlp", "none"),
    "item_normalization": ("standard", "none"),
    "dueg_tuning": ("full", "frozen"),
}


class Molar(SequentialRecommender):
    """Item vectors of the MLLM (MIRM), read by its decoder (DUEG), aligned with an ID model after both have read them.

    L = L_rec + alpha * L_align + id_loss_weight * L_id (Eq. 5; the last term is ours: an ID model that is trained along
    needs a loss of its own before it is worth aligning with, and the paper does not say how its one was trained).

    Needs from the dataset: `item_vectors`, float32 (n_items, h), the MIRM vectors of Eq. (1); `mllm`, whose
    `text_stack()` and `hidden_size` h become the DUEG.

    Raises:
        ConfigError: a key of `CHOICES` has another value, or the score needs an ID model that is not there.
    """

    input_type = InputType.POINTWISE
    trains_on_full_sequences = True
    requires = ("item_vectors", "mllm")
    mirm_vectors: Tensor
    id_model: Any

    def __init__(self, config, dataset) -> None:
        super().__init__(config, dataset)
        for key, accepted in CHOICES.items():
            if config[key] not in accepted:
                raise ConfigError(f"{key} must be one of {', '.join(accepted)}, not {config[key]!r}")
        self.rec_loss: str = config["rec_loss"]
        self.score: str = config["score"]
        self.alpha: float = config["alpha"]
        self.tau: float = config["tau"]
        self.comparative_instances: int | None = config["comparative_instances"]
        self.id_loss_weight: float = config["id_loss_weight"]
        self.shared_negatives: int = config["shared_negatives"]

        hidden = dataset.mllm.hidden_size
        vectors = torch.as_tensor(dataset.item_vectors, dtype=torch.float32)
        if config["item_normalization"] == "standard":
            vectors = standardise(vectors)
        self.register_buffer("mirm_vectors", vectors, persistent=False)
        self.item_projection = build_projection(config["item_projection"], hidden)
        self.dropout = nn.Dropout(config["embedding_dropout"])
        self.dueg = TextStackDUEG(dataset.mllm.text_stack(), hidden, trainable=config["dueg_tuning"] == "full")
        self.scale = hidden**-0.5
        self.id_model = build_id_model(config, dataset, hidden)
        if self.id_model is None and (self.score != "content" or self.alpha):
            raise ConfigError("id_model: none leaves nothing to align or fuse with: set alpha: 0 and score: content")

    @classmethod
    def wants_negatives(cls, config) -> bool:
        """Whether training batches must hold a negative for each target (Appendix B: 1:1)."""
        return config["rec_loss"] == "bce"

    # ------------------------------------------------------------- training

    def calculate_loss(self, interaction: Interaction) -> tuple[Tensor, ...]:
        """(L_rec, alpha * L_align, id_loss_weight * L_id), each averaged over the targets of the batch."""
        mask = interaction[TARGET_MASK]
        history = interaction[self.ITEM_SEQ]
        targets = interaction[TARGETS][mask]
        states = self.dueg.all_prefixes(self.dropout(self.content_items(history)))[mask] * self.scale
        losses = [self._recommendation_loss(states, targets, interaction, mask)]
        if self.id_model is not None:
            id_states = self.id_model.hidden_states(history, interaction[self.ITEM_SEQ_LEN])[mask]
            if self.alpha:
                owners = torch.arange(len(history), device=history.device)[:, None].expand_as(mask)[mask]
                losses.append(
                    self.alpha * alignment_loss(states, id_states, owners, self.tau, self.comparative_instances)
                )
            if self.id_loss_weight:
                id_loss = softmax_loss(id_states, targets, self.id_model.item_embedding.weight)
                losses.append(self.id_loss_weight * id_loss)
        return tuple(losses)

    def _recommendation_loss(self, states: Tensor, targets: Tensor, interaction: Interaction, mask: Tensor) -> Tensor:
        if self.rec_loss == "ce":
            return softmax_loss(states, targets, self.content_items())
        if self.rec_loss == "sampled_softmax":
            drawn = torch.randint(1, self.n_items, (self.shared_negatives,), device=states.device)
            return sampled_softmax_loss(
                states, self.content_items(targets), self.content_items(drawn), drawn[None, :] == targets[:, None]
            )
        negatives = interaction[NEGATIVES][mask]
        positive = (states * self.content_items(targets)).sum(-1)
        return pointwise_loss(positive, (states * self.content_items(negatives)).sum(-1))

    # -------------------------------------------------------------- scoring

    def content_items(self, ids: Tensor | None = None) -> Tensor:
        """Projected MIRM vectors: of the items `ids` (any shape) -> (..., h), or of all items (n_items, h)."""
        return self.item_projection(self.mirm_vectors if ids is None else self.mirm_vectors[ids])

    def item_vectors(self) -> Tensor:
        """What users are scored against (n_items, h or 2h)."""
        parts = []
        if self.score != "id":
            parts.append(self.content_items())
        if self.score != "content":
            parts.append(self.id_model.item_embedding.weight)
        return torch.cat(parts, dim=1)

    def user_vectors(self, interaction: Interaction) -> Tensor:
        """E_u of each history (B, h), the ID model's state, or both side by side (B, 2h): the dot product adds
        scores."""
        history, lengths = interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN]
        parts = []
        if self.score != "id":
            parts.append(self.dueg.whole(self.content_items(history), lengths) * self.scale)
        if self.score != "content":
            parts.append(self.id_model(history, lengths))
        return torch.cat(parts, dim=1)

    def predict(self, interaction: Interaction) -> Tensor:
        """Score of each row's own item (B,)."""
        return (self.user_vectors(interaction) * self.item_vectors()[interaction[self.ITEM_ID]]).sum(-1)

    def full_sort_predict(self, interaction: Interaction) -> Tensor:
        """Scores of all items (B, n_items)."""
        return self.user_vectors(interaction) @ self.item_vectors().T


def build_projection(kind: str, hidden: int) -> nn.Module:
    """Trainable map from the frozen MIRM vectors to the space the DUEG reads and scores in."""
    if kind == "linear":
        return nn.Linear(hidden, hidden)
    if kind == "mlp":
        return nn.Sequential(nn.Linear(hidden, 2 * hidden), nn.GELU(), nn.Linear(2 * hidden, hidden))
    return nn.Identity()
