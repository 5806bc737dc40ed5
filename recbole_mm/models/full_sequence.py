"""Full-sequence training for causal models, RecBole's and ours: `full_sequence: True`.

A causal model computes the state after every prefix of a sequence in one pass. RecBole's classes keep only the last
one; `hooks.full_sequence_class` derives a class that keeps them all while training and leaves prediction as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.model.loss import BPRLoss
from torch import Tensor

from recbole_mm.data.loaders import NEGATIVES, TARGET_MASK, TARGETS
from recbole_mm.errors import ConfigError
from recbole_mm.models.cross_entropy import linear_cross_entropy

if TYPE_CHECKING:
    from recbole_mm.config.resolved import Config
    from recbole_mm.data.dataset import MultimodalDataset


class Overlay:
    """A config with some keys replaced, as RecBole's model classes read it: `config[key]`, None where unknown.

    Example:
        >>> Overlay({"hidden_size": 64}, {"hidden_size": 16})["hidden_size"]
        16
    """

    def __init__(self, config: Config, replaced: Mapping[str, Any]) -> None:
        self.config = config
        self.replaced = dict(replaced)

    def __getitem__(self, key: str) -> Any:
        return self.replaced[key] if key in self.replaced else self.config[key]


class FullSequenceMixin(SequentialRecommender):
    """Trains on every position of `item_id_list`; mixed in front of a model whose `forward` is causal, ends in
    `gather_indexes`, and has `item_embedding` as output weights."""

    trains_on_full_sequences = True
    supports_ddp = True
    _keep_all_positions = False

    @classmethod
    def wants_negatives(cls, config: Config) -> bool:
        """Return whether training batches must hold a negative for each target."""
        return config["loss_type"] == "BPR"

    def gather_indexes(self, output: Tensor, gather_index: Tensor) -> Tensor:
        """Return the state at one position, as RecBole does; while training, all states."""
        return output if self._keep_all_positions else super().gather_indexes(output, gather_index)

    def hidden_states(self, item_seq: Tensor, item_seq_len: Tensor) -> Tensor:
        """Return the state after every prefix: item ids (B, W) and lengths (B,) -> (B, W, d)."""
        self._keep_all_positions = True
        try:
            return self.forward(item_seq, item_seq_len)
        finally:
            self._keep_all_positions = False

    def prefix_states(self, interaction: Interaction) -> Tensor:
        """Return the state after every prefix of the histories of a batch: (B, W, d)."""
        return self.hidden_states(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN])

    def whole_states(self, interaction: Interaction) -> Tensor:
        """Return the state after the whole histories of a batch: (B, d)."""
        return self.forward(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN])

    def output_items(self) -> Tensor:
        """Return the vectors (n_items, d) that states are scored against."""
        return self.item_embedding.weight

    def calculate_loss(self, interaction: Interaction) -> Tensor | tuple[Tensor, ...]:
        """Return the model's own loss, averaged over all targets of the batch."""
        return self.loss_of_states(self.prefix_states(interaction)[interaction[TARGET_MASK]], interaction)

    def loss_of_states(self, states: Tensor, interaction: Interaction) -> Tensor | tuple[Tensor, ...]:
        """Return the model's own loss (`loss_type`) of states that have been computed.

        Args:
            states: those of `prefix_states` that have a target, (n, d).
            interaction: their batch.
        """
        mask = interaction[TARGET_MASK]
        targets, items = interaction[TARGETS][mask], self.output_items()
        if self.loss_type == "CE":
            return linear_cross_entropy(states, items, targets)
        positive = (states * items[targets]).sum(-1)
        negative = (states * items[interaction[NEGATIVES][mask]]).sum(-1)
        return BPRLoss()(positive, negative)


class FullSequenceFPMC(FullSequenceMixin):
    """Mixed in front of RecBole's FPMC: every pair of neighbours in a sequence is a training case.

    The score p_u . q_i + m_l . w_i of user u and item i after item l is the product of the state [p_u, m_l] and the
    item's [q_i, w_i]. RecBole's class accepts BPR alone; cross-entropy over all items (`loss_type: CE`) works as well
    here.

    Raises:
        ConfigError: `loss_type` is neither.
    """

    ignores_right_padding = True

    def __init__(self, config: Config, dataset: MultimodalDataset) -> None:
        if config["loss_type"] not in ("BPR", "CE"):
            raise ConfigError(f"loss_type must be BPR or CE, not {config['loss_type']!r}")
        super().__init__(Overlay(config, {"loss_type": "BPR"}), dataset)
        self.loss_type = config["loss_type"]

    def prefix_states(self, interaction: Interaction) -> Tensor:
        """Return [p_u, m_l] of the user and every item l of the histories: (B, W, 2 d)."""
        history = interaction[self.ITEM_SEQ]
        users = self.UI_emb(interaction[self.USER_ID])[:, None].expand(-1, history.shape[1], -1)
        return torch.cat([users, self.LI_emb(history)], dim=-1)

    def whole_states(self, interaction: Interaction) -> Tensor:
        """Return [p_u, m_l] of the user and the last item l of each history: (B, 2 d)."""
        last = interaction[self.ITEM_SEQ].gather(1, interaction[self.ITEM_SEQ_LEN][:, None] - 1)
        return torch.cat([self.UI_emb(interaction[self.USER_ID]), self.LI_emb(last[:, 0])], dim=-1)

    def output_items(self) -> Tensor:
        """Return [q_i, w_i] of every item i: (n_items, 2 d)."""
        return torch.cat([self.IU_emb.weight, self.IL_emb.weight], dim=1)
