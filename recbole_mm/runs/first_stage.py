"""The scores of a first stage: a trained model whose best items another one puts in order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from recbole.data.dataset import Dataset
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import AbstractRecommender
from recbole.utils import ModelType
from torch import Tensor

from recbole_mm.config.resolved import Config
from recbole_mm.evaluation.dot_product import dot_product_of
from recbole_mm.evaluation.scoring import Scorer


class FirstStage:
    """A trained model that scores all items for any user and history.

    Args:
        config, dataset, folder: of its own run.
        model: trained, in evaluation mode.
        sees_held_out: how its training saw held-out interactions.
    """

    def __init__(
        self, config: Config, dataset: Dataset, model: AbstractRecommender, sees_held_out: list[str], folder: Path
    ) -> None:
        self.config = config
        self.dataset = dataset
        self.model = model
        self.folder = folder
        self.sees_held_out = [f"first stage {config['model']}: {text}" for text in sees_held_out]
        self.name: str = config["model"]
        self._sequential = config["MODEL_TYPE"] == ModelType.SEQUENTIAL
        self._halves = dot_product_of(model)
        self._items: Tensor | None = None

    def scores(self, cases: Interaction) -> Tensor:
        """Scores of all items (B, n_items) float64.

        Args:
            cases: users (B,) and, for a sequential model, their histories, under RecBole's names. A model that knows no
                histories scores by the user.
        """
        uid = self.dataset.uid_field
        batch = cases if self._sequential else self.dataset.join(Interaction({uid: cases[uid].cpu()}))
        batch = batch.to(self.config["device"])
        with torch.no_grad():
            if self._halves is None:
                scores = self._full(batch)
            else:  # in double precision, so that another batch does not round two items into another order
                if self._items is None:
                    self._items = self._halves.items().double()
                scores = self._halves.users(batch).double() @ self._items.T
        return scores.to(cases[uid].device)

    def _full(self, batch: Interaction) -> Tensor:
        scorer = Scorer(
            self.model,
            batch,
            self.dataset.item_num,
            device=self.config["device"],
            memory_mb=self.config["eval_memory_mb"] or 256,
            batch_size=self.config["eval_batch_size"],
            item_features=self.dataset.get_item_feature(),
        )
        table = torch.zeros(len(batch), self.dataset.item_num, dtype=torch.float64, device=self.config["device"])
        for blocks in scorer.all_items(scorer.batches(np.arange(len(batch)))):
            for rows, scores in blocks:
                table[torch.from_numpy(rows)] = scores.double()
        return table
