"""Collects what RecBole's ranking metrics need, from ranks that are counted instead of sorted.

The rule for equal scores, everywhere: **an item with the same score as a positive counts as ranked ahead of it**, so
that a model which scores everything alike gets no credit; positives of the same user that tie among themselves are
ordered by item id; in lists of recommended items (coverage, popularity, Gini) the lower item id comes first. RecBole's
own order of equal scores is that of `torch.topk` and changes with `topk`. Without ties both give the same metrics, bit
for bit.

Masked items never count. An unmasked item with the score -inf is an ordinary item with the lowest score.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from recbole.evaluator.collector import DataStruct
from recbole.evaluator.register import Register

from recbole_mm.errors import ConfigError, RecboleMMError
from recbole_mm.evaluation.csr import CSR, offsets_of
from recbole_mm.evaluation.rank_counting import count_above, count_at_least, rows_with_nan, scratch_for, top_columns

if TYPE_CHECKING:
    from recbole_mm.config.resolved import Config

RANKS = "rec.ranks"
"""Key of our own in the `DataStruct`: (nnz,) int64 rank of every positive, in the order of `EvalUsers.positives`."""

RANKINGS = "rec.rankings"
"""Another one, where it is asked for: a `CSR` of the best items of each row by score, lower ids first in ties, 0 where
nothing is left: as many as the longest of `topk` and the row's own positives together."""


@dataclass(frozen=True)
class TrainCounts:
    """Number of training interactions of each item and each user.

    Attributes:
        items: (item_num,) int64 by item id.
        users: (user_num,) int64 by user id.

    Example:
        >>> TrainCounts.of(np.array([1, 1, 2]), np.array([3, 1, 3]), user_num=3, item_num=4).items
        array([0, 1, 0, 2])
    """

    items: np.ndarray
    users: np.ndarray

    @classmethod
    def of(cls, user_ids: np.ndarray, item_ids: np.ndarray, user_num: int, item_num: int) -> TrainCounts:
        """Count the (user, item) pairs of the training data."""
        return cls(np.bincount(item_ids, minlength=item_num), np.bincount(user_ids, minlength=user_num))


