"""Full-sequence training for RecBole's own causal models: `full_sequence: True`.

A causal model computes the state after every prefix of a sequence in one pass. RecBole's classes keep only the last
one; `full_sequence_class` derives a class that keeps them all while training and leaves prediction as it is.
"""

from __future__ import annotations

from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.model.loss import BPRLoss
from torch import Tensor
from torch.nn import functional as F

from recbole_mm.data.loaders import NEGATIVES, TARGET_MASK, TARGETS
from recbole_mm.errors import ConfigError

SUPPORTED = ("SASRec", "GRU4Rec")
"""Models whose `forward` is causal and ends in `gather_indexes`, with `item_embedding` as output weights."""


class FullSequenceMixin(SequentialRecommender):
    """Trains on every position of `item_id_list`; mixed in front of a RecBole model named in `SUPPORTED`."""

    trains_on_full_sequences = True
    _keep_all_positions = False

    @classmethod
    def wants_negatives(cls, config) -> bool:
        """Whether training batches must hold a negative for each target."""
        return config["loss_type"] == "BPR"

    def gather_indexes(self, output: Tensor, gather_index: Tensor) -> Tensor:
        """RecBole's: the state at one position; while training, all of them."""
        return output if self._keep_all_positions else super().gather_indexes(output, gather_index)

    def hidden_states(self, item_seq: Tensor, item_seq_len: Tensor) -> Tensor:
        """State after every prefix: item ids (B, W) and lengths (B,) -> (B, W, d)."""
        self._keep_all_positions = True
        try:
            return self.forward(item_seq, item_seq_len)
        finally:
            self._keep_all_positions = False

    def calculate_loss(self, interaction: Interaction) -> Tensor:
        """The model's own loss (`loss_type`), averaged over all targets of the batch."""
        mask = interaction[TARGET_MASK]
        states = self.hidden_states(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN])[mask]
        targets = interaction[TARGETS][mask]
        weight = self.item_embedding.weight
        if self.loss_type == "CE":
            return F.cross_entropy(states @ weight.T, targets)
        positive = (states * weight[targets]).sum(-1)
        negative = (states * weight[interaction[NEGATIVES][mask]]).sum(-1)
        return BPRLoss()(positive, negative)


def full_sequence_class(model_class: type[SequentialRecommender]) -> type[SequentialRecommender]:
    """`model_class` trained on full sequences, under its own name.

    Raises:
        ConfigError: the model is not one of `SUPPORTED`.
    """
    name = model_class.__name__
    if name not in SUPPORTED:
        raise ConfigError(
            f"full_sequence: True is for {', '.join(SUPPORTED)} and models trained so already, not {name}"
        )
    return type(name, (FullSequenceMixin, model_class), {"__module__": model_class.__module__})
