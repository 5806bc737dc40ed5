"""The collaborative filtering model whose user and item vectors become words of CoLLM's prompts.

It is any model that scores by the product of a user's and an item's vector, trained here on the batches of whole
sequences that CoLLM gets, with its own loss.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import torch
from recbole.data.interaction import Interaction
from recbole.model.general_recommender import BPR, LightGCN
from recbole.model.sequential_recommender import FPMC, GRU4Rec, SASRec
from torch import Tensor, nn

from recbole_mm.data.loaders import NEGATIVES, TARGET_MASK, TARGETS
from recbole_mm.models.full_sequence import Overlay
from recbole_mm.models.hooks import full_sequence_class
from recbole_mm.models.hyper import ENCODERS, check_encoder, read_map

if TYPE_CHECKING:
    from recbole_mm.config.resolved import Config
    from recbole_mm.data.dataset import MultimodalDataset

PAIRWISE: dict[str, type] = {"MF": BPR, "LightGCN": LightGCN}
SEQUENTIAL: dict[str, type] = {"SASRec": SASRec, "GRU4Rec": GRU4Rec, "FPMC": FPMC}

DEFAULTS = {**ENCODERS, "loss_type": "CE", "reg_weight": 1e-5, "require_pow": False}
"""Of `cf_config`."""


class CollaborativeFilter(nn.Module, ABC):
    """User and item vectors of a model, and its loss.

    Attributes:
        model: RecBole's model.
        dimension: d, of a vector.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        with torch.no_grad():
            self.dimension = int(self.item_vectors().shape[1])

    @abstractmethod
    def loss(self, batch: Interaction) -> Tensor:
        """The model's own loss on a batch of whole sequences, averaged over their targets."""

    @abstractmethod
    def item_vectors(self) -> Tensor:
        """(n_items, d)."""

    @abstractmethod
    def user_vectors(self, rows: Interaction) -> Tensor:
        """The user of each row (B,), after the row's whole history: (B, d)."""

    @abstractmethod
    def prefix_vectors(self, batch: Interaction) -> Tensor:
        """The user of each sequence after every prefix of it: (B, W, d)."""


class PairwiseFilter(CollaborativeFilter):
    """A model with one vector per user, trained to put a chosen item above another: matrix factorization, LightGCN."""

    def loss(self, batch: Interaction) -> Tensor:
        """Return the model's pairwise loss of the targets of a batch, a scalar."""
        mask, model = batch[TARGET_MASK], self.model
        users = batch[model.USER_ID][:, None].expand_as(mask)[mask]
        pairs = {model.USER_ID: users, model.ITEM_ID: batch[TARGETS][mask], model.NEG_ITEM_ID: batch[NEGATIVES][mask]}
        return model.calculate_loss(Interaction(pairs))

    def _tables(self) -> tuple[Tensor, Tensor]:
        """Vectors of all users and of all items."""
        if isinstance(self.model, BPR):
            return self.model.user_embedding.weight, self.model.item_embedding.weight
        users, items = self.model()
        return users, items

    def item_vectors(self) -> Tensor:
        """Return the (n_items, d) vectors of all items."""
        return self._tables()[1]

    def user_vectors(self, rows: Interaction) -> Tensor:
        """Return the (B, d) vectors of the rows' users."""
        return self._tables()[0][rows[self.model.USER_ID]]

    def prefix_vectors(self, batch: Interaction) -> Tensor:
        """Return the (B, W, d) vectors of the sequences' users, the same after every prefix."""
        return self.user_vectors(batch)[:, None].expand(-1, batch[TARGET_MASK].shape[1], -1)


class SequentialFilter(CollaborativeFilter):
    """A causal model of sequences: a user is the state after the history, so that it changes with every item."""

    def loss(self, batch: Interaction) -> Tensor:
        """Return the model's loss of the targets of a batch, a scalar."""
        return self.model.calculate_loss(batch)

    def item_vectors(self) -> Tensor:
        """Return the (n_items, d) vectors that states are scored against."""
        return self.model.output_items()

    def user_vectors(self, rows: Interaction) -> Tensor:
        """Return the (B, d) states after the rows' whole histories."""
        return self.model.whole_states(rows)

    def prefix_vectors(self, batch: Interaction) -> Tensor:
        """Return the (B, W, d) states after every prefix."""
        return self.model.prefix_states(batch)


def build_filter(config: Config, dataset: MultimodalDataset) -> CollaborativeFilter:
    """Build the model named by `cf_model`, untrained.

    Args:
        config: the run's configuration; `cf_embedding_size` and `cf_config` hold the model's hyper-parameters.
        dataset: the training part; LightGCN's graph holds its targets.

    Raises:
        ConfigError: a hyper-parameter is unknown or impossible.
    """
    name, width = config["cf_model"], config["cf_embedding_size"]
    hyper = read_map(config, "cf_config", DEFAULTS)
    if name == "SASRec":
        check_encoder("cf_config", width, hyper)
    hyper["inner_size"] = hyper["inner_size"] or 4 * width
    own = {**hyper, "embedding_size": width, "hidden_size": width}
    settings = Overlay(config, {**own, "full_sequence_loss": None, "item_dropout_prob": None})
    if name in PAIRWISE:
        return PairwiseFilter(PAIRWISE[name](settings, dataset))
    return SequentialFilter(full_sequence_class(SEQUENTIAL[name])(settings, dataset))
