"""The recommendations of a trained model: the top of the same ranking that the evaluation counts, ties included.

    recommender = Recommender(open_run("saved/SASRec-shop-1a2b3c4d"))
    users = recommender.user_ids(["ann", "bob"])
    top = recommender.top_k(10, users=users)
    [recommender.item_tokens[item] for item in top.items[0]]

Users and items are RecBole's ids within, and the data's own ids (tokens) for whoever asks; `user_ids` and `item_ids`
lead from the second to the first.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.data.interaction import Interaction
from recbole.utils import ModelType

from recbole_mm.data.item_facts import title_column
from recbole_mm.data.item_table import ItemTable
from recbole_mm.data.item_text import clean_text
from recbole_mm.data.splits import TEST
from recbole_mm.errors import ConfigError, DataError, RecboleMMError
from recbole_mm.evaluation.csr import CSR
from recbole_mm.evaluation.dot_product import dot_product_of
from recbole_mm.evaluation.rank_counting import rows_with_nan, top_columns
from recbole_mm.evaluation.ranking import mask
from recbole_mm.evaluation.scoring import Block, Scorer
from recbole_mm.models.base import RerankingModel
from recbole_mm.models.hooks import hooks_of
from recbole_mm.recommending.cases import (
    HistoryRows,
    KnownRows,
    flat_columns,
    general_cases,
    sequential_cases,
    with_negatives,
)
from recbole_mm.recommending.similar import PROFILE_USERS, ItemSimilarity, profiles_of
from recbole_mm.runs.folder import Run
from recbole_mm.utils.spelling import nearest_of_many

LONGEST_HISTORY = 100_000
"""Items of a history; one that is longer is a mistake."""

IDS_SHOWN = 3


@dataclass(frozen=True)
class TopK:
    """Recommended items of n rows, the best first.

    Attributes:
        items: int64 (n, k) RecBole's item ids; 0 behind the end of a list that is shorter, for want of items.
        scores: float64 (n, k); -inf behind its end.

    Example:
        >>> top = TopK(np.array([[5, 2, 0]]), np.array([[0.5, 0.25, -np.inf]]))
        >>> top.row(0)
        [(5, 0.5), (2, 0.25)]
    """

    items: np.ndarray
    scores: np.ndarray

    def __len__(self) -> int:
        return len(self.items)

    def row(self, place: int) -> list[tuple[int, float]]:
        """Return item and score of each recommendation of a row."""
        there = self.items[place] > 0
        return list(zip(self.items[place][there].tolist(), self.scores[place][there].tolist(), strict=True))


class Recommender:
    """Recommends items by the model of a finished run; for one thread at a time.

    Args:
        run: finished, from `open_run` or `recbole_mm.run`; its model has the best weights.

    Attributes:
        run, config, dataset, model: the run's.
        item_tokens, user_tokens: the data's ids by RecBole's ids; index 0 is padding.
        n_items: number of item ids, padding 0 included.
        is_sequential: whether histories are the model's input.
    """

    def __init__(self, run: Run) -> None:
        self.run, self.config, self.dataset = run, run.config, run.dataset
        self.model: Any = run.model.eval()
        self.item_tokens = np.asarray(self.dataset.field2id_token[self.dataset.iid_field], dtype=object)
        self.user_tokens = np.asarray(self.dataset.field2id_token[self.dataset.uid_field], dtype=object)
        self.n_items: int = self.dataset.item_num
        self._item_ids: Mapping[str, int] = self.dataset.field2token_id[self.dataset.iid_field]
        self._new_titles: dict[int, str] = {}
        self.is_sequential: bool = self.config["MODEL_TYPE"] == ModelType.SEQUENTIAL
        self._known: dict[str, KnownRows] = {}

    # ------------------------------------------------------------------------------------------------ ids and content

    def user_ids(self, tokens: Sequence[str]) -> np.ndarray:
        """Return RecBole's ids (n,) of users.

        Raises:
            DataError: one is not in the run's data; names the nearest.
        """
        return self._ids("user", self.dataset.field2token_id[self.dataset.uid_field], tokens, self.user_tokens)

    def item_ids(self, tokens: Sequence[str]) -> np.ndarray:
        """Return RecBole's ids (n,) of items.

        Raises:
            DataError: one is not among those that the run ranks; names the nearest.
        """
        return self._ids("item", self._item_ids, tokens, self.item_tokens)

    def knows_item(self, token: str) -> bool:
        """Return whether the run ranks an item of this id."""
        return self._item_ids.get(str(token), 0) > 0

    def _ids(self, what: str, ids: Mapping[str, int], tokens: Sequence[str], known: np.ndarray) -> np.ndarray:
        found = np.array([ids.get(str(token), 0) for token in tokens], dtype=np.int64)
        if (found > 0).all():
            return found
        unknown = [str(token) for token, number in zip(tokens, found, strict=True) if number == 0]
        near = nearest_of_many(unknown[0], known[1:].tolist(), IDS_SHOWN)
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
        more = f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
        raise DataError(f"{what} {unknown[0]!r}{more} is not in the data of {self.run.run_dir}{hint}")

    @cached_property
    def _table(self) -> ItemTable | None:
        path = Path(self.config["data_path"]) / f"{self.config['dataset']}.item"
        if not path.is_file():
            return None
        separator = self.config["field_separator"] or "\t"
        return ItemTable.read(path, self.config["ITEM_ID_FIELD"] or "item_id", separator, self.config["encoding"])

    @cached_property
    def title_field(self) -> str | None:
        """The column of `.item` that names items; None where there is none."""
        return None if self._table is None else title_column(list(self._table.kinds))

    def title(self, item: int) -> str:
        """Return the title of an item in one line; "" where it has none."""
        if item in self._new_titles:
            return self._new_titles[item]
        if self._table is None or self.title_field is None:
            return ""
        return clean_text(self._table.value(str(self.item_tokens[item]), self.title_field))

    @property
    def content(self) -> Any:
        """Texts and images of the items (`ItemContent`), read when they are asked for."""
        return self.dataset.content

    def with_new_items(self, tokens: Sequence[str], titles: Sequence[str], vectors: torch.Tensor) -> Recommender:
        """Return a recommender that ranks m more items beside the run's own.

        Args:
            tokens: (m,) their ids; none is one of the run's.
            titles: (m,).
            vectors: (m, d), of the kind of `item_vectors()`.
        """
        other, own = copy(self), self.item_vectors()
        assert own is not None
        places = range(self.n_items, self.n_items + len(tokens))
        other.n_items = self.n_items + len(tokens)
        other.item_tokens = np.concatenate([self.item_tokens, np.asarray(list(tokens), dtype=object)])
        other._item_ids = ChainMap(dict(zip(tokens, places, strict=True)), dict(self._item_ids))
        other._new_titles = dict(zip(places, titles, strict=True))
        vars(other).pop("_similarity", None)
        vars(other)["_scorer"] = self._scorer.with_item_vectors(torch.cat([own, vectors.to(own)]))
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
        return self._known_rows(known).histories_of(users)

    def _known_rows(self, known: str) -> KnownRows:
        if known not in self._known:
            self._known[known] = KnownRows(self.dataset, known)
        return self._known[known]

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
            DataError: a history is empty, or longer than `LONGEST_HISTORY`.
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
        with torch.no_grad(), self._reranking_of(masks, allowed):
            blocks = self._blocks(users, history, given is None, known)
            return self._collect(blocks, k, history.distinct(self.n_items) if masks else None, allowed, len(history))

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
        allowed[slice(None) if allow is None else np.asarray(allow, dtype=np.int64)] = True
        allowed[np.asarray([] if exclude is None else exclude, dtype=np.int64)] = False
        allowed[0] = False
        if not allowed.any():
            raise ConfigError("no item is left to recommend: what is allowed is excluded, too")
        return np.flatnonzero(allowed)

    @contextmanager
    def _reranking_of(self, masks: bool, allowed: np.ndarray | None) -> Iterator[None]:
        """Have a model that asks about a few items ask about those of the history, or not, and about allowed ones."""
        if not isinstance(self.model, RerankingModel):
            yield
            return
        before = vars(self.model).get("mask_history")
        if before is not None:
            self.model.mask_history = bool(masks)
        try:
            with self.model.choosing_from(allowed):
                yield
        finally:
            if before is not None:
                self.model.mask_history = before

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
        """
        self.check_k(k)
        return TopK(*self._similarity.top_k(np.asarray(items, dtype=np.int64), k, self._allowed(allow, exclude)))

    @cached_property
    def _similarity(self) -> ItemSimilarity:
        with torch.no_grad():
            vectors = self.item_vectors()
            return ItemSimilarity(
                profiles_of(self._profile_blocks()) if vectors is None else vectors,
                self.config["eval_memory_mb"] or 256,
            )

    def item_vectors(self) -> torch.Tensor | None:
        """Return the vectors (n_items, d) whose dot products with users' are the scores; None for other models."""
        with torch.no_grad():
            return self._scorer.item_vectors().detach() if dot_product_of(self.model) is not None else None

    def user_vectors(self, users: np.ndarray, known: str = "all") -> torch.Tensor:
        """Return the vectors (n, d) of users of the data, after what is known of them.

        Args:
            users: (n,) RecBole's ids; of a model of sequences, users with a history.
            known: as for `top_k`.

        Raises:
            ConfigError: the model does not score by vectors.
        """
        halves = dot_product_of(self.model)
        if halves is None:
            raise ConfigError(f"{self.config['model']} does not score by vectors of users and items")
        if self.is_sequential:
            cases: Any = self._sequential_cases(users, self.histories_of(users, known), True, known)
        else:
            cases = general_cases(self.dataset, users)
        found: torch.Tensor | None = None
        scorer = self._scorer.over(cases)
        with torch.no_grad():
            for rows in scorer.batches(scorer.order(np.zeros(len(users), dtype=np.int64))):
                vectors = scorer.user_vectors(rows)
                found = vectors.new_empty(len(users), vectors.shape[1]) if found is None else found
                found[torch.from_numpy(rows).to(found.device)] = vectors
        return torch.empty(0, 0) if found is None else found

    def users_with_history(self, known: str = "all") -> np.ndarray:
        """Return RecBole's ids (n,) of the users that can be recommended to: of a model of sequences, those of whom
        something is known."""
        ids = np.arange(1, len(self.user_tokens))
        return ids[self._known_rows(known).by_user.lengths[1:] > 0] if self.is_sequential else ids

    def _profile_blocks(self) -> Iterator[Block]:
        """Score all items for some users of the data, by the first scores of a model that asks about a few."""
        known = self._known_rows("all").by_user
        there = np.flatnonzero(known.lengths > 0)
        users = there[np.linspace(0, len(there) - 1, min(PROFILE_USERS, len(there))).astype(np.int64)]
        if not isinstance(self.model, RerankingModel):
            yield from self._blocks(users, self.histories_of(users), True, "all")
            return
        cases = self._sequential_cases(users, self.histories_of(users), True, "all")
        for rows in np.array_split(np.arange(len(users)), max(1, len(users) // 32)):
            yield rows, self.model.first_scores(cases[rows].to(self.config["device"]))

    # --------------------------------------------------------------------------------------------------------- scores

    def _blocks(self, users: np.ndarray | None, history: CSR, is_known: bool, known: str) -> Iterator[Block]:
        """Score all items for the rows, a block at a time."""
        if not self.is_sequential and (users is None or not is_known):
            yield from self._blocks_of_histories(history)
            return
        if self.is_sequential:
            cases: Any = self._sequential_cases(users, history, is_known, known)
        else:
            assert users is not None
            cases = general_cases(self.dataset, users)
        scorer = self._scorer.over(cases)
        try:
            for blocks in scorer.all_items(scorer.batches(scorer.order(np.zeros(len(history), dtype=np.int64)))):
                yield from blocks
        except KeyError as error:
            raise self._lacks(str(error.args[0]), users) from error

    def _sequential_cases(self, users: np.ndarray | None, history: CSR, is_known: bool, known: str) -> Any:
        if users is None:
            self._check_new_users(self.model)
        if is_known:
            assert users is not None
            columns, rows = self._columns, self._known_rows(known).rows_of(users)
        else:
            columns = {self.dataset.iid_field: torch.from_numpy(history.items)}
            rows = CSR(history.offsets, np.arange(len(history.items)))
        reads_none = users is None and isinstance(self.model, RerankingModel)  # checked above
        owners = np.zeros(len(history), dtype=np.int64) if reads_none else users
        return sequential_cases(self.dataset, with_negatives(columns, self.model, self.dataset), rows, owners)

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

    def _blocks_of_histories(self, history: CSR) -> Iterator[Block]:
        rows, hooks = HistoryRows(history, self.n_items), hooks_of(type(self.model))
        step = max(1, int((self.config["eval_memory_mb"] or 256) * 2**20) // (8 * self.n_items))
        for start in range(0, len(rows), step):
            places = np.arange(start, min(start + step, len(rows)))
            try:
                scores = hooks.scores_of_histories(self.model, rows.chosen(places).to(self.config["device"]))
            except NotImplementedError:
                raise self._needs_users() from None
            yield places, scores.reshape(len(places), self.n_items).contiguous()

    def _check_new_users(self, model: Any) -> None:
        """Refuse a reranker that reads what was written or trained of a user, or whose first stage does."""
        if not isinstance(model, RerankingModel):
            return
        first = getattr(model, "first_stage", None)
        if model.reads_users or (first is not None and first.config["MODEL_TYPE"] != ModelType.SEQUENTIAL):
            raise self._needs_users()
        if first is not None:
            Recommender(Run(first.config, first.dataset, first.model, self.run.splits, first.folder))._probe()

    def _probe(self) -> None:
        """Score one history of an unknown user."""
        columns = {self.dataset.iid_field: torch.ones(1, dtype=torch.int64)}
        cases = sequential_cases(self.dataset, columns, CSR.from_lists([[0]]), None)
        try:
            next(next(self._scorer.over(cases).all_items([np.zeros(1, dtype=np.int64)])))
        except KeyError as error:
            raise self._lacks(str(error.args[0]), None) from error

    def _lacks(self, field: str, users: np.ndarray | None) -> RecboleMMError:
        if users is None and field == self.dataset.uid_field:
            return self._needs_users()
        return ConfigError(
            f"{self.config['model']} reads {field!r} of each interaction, which a history of items alone does not "
            "have; recommend to users of the data"
        )

    def _needs_users(self) -> ConfigError:
        return ConfigError(
            f"{self.config['model']} recommends to users that it was trained on, by something of their own; for new "
            "users take a model of sequences, such as SASRec or Molar, or one of items alone, such as EASE, ItemKNN, "
            "MultiVAE or Pop"
        )

    # ----------------------------------------------------------------------------------------------------- the top k

    def _collect(
        self, blocks: Iterator[Block], k: int, masked: CSR | None, allowed: np.ndarray | None, count: int
    ) -> TopK:
        top = TopK(np.zeros((count, k), dtype=np.int64), np.full((count, k), -np.inf))
        columns = None if allowed is None else torch.from_numpy(allowed)
        available = self._available(masked, allowed, count)
        for rows, scores in blocks:
            mask(scores, rows, masked)
            if columns is not None:
                scores = scores[:, columns.to(scores.device)]
            if len(rows_with_nan(scores)):
                raise RecboleMMError(f"{self.config['model']} scores an item as NaN; it has diverged")
            best = top_columns(scores, min(k, scores.shape[1]))
            values = scores.gather(1, best).double().cpu().numpy()
            items = best.cpu().numpy() if allowed is None else allowed[best.cpu().numpy()]
            self._put(top, rows, items, values, available, masked, allowed)
        return top

    def _available(self, masked: CSR | None, allowed: np.ndarray | None, count: int) -> np.ndarray:
        """Return how many items (n,) can be recommended to each row."""
        total = self.n_items - 1 if allowed is None else len(allowed)
        if masked is None:
            return np.full(count, total)
        hidden = np.ones(len(masked.items), dtype=bool) if allowed is None else np.isin(masked.items, allowed)
        return total - np.bincount(masked.rows[hidden], minlength=count)

    def _put(
        self,
        top: TopK,
        rows: np.ndarray,
        items: np.ndarray,
        values: np.ndarray,
        available: np.ndarray,
        masked: CSR | None,
        allowed: np.ndarray | None,
    ) -> None:
        """Write the lists of a block; masked items are at -inf, and so may be others that the model puts there."""
        width = items.shape[1]
        finite = np.isfinite(values) | (values > 0)
        top.items[rows, :width] = np.where(finite, items, 0)
        top.scores[rows, :width] = np.where(finite, values, -np.inf)
        for place in np.flatnonzero(finite.sum(1) < np.minimum(width, available[rows])):
            row, start = rows[place], int(finite[place].sum())
            others = np.arange(1, self.n_items) if allowed is None else allowed
            taken = [items[place, :start], *([] if masked is None else [masked.take(rows[place : place + 1]).items])]
            left = np.setdiff1d(others, np.concatenate(taken))[: width - start]
            top.items[row, start : start + len(left)] = left


def _as_csr(histories: CSR | Sequence[Sequence[int]]) -> CSR:
    return histories if isinstance(histories, CSR) else CSR.from_lists(histories)