class RankingCollector:
    """Feeds RecBole's `Evaluator` from blocks of scores.

        collector = RankingCollector(config)
        collector.begin(positives, masked=masked, width=item_num)
        for rows, scores in blocks:
            collector.collect(scores, rows)
        Evaluator(config).evaluate(collector.result())

    Args:
        config: `metrics` and `topk`, as RecBole names them.
        item_num, user_num: number of ids, padding id 0 included; `catalogue_facts` makes of them, and of the next, what
            coverage, Gini and the popularity metrics see.
        train_counts: how often each id is in the training data.
        rankings: whether to collect `RANKINGS`.

    Raises:
        ConfigError: a metric is not a ranking metric.
    """

    def __init__(
        self,
        config: Config,
        *,
        item_num: int | None = None,
        user_num: int | None = None,
        train_counts: TrainCounts | None = None,
        rankings: bool = False,
    ) -> None:
        self.needs = Register(config)
        if self.needs.need("rec.score"):
            raise ConfigError(
                "metrics: AUC, LogLoss, MAE and RMSE need labels (eval_args.mode: labeled), not a ranking; remove them"
            )
        self.max_k = max(config["topk"])
        self.rankings = rankings
        items, users = (None, None) if train_counts is None else (train_counts.items, train_counts.users)
        self._facts = {**catalogue_facts("items", item_num, items), **catalogue_facts("users", user_num, users)}

    def begin(self, positives: CSR, *, masked: np.ndarray, width: int, names: np.ndarray | None = None) -> None:
        """Start an evaluation.

        Args:
            positives: the columns of the score blocks that hold each row's positives: distinct, ascending.
            masked: (n,) number of columns of each row that are masked (set to -inf), padding included.
            width: number of columns.
            names: (n,) the user of each row, for error messages.
        """
        self._positives, self._masked, self._width, self._names = positives, masked, width, names
        self._at_least = np.zeros(len(positives.items), dtype=np.int64)
        self._above = np.zeros_like(self._at_least)
        self._scores = np.zeros(len(positives.items), dtype=np.float64)
        depths = np.minimum(width, self.max_k + positives.lengths) * self.rankings
        self._best = CSR(offsets_of(depths), np.zeros(depths.sum(), dtype=np.int64))
        self._items = np.zeros((len(positives) if self.needs.need("rec.items") else 0, self.max_k), dtype=np.int64)
        if len(self._items) and self.max_k > (fewest := width - int(masked.max())):
            raise ConfigError(
                f"topk: lists of {self.max_k} items cannot be filled: a user has {fewest} items to rank; lower topk or "
                "leave out the metrics over recommended items"
            )
        self._scratch: torch.Tensor | None = None

    def collect(self, scores: torch.Tensor, rows: np.ndarray, items: np.ndarray | None = None) -> None:
        """Collect the scores of some rows.

        Args:
            scores: (B, width) floating, masked columns at -inf; on any device; not changed.
            rows: (B,) rows of `positives`; every row is collected once, in any order.
            items: (B, width) item id of each column; None: the column is the id.

        Raises:
            RecboleMMError: a score is NaN; names the user.
        """
        bad = rows_with_nan(scores)
        if len(bad):
            row = rows[int(bad[0])]
            name = row if self._names is None else self._names[row]
            raise RecboleMMError(
                f"the model scored an item of user {name} as NaN; it has diverged, lower learning_rate"
            )
        if self._scratch is None or self._scratch.dtype != scores.dtype or self._scratch.device != scores.device:
            self._scratch = scratch_for(scores)
        places = self._positives.positions(rows)
        lengths = self._positives.lengths_of(rows)
        columns, inside = _padded(self._positives.items[places], lengths)
        thresholds = scores.gather(1, torch.from_numpy(columns).to(scores.device))
        self._scores[places] = thresholds.cpu().numpy()[inside]
        self._at_least[places] = count_at_least(scores, thresholds, self._scratch).cpu().numpy()[inside]
        if self.needs.need("rec.meanrank"):
            self._above[places] = count_above(scores, thresholds, self._scratch).cpu().numpy()[inside]
        if len(self._items):
            best = top_columns(scores, self.max_k).cpu().numpy()
            self._items[rows] = best if items is None else np.take_along_axis(items, best, axis=1)
        if self.rankings:
            depths = self._best.lengths_of(rows)[:, None]
            best = top_columns(scores, int(depths.max())).cpu().numpy()
            place = np.arange(best.shape[1])
            left = place < (self._width - self._masked[rows])[:, None]
            found = np.where(left, best if items is None else np.take_along_axis(items, best, axis=1), 0)
            self._best.items[self._best.positions(rows)] = found[place < depths]

    def put_together(self, total: Callable[[np.ndarray], np.ndarray]) -> None:
        """Add the rows that other processes have collected.

        Args:
            total: returns the sum of an array over all processes, each of which calls it with its own array. Rows that
                a process has not collected are zero there, so every number stays exactly as it was collected.
        """
        self._at_least, self._scores = total(self._at_least), total(self._scores)
        if self.needs.need("rec.meanrank"):
            self._above = total(self._above)
        if self.needs.need("rec.items"):
            self._items = total(self._items)
        if self.rankings:
            self._best = CSR(self._best.offsets, total(self._best.items))

    def result(self) -> DataStruct:
        """What RecBole's `Evaluator` wants, and the rank of every positive under `RANKS`."""
        struct = DataStruct()
        for key, value in self._facts.items():
            struct.set(key, value)
        ranks = self._ranks()
        struct.set(RANKS, torch.from_numpy(ranks))
        if self.needs.need("rec.topk"):
            struct.set("rec.topk", torch.from_numpy(self._hits(ranks)))
        if self.needs.need("rec.meanrank"):
            struct.set("rec.meanrank", torch.from_numpy(self._mean_ranks()))
        if self.needs.need("rec.items"):
            struct.set("rec.items", torch.from_numpy(self._items))
        if self.rankings:
            struct.set(RANKINGS, self._best)
        return struct

    def _at_minus_infinity(self, counts: np.ndarray) -> np.ndarray:
        """`counts` of scores >= a positive's, less the masked ones, which count only against a positive at -inf."""
        return counts - np.where(np.isneginf(self._scores), np.repeat(self._masked, self._positives.lengths), 0)

    def _ranks(self) -> np.ndarray:
        """(nnz,) 1 + the number of other items ahead, by the rule for equal scores above."""
        rows, lengths = self._positives.rows, self._positives.lengths
        if np.all(lengths == 1):
            return self._at_minus_infinity(self._at_least)
        order = np.lexsort((self._positives.items, -self._scores, rows))
        # Within a row, best first: `place` positives stand here or ahead by score and id, `tied` have at least this
        # score. Whatever else has at least this score is no positive, and ranks ahead.
        place = np.arange(len(order)) - np.repeat(self._positives.offsets[:-1], lengths) + 1
        starts_group = np.ones(len(order), dtype=bool)
        starts_group[1:] = self._scores[order][1:] != self._scores[order][:-1]
        starts_group[self._positives.offsets[:-1][lengths > 0]] = True
        group = np.cumsum(starts_group) - 1
        last_of_group = np.append(np.flatnonzero(starts_group)[1:] - 1, len(order) - 1)
        tied = place[last_of_group[group]]
        ranks = np.empty(len(order), dtype=np.int64)
        ranks[order] = self._at_minus_infinity(self._at_least)[order] - tied + place
        return ranks

    def _hits(self, ranks: np.ndarray) -> np.ndarray:
        """(n, max k + 1) int32: whether a positive is at each rank, then the number of positives."""
        hits = np.zeros((len(self._positives), self.max_k + 1), dtype=np.int32)
        seen = ranks <= self.max_k
        hits[self._positives.rows[seen], ranks[seen] - 1] = 1
        hits[:, -1] = self._positives.lengths
        return hits

    def _mean_ranks(self) -> np.ndarray:
        """(n, 3) float32: sum of the positives' ranks, equal scores sharing their mean rank; items; positives."""
        shared = self._above + (self._at_minus_infinity(self._at_least) - self._above + 1) / 2
        sums = np.bincount(self._positives.rows, weights=shared, minlength=len(self._positives))
        return np.stack([sums, self._width - self._masked, self._positives.lengths], axis=1).astype(np.float32)


