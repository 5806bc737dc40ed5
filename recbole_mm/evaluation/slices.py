"""Slices: the metrics of parts of the ranked targets, such as those of items that are rare in training.

A kind of slices puts each target, a held-out item of a case, into one of its parts. A part's metric is the mean over
its targets, weighted as the overall metric weights them: a case counts 1, and so each of its m targets 1 / m. The mean
of a kind's parts by these weights is the overall metric. All of it is computed from ranks that the evaluation has.

Where a case has several targets, each is counted with its own share of the case's Recall, NDCG, Precision or MAP, which
are sums over targets; Hit and MRR, which the best target decides, count for all targets of a case alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from recbole_mm.evaluation.csr import CSR
from recbole_mm.evaluation.ranking import EvalUsers

PREFIX = "slice:"
"""Begins the names of the columns of `per_user.parquet` that hold the part of each target."""

NOT_METRICS = ("user_id", "n_positives", "rank", "positives", "ranks")


@dataclass(frozen=True)
class Slices:
    """One kind of slices.

    Attributes:
        name: such as `popularity` or `item.class`.
        parts: names of the parts, in their order.
        of_items: (item_num,) int64 part of each item; None where users decide.
        of_cases: (n,) int64 part of each ranked case; None where items decide.

    Example:
        >>> by_item = Slices("popularity", ["unseen", "1-4"], of_items=np.array([0, 1, 0]))
        >>> by_item.of_targets(CSR.from_lists([[1], [2, 1]]))
        array([1, 0, 1])
    """

    name: str
    parts: Sequence[str]
    of_items: np.ndarray | None = None
    of_cases: np.ndarray | None = None

    def of_targets(self, positives: CSR) -> np.ndarray:
        """(nnz,) part of each target of the cases."""
        if self.of_items is not None:
            return self.of_items[positives.items]
        assert self.of_cases is not None
        return np.repeat(self.of_cases, positives.lengths)

    def column(self, positives: CSR) -> pa.ListArray:
        """The names of the targets' parts, a list per case."""
        names = pa.DictionaryArray.from_arrays(
            pa.array(self.of_targets(positives), pa.int32()), pa.array(self.parts, pa.string())
        )
        return pa.ListArray.from_arrays(pa.array(positives.offsets, pa.int32()), names.dictionary_decode())


def slice_names(table: pa.Table) -> list[str]:
    """Names of the kinds of slices that a table of users' results holds."""
    return [name.removeprefix(PREFIX) for name in table.column_names if name.startswith(PREFIX)]


@dataclass(frozen=True)
class Targets:
    """The ranked targets of a table of users' results.

    Attributes:
        cases: (m,) int64 row of each target.
        users: (n,) int64 number of each row's user.
        names: the users by number, sorted; empty where only their numbers are known.
        weights: (m,) float64, 1 / number of targets of the row.
        values: metric -> (m,) float64, such that a row's value is the sum of `weights` * `values` of its targets.
    """

    cases: np.ndarray
    users: np.ndarray
    names: np.ndarray
    weights: np.ndarray
    values: Mapping[str, np.ndarray]

    @classmethod
    def of(cls, table: pa.Table, metrics: Sequence[str] | None = None, users: np.ndarray | None = None) -> Targets:
        """Read the targets of a table as `per_user_table` makes it.

        Args:
            table: with the lists `ranks`.
            metrics: columns to read; None: all.
            users: (n,) number of each row's user; None: they are numbered by name.
        """
        names = np.empty(0, dtype=str)
        if users is None:
            names, users = np.unique(table["user_id"].to_numpy().astype(str), return_inverse=True)
        lists = table["ranks"].combine_chunks()
        lengths = lists.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
        ranks = CSR(np.concatenate([[0], np.cumsum(lengths)]), lists.flatten().to_numpy(zero_copy_only=False))
        if metrics is None:
            metrics = [name for name in table.column_names if name not in NOT_METRICS and not name.startswith(PREFIX)]
        values = {name: target_values(name, ranks, table[name].to_numpy()) for name in metrics}
        return cls(ranks.rows, users, names, 1 / np.repeat(lengths, lengths), values)


