"""What the folder of a finished run holds, read for a page. It needs no data, and runs no code of the folder."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from recbole.evaluator.register import smaller_metrics

from recbole_mm.config.yaml_settings import read_yaml
from recbole_mm.errors import CheckpointError, ConfigError, RecboleMMError
from recbole_mm.evaluation.per_user import FILE as PER_USER
from recbole_mm.evaluation.per_user import read_per_user
from recbole_mm.evaluation.significance import interval_of_mean
from recbole_mm.evaluation.slices import PREFIX, Targets, parts_of, slice_names, users_of_part
from recbole_mm.recommending.opening import finished_folder
from recbole_mm.runs.folder import CHECKPOINT, CONFIG, read_result
from recbole_mm.training.checkpoint import read_value

MOST_RUNS = 20
LONGEST_NAME = 60

Values = tuple[np.ndarray, np.ndarray]
"""Sorted users (n,), and a value of each (n,)."""


@dataclass
class RunFacts:
    """A finished run as a page shows it.

    Attributes:
        folder: its folder.
        name: its model; with a part of the folder's name where several runs are of one model.
        config: settings of `config.yaml`.
        result: `result.json`.
        per_user: its table of users; None without one.
        history: a record of each epoch: `epoch`, `train_loss`, and after a validation `valid_score`.
        best_epoch: whose weights it has; None where that is not known.
        notes: what is missing, and why.
    """

    folder: Path
    name: str
    config: dict[str, Any]
    result: dict[str, Any]
    per_user: pa.Table | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int | None = None
    notes: list[str] = field(default_factory=list)
    _by_part: dict[str, dict[str, dict[str, Values]]] = field(default_factory=dict)

    @property
    def metrics(self) -> dict[str, float]:
        """Test metrics."""
        return numbers(self.result.get("test_result"))

    @property
    def sampled(self) -> str:
        """How the candidates of the test were sampled, such as `uni20`; "" where every item was a candidate."""
        arguments = self.config.get("eval_args")
        mode = arguments.get("mode") if isinstance(arguments, dict) else None
        mode = mode.get("test") if isinstance(mode, dict) else mode
        return "" if mode in (None, "full") else str(mode)

    @cached_property
    def _cases(self) -> tuple[np.ndarray, np.ndarray]:
        """Users (n,), sorted, and the number (m,) of each case's user among them."""
        if self.per_user is None:
            return np.empty(0, dtype=str), np.empty(0, dtype=np.int64)
        coded = self.per_user["user_id"].combine_chunks().dictionary_encode()
        users, places = np.unique(coded.dictionary.to_numpy(zero_copy_only=False).astype(str), return_inverse=True)
        return users, places[coded.indices.to_numpy(zero_copy_only=False)]

    @property
    def users(self) -> np.ndarray:
        """The ranked users (n,), sorted."""
        return self._cases[0]

    def values(self, metric: str) -> np.ndarray | None:
        """Return the value (n,) of each user, the mean over the user's cases; None where there are none."""
        if self.per_user is None or metric not in self.per_user.column_names:
            return None
        cases = self._cases[1]
        return np.bincount(cases, weights=self.per_user[metric].to_numpy()) / np.bincount(cases)

    @cached_property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """Metric -> 95% interval over users, of the metrics that have a value per user."""
        return {
            metric: found
            for metric in self.metrics
            if (values := self.values(metric)) is not None and (found := interval(values)) is not None
        }

    @cached_property
    def ranks(self) -> np.ndarray:
        """Rank (n,) of each user's held-out item that is ranked first, in the best of the cases; 0 where unknown."""
        found = np.full(len(self.users), np.iinfo(np.int64).max)
        if self.per_user is None or "rank" not in self.per_user.column_names:
            return np.zeros(len(self.users), dtype=np.int64)
        ranks = self.per_user["rank"].fill_null(0).to_numpy().astype(np.int64)
        np.minimum.at(found, self._cases[1][ranks > 0], ranks[ranks > 0])
        found[found == np.iinfo(np.int64).max] = 0
        return found

    def place_of(self, user: str) -> int | None:
        """Return the number of a user among `users`; None for one that was not ranked."""
        place = int(np.searchsorted(self.users, user))
        return place if place < len(self.users) and self.users[place] == user else None

    def rank_of(self, user: str) -> int | None:
        """Return the rank of a user's held-out item; None where it is not known."""
        place = self.place_of(user)
        return None if place is None else int(self.ranks[place]) or None

    def cases_of(self, user: str) -> int:
        """Return how often a user was ranked."""
        place = self.place_of(user)
        return 0 if place is None else int((self._cases[1] == place).sum())

    def held_out(self, user: str) -> list[str]:
        """Return the held-out items of all cases of a user."""
        place = self.place_of(user)
        if place is None or self.per_user is None or "positives" not in self.per_user.column_names:
            return []
        lists = self.per_user["positives"].take(np.flatnonzero(self._cases[1] == place))
        return list(dict.fromkeys(str(item) for items in lists.to_pylist() for item in items or []))

    def by_part(self, metric: str) -> dict[str, dict[str, Values]]:
        """Return kind of slices -> part -> its users and their values, the mean over the user's targets in it."""
        if metric not in self._by_part:
            self._by_part[metric] = self._values_of_parts(metric)
        return self._by_part[metric]

    def _values_of_parts(self, metric: str) -> dict[str, dict[str, Values]]:
        table = self.per_user
        if table is None or metric not in table.column_names or "ranks" not in table.column_names:
            return {}
        users, cases = self._cases
        numbered = Targets.of(table, [metric], users=cases)
        targets = Targets(numbered.cases, cases, users, numbered.weights, numbered.values)
        found: dict[str, dict[str, Values]] = {}
        for kind in slice_names(table):
            of_targets = parts_of(table, kind)
            slices = self.result.get("slices")
            known = slices.get(kind) if isinstance(slices, dict) else None
            parts = list(known) if isinstance(known, dict) else sorted(set(of_targets.tolist()))
            found[kind] = {}
            for part in parts:
                its_users, values = users_of_part(targets, of_targets, part, [metric])
                found[kind][part] = its_users, values[metric]
        return found


