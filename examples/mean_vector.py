"""MeanVector: ranks items by how well their vector agrees with the mean of the history's vectors."""

from __future__ import annotations

from typing import Any

import torch
from recbole.data.interaction import Interaction
from recbole.utils import InputType
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_mm.config.kinds import size
from recbole_mm.config.schema import Setting, section
from recbole_mm.config.settings import SETTINGS
from recbole_mm.models.base import SequentialModel
from recbole_mm.models.layers import standardise


class MeanVector(SequentialModel):
    """Scores an item by the dot product of its projected vector and the mean of those of the history.

    Reads `dataset.inputs.item_vectors`, float32 (n_items, h).
    """

    settings = (
        *section(
            "What an item is",
            SETTINGS["mllm"].but("tiny", "The multimodal LLM that makes the item vectors."),
        ),
        *section("Model", Setting("embedding_size", size(1), 64, "Width of the projected vectors.")),
        *section(
            "Training",
            SETTINGS["MAX_ITEM_LIST_LENGTH"].but(50, "History length."),
            SETTINGS["train_batch_size"].but(2048, "Histories per optimizer step."),
            SETTINGS["learning_rate"].but(1e-3, "Of Adam."),
            SETTINGS["train_neg_sample_args"].but(None, "The loss is over all items: no negatives are drawn."),
        ),
    )
    input_type = InputType.POINTWISE
    requires = ("item_vectors",)  # computed before the model is built
    ignores_right_padding = True
    supports_ddp = True
    vectors: Tensor

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        vectors = standardise(torch.as_tensor(dataset.inputs.item_vectors))
        self.register_buffer("vectors", vectors, persistent=False)  # frozen, so not saved with the weights
        self.projection = nn.Linear(vectors.shape[1], config["embedding_size"])

    def item_vectors(self) -> Tensor:
        """(n_items, d)."""
        return self.projection(self.vectors)

    def user_vectors(self, interaction: Interaction) -> Tensor:
        """(B, d): means over the items of each history; id 0 is padding."""
        history = interaction[self.ITEM_SEQ]
        there = (history > 0).unsqueeze(-1)
        return (self.item_vectors()[history] * there).sum(1) / there.sum(1)

    def calculate_loss(self, interaction: Interaction) -> Tensor:
        """Cross-entropy of the next item over all items, a mean over the batch."""
        return F.cross_entropy(self.full_sort_predict(interaction), interaction[self.POS_ITEM_ID])

    def predict(self, interaction: Interaction) -> Tensor:
        """Score of each row's own item (B,)."""
        return (self.user_vectors(interaction) * self.item_vectors()[interaction[self.ITEM_ID]]).sum(-1)

    def full_sort_predict(self, interaction: Interaction) -> Tensor:
        """Scores of all items (B, n_items)."""
        return self.user_vectors(interaction) @ self.item_vectors().T
