"""Every ranked user's own metric values, as one Parquet table per run: what paired tests and slices are made of."""

from __future__ import annotations

import inspect
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from recbole.evaluator import Evaluator
from recbole.evaluator.base_metric import TopkMetric
from recbole.evaluator.collector import DataStruct

from recbole_mm.errors import DataError
from recbole_mm.evaluation.collector import RANKS
from recbole_mm.evaluation.csr import CSR
from recbole_mm.evaluation.ranking import EvalUsers

FILE = "per_user.parquet"


def per_user_values(config: Any, struct: DataStruct) -> dict[str, np.ndarray]:
    """`ndcg@10` and so on: (n,) float64 value of every row, for every top-k metric and k of `config`.

    The values are those of RecBole's metric classes before they are averaged, so the mean of a column is the reported
    metric. Metrics of a whole set of lists (coverage, Gini, GAUC, ...) have no value per user and are left out.
    """
    evaluator = Evaluator(config)
    columns = {}
    for name in evaluator.metrics:
        metric = evaluator.metric_class[name]
        if not isinstance(metric, TopkMetric):
            continue
        hits, n_positives = metric.used_info(struct)
        wants_lengths = len(inspect.signature(metric.metric_info).parameters) == 2
        values = metric.metric_info(hits, n_positives) if wants_lengths else metric.metric_info(hits)
        for k in config["topk"]:
            columns[f"{name}@{k}"] = values[:, k - 1].astype(np.float64)
    return columns


def per_user_table(
    config: Any, users: EvalUsers, struct: DataStruct, item_tokens: np.ndarray | None = None
) -> pa.Table:
    """One row per ranked case, in the order of `users`.

    Columns: `user_id` (its id in the data files where `users.user_tokens` is known), `n_positives`, `rank` (of the
    positive ranked first, counted from 1), the columns of `per_user_values`, then the lists `positives` (item ids) and
    `ranks` (of each).

    Args:
        config: `metrics` and `topk`.
        users: what was ranked.
        struct: what `rank_users` gave for it.
        item_tokens: (item_num,) item ids of the data files by RecBole's ids; None: RecBole's ids.
    """
    ranks = CSR(users.positives.offsets, struct.get(RANKS).numpy())
    first = np.minimum.reduceat(ranks.items, ranks.offsets[:-1]) if len(ranks) else ranks.items
    items = users.positives.items if item_tokens is None else np.asarray(item_tokens)[users.positives.items]
    offsets = pa.array(ranks.offsets, pa.int32())
    return pa.table(
        {
            "user_id": pa.array(np.asarray(users.names).astype(str), pa.string()),
            "n_positives": pa.array(ranks.lengths, pa.int32()),
            "rank": pa.array(first, pa.int32()),
            **{name: pa.array(values) for name, values in per_user_values(config, struct).items()},
            "positives": pa.ListArray.from_arrays(offsets, pa.array(items.astype(str), pa.string())),
            "ranks": pa.ListArray.from_arrays(offsets, pa.array(ranks.items, pa.int32())),
        }
    )


def write_per_user(path: str | os.PathLike, table: pa.Table) -> None:
    """Write the table as Parquet; a reader never sees half a file."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        pq.write_table(table, partial, compression="zstd")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def read_per_user(path: str | os.PathLike) -> pa.Table:
    """The table of a run folder or of a file in it.

    Raises:
        DataError: there is none, or it cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        path = path / FILE
    if not path.is_file():
        raise DataError(f"{path} does not exist; run the model again with save_per_user: True")
    try:
        return pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path} cannot be read as Parquet ({str(error).splitlines()[0]}); run the model again"
        ) from error
