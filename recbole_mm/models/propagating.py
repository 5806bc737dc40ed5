"""General recommenders whose score is the dot product of a user's and an item's vector, computed for all at once.

    class Mine(PropagatingRecommender):
        def propagate(self):  # -> vectors of all users (n_users, d) and of all items (n_items, d)
            ...

        def calculate_loss(self, interaction): ...

In evaluation the vectors are computed once and kept until a weight changes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import torch
from recbole.data.interaction import Interaction
from recbole.utils import InputType
from torch import Tensor

from recbole_mm.models.base import GeneralModel

if TYPE_CHECKING:
    from recbole_mm.config.resolved import Config
    from recbole_mm.data.dataset import MultimodalDataset


class Kept:
    """Holds a value that can be computed again, and that checkpoints, which save plain attributes, leave out.

    Attributes:
        value: the value; None before it is computed.
        key: what the value was computed from, where that can change.

    Example:
        >>> Kept().value is None
        True
    """

    def __init__(self) -> None:
        self.key: Any = None
        self.value: Any = None


class PropagatingRecommender(GeneralModel, ABC):
    """Scores by `propagate`, and ranks by its vectors."""

    input_type = InputType.PAIRWISE

    def __init__(self, config: Config, dataset: MultimodalDataset) -> None:
        super().__init__(config, dataset)
        self._kept = Kept()

    @abstractmethod
    def propagate(self) -> tuple[Tensor, Tensor]:
        """Return the vectors of all users (n_users, d) and all items (n_items, d), whose dot product is the score."""

    def weights_key(self) -> tuple:
        """Return a key that changes whenever a weight is written to or replaced."""
        return tuple((weight.data_ptr(), weight._version) for weight in self.parameters())

    def train(self, mode: bool = True) -> PropagatingRecommender:
        """Set the mode; training drops the vectors kept in evaluation."""
        if mode:
            self._kept.key = self._kept.value = None
        return super().train(mode)

    def propagated(self) -> tuple[Tensor, Tensor]:
        """Return `propagate()`, computed once for the same weights in evaluation without gradients."""
        if self.training or torch.is_grad_enabled():
            return self.propagate()
        key = self.weights_key()
        if self._kept.key != key:
            self._kept.key, self._kept.value = key, self.propagate()
        return self._kept.value

    def user_vectors(self, interaction: Interaction) -> Tensor:
        """Return the vectors (B, d) of the rows' users."""
        return self.propagated()[0][interaction[self.USER_ID]]

    def item_vectors(self) -> Tensor:
        """Return the vectors (n_items, d) of all items."""
        return self.propagated()[1]

    def predict(self, interaction: Interaction) -> Tensor:
        """Return the scores (B,) of the rows' users for their items."""
        users, items = self.propagated()
        return (users[interaction[self.USER_ID]] * items[interaction[self.ITEM_ID]]).sum(dim=-1)

    def full_sort_predict(self, interaction: Interaction) -> Tensor:
        """Return the scores of the rows' users for all items, flattened (B * n_items,) as RecBole expects."""
        return (self.user_vectors(interaction) @ self.item_vectors().T).view(-1)