def interval(values: np.ndarray) -> tuple[float, float] | None:
    """Return the 95% interval of a mean over users, of the values that are there; None of fewer than two."""
    values = values[np.isfinite(values)]
    return interval_of_mean(values, seed=0) if len(values) > 1 else None


def main_metric(runs: Sequence[RunFacts]) -> str:
    """Return the metric that figures show: what the first run chose its epoch by, if all runs have it."""
    first = str(runs[0].config.get("valid_metric")).lower()
    shared = [metric for metric in runs[0].metrics if all(metric in run.metrics for run in runs)]
    return first if first in shared or not shared else shared[0]


def read_runs(folders: Sequence[str | os.PathLike[str]]) -> list[RunFacts]:
    """Read finished runs, in their order.

    Raises:
        ConfigError: one is given twice, or there are too many.
        CheckpointError: a folder is missing, or not that of a finished run.
    """
    paths = [finished_folder(folder) for folder in folders]
    if len(paths) > MOST_RUNS:
        raise ConfigError(f"{len(paths)} runs are given; a report has {MOST_RUNS} at most")
    for place, path in enumerate(paths):
        if path.resolve() in [earlier.resolve() for earlier in paths[:place]]:
            raise ConfigError(f"{path} is given twice")
    runs = [_read_run(path) for path in paths]
    models = [run.name for run in runs]
    tails = [path.name.rpartition("-")[2] for path in paths]
    for run, model, tail in zip(runs, models, tails, strict=True):
        if models.count(model) > 1:
            run.name = f"{model} {tail if len(set(tails)) == len(tails) else run.folder.name}"
    return runs


def _read_run(path: Path) -> RunFacts:
    if not (path / CONFIG).is_file():
        raise CheckpointError(f"{path}: no {CONFIG}; give the folder of a finished run")
    result, config = read_result(path), read_yaml(path / CONFIG)
    name = str(config.get("model") or result.get("model") or path.name)[:LONGEST_NAME]
    run = RunFacts(path, name, config, result)
    if not run.metrics:
        raise CheckpointError(f"{path}: its result.json has no test metrics; run the model again")
    if (path / PER_USER).is_file():
        try:
            run.per_user = _checked(read_per_user(path), path, run.metrics)
        except RecboleMMError as error:
            run.notes.append(f"{run.name}: no values per user: {error}")
    else:
        run.notes.append(f"{run.name}: no {PER_USER}, so no intervals and no users; run it with save_per_user: True")
    if (path / CHECKPOINT).is_file():
        try:
            history = read_value(path / CHECKPOINT, "history")
            run.history = [record for record in history or [] if isinstance(record, dict)]
            best = read_value(path / CHECKPOINT, "best_epoch")
            run.best_epoch = best if isinstance(best, int) and best >= 0 else None
        except RecboleMMError as error:
            run.notes.append(f"{run.name}: no learning curve: {error}")
    return run


def _checked(table: pa.Table, path: Path, metrics: Iterable[str]) -> pa.Table:
    """Refuse a table that is not one of users' results, which a folder from anybody may hold."""
    number = pa.types.is_integer, pa.types.is_floating
    wanted: dict[str, tuple[Callable[[Any], bool], ...]] = {
        **{"user_id": (pa.types.is_string,), "rank": (pa.types.is_integer,), "ranks": (pa.types.is_integer,)},
        **{name: (pa.types.is_string,) for name in ("positives", *map(PREFIX.__add__, slice_names(table)))},
        **dict.fromkeys(metrics, number),
    }
    lists = [name for name in wanted if name in ("positives", "ranks") or name.startswith(PREFIX)]
    if "user_id" not in table.column_names or not len(table):
        raise CheckpointError(f"{path / PER_USER} has no user_id; run the model again")
    lengths = []
    for column in (column for column in table.schema if column.name in wanted):
        is_list = pa.types.is_list(column.type)
        kind = column.type.value_type if is_list else column.type
        if is_list != (column.name in lists) or not any(fits(kind) for fits in wanted[column.name]):
            raise CheckpointError(f"{path / PER_USER}: column {column.name} is of another kind; run the model again")
        if is_list:
            lengths.append(table[column.name].combine_chunks().value_lengths())
    if any(not length.equals(lengths[0]) or length.null_count for length in lengths):
        raise CheckpointError(f"{path / PER_USER}: its lists are of different lengths; run the model again")
    return table


def numbers(given: Any) -> dict[str, float]:
    """Return those entries of a mapping that are finite numbers; a folder that came from anybody may hold others.

    Example:
        >>> numbers({"ndcg@10": 0.25, "auc": None, "mrr@10": "<b>"})
        {'ndcg@10': 0.25}
    """
    entries = given.items() if isinstance(given, Mapping) else ()
    return {
        str(name): float(value)
        for name, value in entries
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    }


def is_bigger_better(metric: str) -> bool:
    """Return whether higher values of a metric are better."""
    return metric.lower().partition("@")[0] not in smaller_metrics