def catalogue_facts(name: str, num: int | None, counts: np.ndarray | None) -> dict[str, Any]:
    """Return the numbers of all items or users that RecBole's metrics need, without padding.

    RecBole counts padding as an item, so that a coverage of 1 is impossible, and does not count items without a
    training interaction among those of the long tail.

    Args:
        name: `items` or `users`.
        num: number of ids, padding included; None leaves it out.
        counts: (num,) number of training interactions of each id; None leaves them out.

    Returns:
        `data.num_<name>`, and `data.count_<name>`: id -> number of training interactions, for every id but padding.

    Example:
        >>> catalogue_facts("items", 3, np.array([0, 5, 2]))
        {'data.num_items': 2, 'data.count_items': Counter({1: 5, 2: 2})}
    """
    facts: dict[str, Any] = {} if num is None else {f"data.num_{name}": num - 1}
    if counts is not None:
        facts[f"data.count_{name}"] = Counter(dict(enumerate(counts[1:].tolist(), start=1)))
    return facts


def _padded(values: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Flat lists as a (B, longest) matrix, padded with the list's first value, and where it holds values (bool)."""
    width = int(lengths.max(initial=1))
    if width == 1:
        return values.reshape(-1, 1), np.ones((len(values), 1), dtype=bool)
    inside = np.arange(width) < lengths[:, None]
    matrix = np.zeros(inside.shape, dtype=np.int64)
    matrix[inside] = values
    return matrix, inside
