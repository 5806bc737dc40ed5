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
from torch import Tensor, nn

from recbole_mm.data.loaders import NEGATIVES, TARGET_MASK, TARGETS
from recbole_mm.errors import ConfigError
from recbole_mm.models.cross_entropy import linear_cross_entropy
from recbole_mm.models.losses import gbce_loss, gbce_power, softmax_of_sample
from recbole_mm.models.negatives import negatives_of_batch, negatives_of_targets
from recbole_mm.models.sampled_scores import sampled_scores
from recbole_mm.models.whole_batch import shared_random

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

    def __init__(self, config: Config | Overlay, dataset: MultimodalDataset) -> None:
        super().__init__(config, dataset)
        self.n_train_items: int = dataset.train_item_num

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
            return linear_cross_entropy(states, items[: self.n_train_items], targets)
        positive = (states * items[targets]).sum(-1)
        negative = (states * items[interaction[NEGATIVES][mask]]).sum(-1)
        return BPRLoss()(positive, negative)


SAMPLED_SOFTMAX, GBCE = "sampled_softmax", "gbce"
N_NEGATIVES, GBCE_T = 256, 0.75
"""Of sampled losses, where the settings are null: those of gSASRec (Petrov and Macdonald, RecSys 2023)."""


class FullSequenceLosses(FullSequenceMixin):
    """Mixed in front of RecBole's SASRec and GRU4Rec: trains on any of the losses of `full_sequence_loss`.

    CE and BPR are RecBole's. `sampled_softmax` and `gbce` compare each target with `n_negatives` items that are drawn
    with torch's generator, for each target anew or for the whole batch (`negatives_of`). Null is `loss_type`.
    `item_dropout_prob` drops numbers of the items' vectors, the same ones where a batch reads and where it scores them.

    Raises:
        ConfigError: there is no other item that could be a negative.
    """

    def __init__(self, config: Config | Overlay, dataset: MultimodalDataset) -> None:
        super().__init__(config, dataset)
        self.loss_type: str = config["full_sequence_loss"] or self.loss_type
        self.n_negatives: int = config["n_negatives"] or N_NEGATIVES
        self.negatives_of: str = config["negatives_of"] or "target"
        self.negatives_exclude: str = config["negatives_exclude"] or "target"
        if self.loss_type in (SAMPLED_SOFTMAX, GBCE):
            if self.n_train_items < 3:
                raise ConfigError(f"full_sequence_loss: {self.loss_type} needs a second item to draw as a negative")
            calibration = GBCE_T if config["gbce_t"] is None else config["gbce_t"]
            self.gbce_beta = gbce_power(self.n_negatives, self.n_train_items - 1, calibration)
        self.item_dropout_prob: float = config["item_dropout_prob"] or 0.0
        self._kept: Tensor | None = None
        if self.item_dropout_prob:
            self.item_embedding.register_forward_hook(self._drop_read_items)

    @classmethod
    def wants_negatives(cls, config: Config) -> bool:
        """Return whether training batches must hold a negative for each target: those of BPR, not of sampled losses."""
        return (config["full_sequence_loss"] or config["loss_type"]) == "BPR"

    def _drop_read_items(self, module: nn.Module, ids: tuple[Tensor], vectors: Tensor) -> Tensor:
        return vectors if self._kept is None else vectors * self._kept[ids[0]]

    def output_items(self) -> Tensor:
        """Return the vectors (n_items, d) that states are scored against; while a loss is computed, after dropout."""
        items = super().output_items()
        return items if self._kept is None else items * self._kept

    def calculate_loss(self, interaction: Interaction) -> Tensor | tuple[Tensor, ...]:
        """Return the model's own loss, averaged over all targets of the batch."""
        if self.item_dropout_prob and self.training:
            with shared_random():
                self._kept = torch.dropout(torch.ones_like(self.item_embedding.weight), self.item_dropout_prob, True)
        try:
            return super().calculate_loss(interaction)
        finally:
            self._kept = None

    def loss_of_states(self, states: Tensor, interaction: Interaction) -> Tensor | tuple[Tensor, ...]:
        """Return the loss of `full_sequence_loss` of states (n, d) that have been computed."""
        if self.loss_type not in (SAMPLED_SOFTMAX, GBCE):
            return super().loss_of_states(states, interaction)
        targets, items = interaction[TARGETS][interaction[TARGET_MASK]], self.output_items()
        positive = (states * items[targets]).sum(-1)
        negative = self._negative_scores(states, items, *self._excluded(interaction))
        if self.loss_type == GBCE:
            return gbce_loss(positive, negative, self.gbce_beta)
        return softmax_of_sample(positive, negative)

    def _negative_scores(self, states: Tensor, items: Tensor, excluded: Tensor, owners: Tensor) -> Tensor:
        """Return the scores of drawn negatives (n, k); -inf where one that the batch shares is excluded."""
        if self.negatives_of == "target":
            drawn = negatives_of_targets(excluded, owners, self.n_train_items, self.n_negatives)
            return sampled_scores(states, items, drawn)
        drawn = negatives_of_batch(self.n_train_items, self.n_negatives, states.device)
        collides = torch.zeros(len(excluded), len(drawn), dtype=torch.bool, device=states.device)
        for column in excluded.unbind(1):
            collides |= column.unsqueeze(1) == drawn
        return (states @ items[drawn].T).masked_fill(collides[owners], float("-inf"))

    def _excluded(self, interaction: Interaction) -> tuple[Tensor, Tensor]:
        """Return items that are no negatives, 0 for none: (B, m) ids, and the row of them for each target (n,)."""
        mask, targets = interaction[TARGET_MASK], interaction[TARGETS]
        if self.negatives_exclude == "target":
            each = targets[mask]
            return each.unsqueeze(1), torch.arange(len(each), device=each.device)
        return torch.cat([interaction[self.ITEM_SEQ], targets], dim=1), mask.nonzero()[:, 0]


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
