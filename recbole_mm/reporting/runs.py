"""What the folder of a finished run holds, read for a page. It needs no data, and runs no code of the folder."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
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
from recbole_mm.evaluation.significance import interval_of_mean, values_by_user
from recbole_mm.recommending.opening import finished_folder
from recbole_mm.runs.folder import CHECKPOINT, CONFIG, read_result
from recbole_mm.training.checkpoint import read_value

MOST_RUNS = 20


@dataclass
class RunFacts:
    """A finished run as a page shows it.

    Attributes:
        folder: its folder.
        name: its model; with the folder's name where several runs are of one model.
        config: settings of `config.yaml`.
        result: `result.json`.
        per_user: its table of users; None without one.
        history: a record of each epoch: `epoch`, `train_loss`, and after a validation `valid_score`.
        notes: what is missing, and why.
    """

    folder: Path
    name: str
    config: dict[str, Any]
    result: dict[str, Any]
    per_user: pa.Table | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def metrics(self) -> dict[str, float]:
        """Test metrics."""
        return numbers(self.result.get("test_result"))

    @property
    def valid_metric(self) -> str:
        """Metric that the validation chose by, in lower case, or else the first one that was tested."""
        named = str(self.config.get("valid_metric")).lower()
        return named if named in self.metrics else next(iter(self.metrics), named)

    @cached_property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """Metric -> 95% interval over users, of the metrics that have a value per user."""
        if self.per_user is None:
            return {}
        there = [metric for metric in self.metrics if metric in self.per_user.column_names]
        _, values = values_by_user(self.folder, there)
        finite = {metric: column[np.isfinite(column)] for metric, column in values.items()}
        return {metric: interval_of_mean(column, seed=0) for metric, column in finite.items() if len(column) > 1}

    @cached_property
    def ranks(self) -> dict[str, int]:
        """User -> rank of the held-out item that is ranked first, in the best of the user's cases."""
        if self.per_user is None or "rank" not in self.per_user.column_names:
            return {}
        found: dict[str, int] = {}
        columns = self.per_user["user_id"].to_pylist(), self.per_user["rank"].to_pylist()
        for user, rank in zip(*columns, strict=True):
            if rank is not None and rank > 0:
                found[str(user)] = min(rank, found.get(str(user), rank))
        return found

    @cached_property
    def held_out(self) -> dict[str, list[str]]:
        """User -> held-out items of all cases."""
        if self.per_user is None or "positives" not in self.per_user.column_names:
            return {}
        found: dict[str, list[str]] = {}
        columns = self.per_user["user_id"].to_pylist(), self.per_user["positives"].to_pylist()
        for user, items in zip(*columns, strict=True):
            known = found.setdefault(str(user), [])
            known += [item for item in items or [] if item not in known]
        return found


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
    for run, model in zip(runs, models, strict=True):
        if models.count(model) > 1:
            run.name = f"{model} ({run.folder.name})"
    return runs


def _read_run(path: Path) -> RunFacts:
    if not (path / CONFIG).is_file():
        raise CheckpointError(f"{path}: no {CONFIG}; give the folder of a finished run")
    result, config = read_result(path), read_yaml(path / CONFIG)
    run = RunFacts(path, str(config.get("model") or result.get("model") or path.name), config, result)
    if not run.metrics:
        raise CheckpointError(f"{path}: its result.json has no test metrics; run the model again")
    if (path / PER_USER).is_file():
        try:
            run.per_user = _checked(read_per_user(path), path)
        except RecboleMMError as error:
            run.notes.append(f"{run.name}: no values per user: {error}")
    else:
        run.notes.append(f"{run.name}: no {PER_USER}, so no intervals and no users; run it with save_per_user: True")
    if (path / CHECKPOINT).is_file():
        try:
            history = read_value(path / CHECKPOINT, "history")
            run.history = [record for record in history or [] if isinstance(record, dict)]
        except RecboleMMError as error:
            run.notes.append(f"{run.name}: no learning curve: {error}")
    return run


def _checked(table: pa.Table, path: Path) -> pa.Table:
    if "user_id" not in table.column_names:
        raise CheckpointError(f"{path / PER_USER} has no column user_id; run the model again")
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
