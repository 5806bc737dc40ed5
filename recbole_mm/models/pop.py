"""Pop: recommends what was chosen most often in training.

RecBole's class counts an item at most once per batch and counts sampled negatives as if they had been chosen
(recbole/model/general_recommender/pop.py:47), so on many datasets nearly all items tie at the number of batches. Pop is
the ranker that every result is held against; this one counts every training interaction once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from recbole.data.interaction import Interaction
from recbole.model.general_recommender import pop as upstream
from torch import Tensor

if TYPE_CHECKING:
    from recbole_mm.config.resolved import Config
    from recbole_mm.data.dataset import MultimodalDataset


class Pop(upstream.Pop):
    """RecBole's Pop with its counting mended.

    Example:
        >>> recbole_mm.run("Pop", "my-data")  # doctest: +SKIP
    """

    def __init__(self, config: Config, dataset: MultimodalDataset) -> None:
        super().__init__(config, dataset)
        self.label_field = config["LABEL_FIELD"]

    @classmethod
    def of_counts(cls, config, dataset, counts: Tensor) -> Pop:
        """A trained Pop.

        Args:
            config: names of fields and `device`.
            dataset: gives the number of users and items.
            counts: (n_items,) int64, how often each item was chosen in training.
        """
        model = cls(config, dataset)
        model.item_cnt = counts[:, None]
        model.max_cnt = model.item_cnt.max(dim=0)[0]
        return model

    def scores_of_histories(self, chosen: Tensor) -> Tensor:
        """Return the scores (B, n_items), which are the same for everybody."""
        return self.full_sort_predict({self.USER_ID: chosen}).view(len(chosen), -1)

    def calculate_loss(self, interaction: Interaction) -> Tensor:
        """Count the batch's chosen items; gives a zero that can be differentiated, as RecBole's does."""
        items = interaction[self.ITEM_ID]
        if self.label_field in interaction:
            items = items[interaction[self.label_field] > 0]
        self.item_cnt.index_add_(0, items, torch.ones_like(items)[:, None])
        self.max_cnt = self.item_cnt.max(dim=0)[0]
        return self.fake_loss.sum()
