"""The recommendations of a trained model: the top of the same ranking that the evaluation counts, ties included.

    recommender = Recommender(open_run("saved/SASRec-shop-1a2b3c4d"))
    users = recommender.user_ids(["ann", "bob"])
    top = recommender.top_k(10, users=users)
    [recommender.item_tokens[item] for item in top.items[0]]

Users and items are RecBole's ids within, and the data's own ids (tokens) for whoever asks; `user_ids` and `item_ids`
lead from the second to the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any

import numpy as np
import torch

from recbole_mm.data.splits import TEST
from recbole_mm.errors import ConfigError, DataError
from recbole_mm.evaluation.csr import CSR
from recbole_mm.models.base import RerankingModel
from recbole_mm.recommending.catalogue import Catalogue
from recbole_mm.recommending.scores import RunScores
from recbole_mm.recommending.similar import PROFILE_USERS, ItemSimilarity, profiles_of
from recbole_mm.recommending.top_k import TopK, TopKCollector
from recbole_mm.runs.folder import Run

LONGEST_HISTORY = 100_000
"""Items of a history; one that is longer is a mistake."""


class Recommender(Catalogue):
    """Recommends items by the model of a finished run; for one thread at a time.

    Args:
        run: finished, from `open_run` or `recbole_mm.run`; its model has the best weights.

    Attributes:
        model: the run's, in evaluation mode.
        is_sequential: whether histories are the model's input.

    Those of `Catalogue` are inherited: users and items, their ids and titles.
    """

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self._scores = RunScores(run)
        self.model: Any = self._scores.model
        self.is_sequential: bool = self._scores.is_sequential

    def with_new_items(self, tokens: Sequence[str], titles: Sequence[str], vectors: torch.Tensor) -> Recommender:
        """Return a recommender that ranks m more items beside the run's own.

        Args:
            tokens: (m,) their ids; none is one of the run's.
            titles: (m,).
            vectors: (m, d), of the kind of `item_vectors()`.
        """
        other, own = self._with_new_items(tokens, titles), self.item_vectors()
        assert own is not None
        vars(other).pop("_similarity", None)
        other._scores = self._scores.with_item_vectors(torch.cat([own, vectors.to(own)]))
        return other

    # ------------------------------------------------------------------------------------------------------ histories

    def histories_of(self, users: np.ndarray, known: str = "all") -> CSR:
        """Return the items of users of the data, the earliest first.

        Args:
            users: (n,) RecBole's ids.
            known: `all` interactions, or those before the `test` items, which the evaluation knew.

        Raises:
            ConfigError: another value of `known`.
        """
        return self._scores.interactions(known).histories_of(users)

    # -------------------------------------------------------------------------------------------------------- ranking

    def top_k(
        self,
        k: int,
        *,
        users: np.ndarray | None = None,
        histories: CSR | Sequence[Sequence[int]] | None = None,
        allow: np.ndarray | None = None,
        exclude: np.ndarray | None = None,
        mask_history: bool | None = None,
        known: str = "all",
    ) -> TopK:
        """Recommend items to users of the data, to new users, or to users of the data with other histories.

        Scores are computed a block at a time; give some thousand rows per call.

        Args:
            k: items of each list.
            users: (n,) RecBole's ids; None for users that no training knows.
            histories: (n) RecBole's item ids of each, the earliest first; None for what is `known` of the users.
            allow: recommend these items alone.
            exclude: never recommend these items.
            mask_history: never recommend an item of the history; None: as the run was evaluated.
            known: `all` interactions of users of the data, or those before the `test` items. With `test` and without
                other limits the lists are those of the evaluation.

        Raises:
            ConfigError: neither users nor histories are given; the model cannot recommend without a trained user; `k`
                is not from 1 to the number of items; no item is left to recommend.
            DataError: a history is empty, or longer than `LONGEST_HISTORY`; there is no user or item of an id.
            RecboleMMError: a score is NaN.
        """
        self.check_k(k)
        if users is None and histories is None:
            raise ConfigError("give users of the data, or histories, to recommend to")
        users = None if users is None else np.asarray(users, dtype=np.int64)
        given = None if histories is None else _as_csr(histories)
        self._check_ids("user", users, self.dataset.user_num)
        self._check_ids("item", None if given is None else given.items, len(self.item_tokens))
        history = self.histories_of(users, known) if given is None and users is not None else given
        assert history is not None
        if users is not None and len(users) != len(history):
            raise ConfigError(f"{len(users)} users and {len(history)} histories are given; give one for each")
        self._check_histories(history, users)
        masks = self.config["mask_history"] if mask_history is None else mask_history
        if allow is None and known == "test" and self.config["candidates"] == "cold":
            allow = np.flatnonzero(self.dataset.item_phases == TEST)
        allowed = self._allowed(allow, exclude)
        with torch.no_grad(), self._choosing(masks, allowed, given is None):
            masked = history.distinct(self.n_items) if masks else None
            collector = TopKCollector(k, self.n_items, masked, allowed, self.config["model"])
            return collector.collect(self._scores.blocks(users, given, known), len(history))

    def check_k(self, k: int) -> None:
        """Refuse lists of no items, or of more than there are.

        Raises:
            ConfigError: `k` is not from 1 to the number of items.
        """
        if not 1 <= k < self.n_items:
            raise ConfigError(f"k: {k} items cannot be recommended of {self.n_items - 1}; give 1 to {self.n_items - 1}")

    def _check_ids(self, name: str, ids: np.ndarray | None, end: int) -> None:
        if ids is not None and len(ids) and not 1 <= ids.min() <= ids.max() < end:
            raise DataError(f"{name} ids are 1 to {end - 1} here, and {ids.min()} to {ids.max()} are given")

    def _check_histories(self, history: CSR, users: np.ndarray | None) -> None:
        lengths = history.lengths
        if len(history.items) and history.items.max() >= self.dataset.item_num:
            token = self.item_tokens[history.items.max()]
            raise DataError(f"item {token!r} is new: it can be recommended, and no history that is read can hold it")
        if len(history) and lengths.max() > LONGEST_HISTORY:
            raise DataError(f"a history of {lengths.max()} items is given; give the last {LONGEST_HISTORY} at most")
        empty = np.flatnonzero(lengths == 0)
        if not len(empty) or (users is not None and not self.is_sequential):
            return
        if users is not None:
            user = self.user_tokens[users[empty[0]]]
            raise DataError(f"nothing is known of user {user!r}, and {self.config['model']} reads histories; give one")
        raise DataError(f"history {empty[0] + 1} is empty; give one item at least")

    def _allowed(self, allow: np.ndarray | None, exclude: np.ndarray | None) -> np.ndarray | None:
        """Return the items (m,) that may be recommended, ascending; None for all."""
        if allow is None and exclude is None:
            return None
        allowed = np.zeros(self.n_items, dtype=bool)
        for given, value in ((np.arange(1, self.n_items) if allow is None else allow, True), (exclude, False)):
            items = np.asarray([] if given is None else given, dtype=np.int64)
            self._check_ids("item", items, self.n_items)
            allowed[items] = value
        if not allowed.any():
            raise ConfigError("no item is left to recommend: what is allowed is excluded, too")
        return np.flatnonzero(allowed)

    def _choosing(self, masks: bool, allowed: np.ndarray | None, is_known: bool) -> AbstractContextManager[None]:
        """Have a model that asks about a few items ask about allowed ones, and about those of the history or not."""
        if not isinstance(self.model, RerankingModel):
            return nullcontext()
        return self.model.choosing_from(allowed, bool(masks), is_known)

    # ------------------------------------------------------------------------------------------------------- vectors

    def similar(
        self, items: np.ndarray, k: int, *, allow: np.ndarray | None = None, exclude: np.ndarray | None = None
    ) -> TopK:
        """Return the items most like others, by the cosine of the vectors that the model scores with.

        A model without item vectors tells by its scores for some users; one that reranks, by its first scores.

        Args:
            items: (n,) RecBole's ids.
            k: items of each list.
            allow, exclude: as for `top_k`.

        Raises:
            ConfigError: `k` is not from 1 to the number of items, or no item is left.
            DataError: there is no item of an id.
        """
        self.check_k(k)
        ids = np.asarray(items, dtype=np.int64)
        self._check_ids("item", ids, self.n_items)
        return TopK(*self._similarity.top_k(ids, k, self._allowed(allow, exclude)))

    @cached_property
    def _similarity(self) -> ItemSimilarity:
        with torch.no_grad():
            vectors = self.item_vectors()
            return ItemSimilarity(
                profiles_of(self._scores.some_blocks(PROFILE_USERS)) if vectors is None else vectors,
                self.config["eval_memory_mb"] or 256,
            )

    def item_vectors(self) -> torch.Tensor | None:
        """Return the vectors (n_items, d) whose dot products with users' are the scores; None for other models."""
        return self._scores.item_vectors()

    def user_vectors(self, users: np.ndarray, known: str = "all") -> torch.Tensor:
        """Return the vectors (n, d) of users of the data, after what is known of them.

        Args:
            users: (n,) RecBole's ids; of a model of sequences, users with a history.
            known: as for `top_k`.

        Raises:
            ConfigError: the model does not score by vectors.
        """
        if not self._scores.has_vectors:
            raise ConfigError(f"{self.config['model']} does not score by vectors of users and items")
        return self._scores.user_vectors(users, known)

    def users_with_history(self, known: str = "all") -> np.ndarray:
        """Return RecBole's ids (n,) of the users that can be recommended to: of a model of sequences, those of whom
        something is known."""
        ids = np.arange(1, len(self.user_tokens))
        return ids[self._scores.interactions(known).by_user.lengths[1:] > 0] if self.is_sequential else ids


def _as_csr(histories: CSR | Sequence[Sequence[int]]) -> CSR:
    return histories if isinstance(histories, CSR) else CSR.from_lists(histories)
