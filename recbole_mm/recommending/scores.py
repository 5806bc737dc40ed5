"""The scores and vectors of a finished run's model: for users of its data, for histories, or for both."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from functools import cached_property
from typing import Any

import numpy as np
import torch
from recbole.data.interaction import Interaction
from recbole.utils import ModelType

from recbole_mm.errors import ConfigError, RecboleMMError
from recbole_mm.evaluation.csr import CSR
from recbole_mm.evaluation.dot_product import dot_product_of
from recbole_mm.evaluation.scoring import Block, Scorer
from recbole_mm.models.base import RerankingModel
from recbole_mm.models.hooks import hooks_of
from recbole_mm.recommending.cases import (
    MultiHotHistories,
    UserInteractions,
    flat_columns,
    sequence_inputs,
    user_inputs,
    with_negatives,
)
from recbole_mm.runs.folder import Run


class RunScores:
    """Scores by the model of a run; for one thread at a time.

    Args:
        run: finished; its model has the best weights.

    Attributes:
        model: in evaluation mode.
        is_sequential: whether histories are its input.
        n_items: number of item ids, padding 0 included.
    """

    def __init__(self, run: Run) -> None:
        self.run, self.config, self.dataset = run, run.config, run.dataset
        self.model: Any = run.model.eval()
        self.is_sequential: bool = self.config["MODEL_TYPE"] == ModelType.SEQUENTIAL
        self.n_items: int = self.dataset.item_num
        self._interactions: dict[str, UserInteractions] = {}

    def interactions(self, known: str) -> UserInteractions:
        """Return what is known of the users of the data; see `UserInteractions` for errors."""
        if known not in self._interactions:
            self._interactions[known] = UserInteractions(self.dataset, known)
        return self._interactions[known]

    # --------------------------------------------------------------------------------------------------------- scores

    def blocks(self, users: np.ndarray | None, histories: CSR | None, known: str = "all") -> Iterator[Block]:
        """Score all items for some rows, a block at a time.

        Args:
            users: (n,) RecBole's ids; None for users that no training knows.
            histories: (n) items of each; None for what is `known` of the users.
            known: see `UserInteractions`.

        Raises:
            ConfigError: the model cannot score what is given.
        """
        if not self.is_sequential and histories is not None:
            yield from self._blocks_of_histories(histories)
            return
        inputs = self.inputs(users, histories, known)
        scorer = self._scorer.over(inputs)
        try:
            for blocks in scorer.all_items(scorer.batches(scorer.order(np.zeros(len(inputs), dtype=np.int64)))):
                yield from blocks
        except KeyError as error:
            raise self._lacks(str(error.args[0]), users) from error

    def some_blocks(self, most: int) -> Iterator[Block]:
        """Score all items for at most so many users of the data, evenly spread over all that anything is known of; by
        the first scores of a model that asks about a few items."""
        there = np.flatnonzero(self.interactions("all").by_user.lengths > 0)
        users = there[np.linspace(0, len(there) - 1, min(most, len(there))).astype(np.int64)]
        if not isinstance(self.model, RerankingModel):
            yield from self.blocks(users, None)
            return
        inputs = self.inputs(users, None)
        for rows in np.array_split(np.arange(len(users)), max(1, len(users) // 32)):
            yield rows, self.model.first_scores(inputs[rows].to(self.config["device"]))

    def _blocks_of_histories(self, histories: CSR) -> Iterator[Block]:
        rows, hooks = MultiHotHistories(histories, self.n_items), hooks_of(type(self.model))
        step = max(1, int((self.config["eval_memory_mb"] or 256) * 2**20) // (8 * self.n_items))
        for start in range(0, len(rows), step):
            places = np.arange(start, min(start + step, len(rows)))
            try:
                scores = hooks.scores_of_histories(self.model, rows[places].to(self.config["device"]))
            except NotImplementedError:
                raise self._needs_users() from None
            yield places, scores.reshape(len(places), self.n_items).contiguous()

    # ------------------------------------------------------------------------------------------------ what is scored

    def inputs(self, users: np.ndarray | None, histories: CSR | None, known: str = "all") -> Any:
        """Return the model's input for some rows; indexing it with a numpy array of rows gives an `Interaction`.

        The arguments and errors are those of `blocks`.
        """
        if not self.is_sequential:
            assert users is not None
            return user_inputs(self.dataset, users)
        if users is None:
            self._check_new_users()
        if histories is None:
            assert users is not None
            columns, rows = self._columns, self.interactions(known).rows_of(users)
        else:
            columns = {self.dataset.iid_field: torch.from_numpy(histories.items)}
            rows = CSR(histories.offsets, np.arange(len(histories.items)))
        reads_none = users is None and isinstance(self.model, RerankingModel)  # checked above
        owners = np.zeros(len(rows), dtype=np.int64) if reads_none else users
        return sequence_inputs(self.dataset, with_negatives(columns, self.model, self.dataset), rows, owners)

    @cached_property
    def _columns(self) -> dict[str, torch.Tensor]:
        return flat_columns(self.dataset)

    @cached_property
    def _scorer(self) -> Scorer:
        return Scorer(
            self.model,
            Interaction({}),
            self.n_items,
            device=self.config["device"],
            memory_mb=self.config["eval_memory_mb"] or 256,
            batch_size=self.config["eval_batch_size"],
            item_features=self.dataset.get_item_feature(),
        )

    # -------------------------------------------------------------------------------------------------------- vectors

    @property
    def has_vectors(self) -> bool:
        """Whether a score is the dot product of two vectors."""
        return dot_product_of(self.model) is not None

    def item_vectors(self) -> torch.Tensor | None:
        """Return the vectors (n_items, d) whose dot products with users' are the scores; None for other models."""
        with torch.no_grad():
            return self._scorer.item_vectors().detach() if self.has_vectors else None

    def user_vectors(self, users: np.ndarray, known: str = "all") -> torch.Tensor:
        """Return the vectors (n, d) of users of the data, after what is known of them."""
        found: torch.Tensor | None = None
        scorer = self._scorer.over(self.inputs(users, None, known))
        with torch.no_grad():
            for rows in scorer.batches(scorer.order(np.zeros(len(users), dtype=np.int64))):
                vectors = scorer.user_vectors(rows)
                found = vectors.new_empty(len(users), vectors.shape[1]) if found is None else found
                found[torch.from_numpy(rows).to(found.device)] = vectors
        return torch.empty(0, 0) if found is None else found

    def with_item_vectors(self, vectors: torch.Tensor) -> RunScores:
        """Return the scores of a dot-product model over other items: (N, d) vectors, padding first."""
        other = copy(self)
        other.n_items = len(vectors)
        vars(other)["_scorer"] = self._scorer.with_item_vectors(vectors)
        return other

    # ------------------------------------------------------------------------------------------- what cannot be scored

    def _check_new_users(self) -> None:
        """Refuse a reranker that reads what was written or trained of a user, or whose first stage does."""
        if not isinstance(self.model, RerankingModel):
            return
        first = getattr(self.model, "first_stage", None)
        if self.model.reads_users or (first is not None and first.config["MODEL_TYPE"] != ModelType.SEQUENTIAL):
            raise self._needs_users()
        if first is not None:
            RunScores(Run(first.config, first.dataset, first.model, self.run.splits, first.folder))._probe()

    def _probe(self) -> None:
        """Score one history of an unknown user."""
        columns = {self.dataset.iid_field: torch.ones(1, dtype=torch.int64)}
        inputs = sequence_inputs(self.dataset, columns, CSR.from_lists([[0]]), None)
        try:
            next(next(self._scorer.over(inputs).all_items([np.zeros(1, dtype=np.int64)])))
        except KeyError as error:
            raise self._lacks(str(error.args[0]), None) from error

    def _lacks(self, field: str, users: np.ndarray | None) -> RecboleMMError:
        if users is None and field == self.dataset.uid_field:
            return self._needs_users()
        return ConfigError(
            f"{self.config['model']} reads {field!r} of each interaction, which a history of items alone does not "
            "have; recommend to users of the data, without histories of their own"
        )

    def _needs_users(self) -> ConfigError:
        return ConfigError(
            f"{self.config['model']} recommends to users that it was trained on, by something of their own; for new "
            "users take a model of sequences, such as SASRec or Molar, or one of items alone, such as EASE, ItemKNN, "
            "MultiVAE or Pop"
        )