def target_values(metric: str, ranks: CSR, of_cases: np.ndarray) -> np.ndarray:
    """Return what each target counts (m,) in a metric: the mean over a case's targets is the case's value.

    Args:
        metric: as RecBole names it, such as `ndcg@10`.
        ranks: rank of each case's targets, from 1.
        of_cases: (n,) value of each case.

    Example:
        >>> target_values("recall@10", CSR.from_lists([[3, 12]]), np.array([0.5]))
        array([1., 0.])
    """
    lengths = np.repeat(ranks.lengths, ranks.lengths)
    base, _, k = metric.partition("@")
    if base not in ("recall", "ndcg", "precision", "map") or np.all(ranks.lengths == 1):
        return np.repeat(of_cases, ranks.lengths)
    cut = int(k)
    hit = ranks.items <= cut
    if base == "recall":
        return hit.astype(np.float64)
    if base == "precision":
        return hit * lengths / cut
    if base == "ndcg":
        ideal = np.cumsum(1 / np.log2(np.arange(2, cut + 2)))[np.minimum(lengths, cut) - 1]
        return hit * lengths / np.log2(ranks.items + 1.0) / ideal
    order = np.lexsort((ranks.items, ranks.rows))
    place = np.empty(len(order))
    place[order] = np.arange(len(order)) - np.repeat(ranks.offsets[:-1], ranks.lengths) + 1
    return hit * lengths * place / ranks.items / np.minimum(lengths, cut)


def slice_results(table: pa.Table, kinds: Sequence[Slices], cases: EvalUsers, digits: int) -> dict[str, dict[str, Any]]:
    """Return kind -> part -> `users`, `targets`, `weight` and every metric, in their order; empty parts are left out.

    Args:
        table: users' results, from `per_user_table`.
        kinds: to cut them by.
        cases: that the table is of.
        digits: decimal places of a metric.
    """
    targets = Targets.of(table, users=cases.user_ids)
    return {kind.name: _results(targets, kind.parts, kind.of_targets(cases.positives), digits) for kind in kinds}


def parts_of(table: pa.Table, name: str) -> np.ndarray:
    """(m,) name of each target's part, of one kind of slices."""
    return table[PREFIX + name].combine_chunks().flatten().to_numpy(zero_copy_only=False).astype(object)


def _results(targets: Targets, parts: Sequence[str], codes: np.ndarray, digits: int) -> dict[str, Any]:
    count = np.bincount(codes, minlength=len(parts))
    weight = np.bincount(codes, weights=targets.weights, minlength=len(parts))
    user_num = int(targets.users.max(initial=0)) + 1
    pairs = np.sort(codes * user_num + targets.users[targets.cases])  # numpy's unique takes a minute for ten million
    users = np.bincount(pairs[np.diff(pairs, prepend=-1) > 0] // user_num, minlength=len(parts))
    means = {name: _means(name, targets, codes, len(parts)) for name in targets.values}
    return {
        part: {
            "users": int(users[number]),
            "targets": int(count[number]),
            "weight": round(float(weight[number]), 6),
            **{
                name: None if np.isnan(mean[number]) else round(float(mean[number]), digits)
                for name, mean in means.items()
            },
        }
        for number, part in enumerate(parts)
        if count[number]
    }


def _means(metric: str, targets: Targets, codes: np.ndarray, parts: int) -> np.ndarray:
    """(parts,) mean of a metric over the targets of each part; NaN for an empty one."""
    weights = metric_weights(metric, targets)
    sums = np.bincount(codes, weights=weights * _without_nan(metric, targets.values[metric]), minlength=parts)
    total = np.bincount(codes, weights=weights, minlength=parts)
    return np.divide(sums, total, out=np.full(parts, np.nan), where=total > 0)


def metric_weights(metric: str, targets: Targets) -> np.ndarray:
    """(m,) weight of each target in a metric: RecBole averages GAUC over targets, leaving out what has no value."""
    return (~np.isnan(targets.values[metric])).astype(np.float64) if metric == "gauc" else targets.weights


def _without_nan(metric: str, values: np.ndarray) -> np.ndarray:
    """The values of a metric, with 0 where there is none; their weight is 0, too."""
    return np.nan_to_num(values) if metric == "gauc" else values


def users_of_part(
    targets: Targets, found: np.ndarray, part: str, metrics: Sequence[str]
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return the sorted users (u,) with a target in a part, and metric -> the mean of each one's targets there.

    Args:
        targets: of a run.
        found: part of each, from `parts_of`.
        part: its name.
        metrics: among the targets' values.
    """
    mine = found == part
    users, rows = np.unique(targets.users[targets.cases[mine]], return_inverse=True)
    values = {}
    for metric in metrics:
        weights = metric_weights(metric, targets)[mine]
        total = np.bincount(rows, weights=weights, minlength=len(users))
        each = weights * _without_nan(metric, targets.values[metric][mine])
        sums = np.bincount(rows, weights=each, minlength=len(users))
        values[metric] = np.divide(sums, total, out=np.full(len(users), np.nan), where=total > 0)
    return targets.names[users], values
