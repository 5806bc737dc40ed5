"""Metric values of every ranked user, as one Parquet table per run: the data of paired tests and slices."""

from __future__ import annotations

import hashlib
import inspect
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pyarrow as pa
from recbole.evaluator import Evaluator
from recbole.evaluator.base_metric import TopkMetric
from recbole.evaluator.collector import DataStruct
from recbole.evaluator.metrics import GAUC

from recbole_mm.errors import DataError
from recbole_mm.evaluation.collector import RANKS
from recbole_mm.evaluation.csr import CSR
from recbole_mm.evaluation.ranking import EvalUsers
from recbole_mm.evaluation.slices import PREFIX, Slices
from recbole_mm.utils.arrays import sorted_distinct
from recbole_mm.utils.files import read_parquet, write_parquet

if TYPE_CHECKING:
    from recbole_mm.config.resolved import Config

FILE = "per_user.parquet"


def per_user_values(config: Config, struct: DataStruct) -> dict[str, np.ndarray]:
    """Return the values (n,) float64 of every row, for every top-k metric and k of `config` (`ndcg@10`), and `gauc`.

    The values are those of RecBole's metric classes before they are averaged, so the mean of a column is the reported
    metric. `gauc` is the AUC of each row, equal scores counted half, NaN for one without a negative; RecBole averages
    it by the number of positives. Metrics of a whole set of lists (coverage, Gini, ...) have no value per user and are
    left out.
    """
    evaluator = Evaluator(config)
    columns = {}
    for name in evaluator.metrics:
        metric = evaluator.metric_class[name]
        if isinstance(metric, GAUC):
            columns[name] = _auc(struct.get("rec.meanrank").numpy().astype(np.float64))
        if not isinstance(metric, TopkMetric):
            continue
        hits, n_positives = metric.used_info(struct)
        wants_lengths = len(inspect.signature(metric.metric_info).parameters) == 2
        values = metric.metric_info(hits, n_positives) if wants_lengths else metric.metric_info(hits)
        for k in config["topk"]:
            columns[f"{name}@{k}"] = values[:, k - 1].astype(np.float64)
    return columns


def _auc(mean_ranks: np.ndarray) -> np.ndarray:
    """Return the AUC (n,) of each row, of (n, 3): sum of the positives' ranks, ranked items, positives.

    A positive of rank r among the negatives alone is ahead of all but r - 1 of them; its rank among all items is higher
    by the positives ahead, which are 0 + 1 + ... over a row.
    """
    rank_sum, items, positives = mean_ranks.T
    pairs = positives * (items - positives)
    behind = rank_sum - positives * (positives + 1) / 2
    return 1 - np.divide(behind, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)


def ranked_digest(run_dir: str | os.PathLike) -> str | None:
    """Return a hash of a run's ranked users and their held-out items, in any order; None where the table lacks them.

    Raises:
        DataError: there is no table, or it cannot be read.
    """
    table = read_per_user(run_dir)
    if "positives" not in table.column_names:
        return None
    lists = table["positives"].combine_chunks()
    users = np.repeat(_hashes(table["user_id"]), lists.value_lengths().to_numpy(zero_copy_only=False))
    # Odd multipliers keep apart what a plain sum of two hashes would confuse.
    pairs = users * np.uint64(0x9E3779B97F4A7C15) + _hashes(lists.flatten()) * np.uint64(0xC2B2AE3D27D4EB4F)
    return hashlib.sha256(sorted_distinct(pairs).astype("<u8").tobytes()).hexdigest()


def _hashes(tokens: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """uint64 hash of each text, the same on every machine."""
    values = tokens.to_numpy() if isinstance(tokens, pa.ChunkedArray) else tokens.to_numpy(zero_copy_only=False)
    return pd.util.hash_array(values.astype(object))


def per_user_table(
    config: Config,
    users: EvalUsers,
    struct: DataStruct,
    item_tokens: Sequence[str] | None = None,
    slices: Sequence[Slices] = (),
) -> pa.Table:
    """Build a table with one row per ranked case, in the order of `users`.

    Columns: `user_id` (its token where `users.user_tokens` is known), `n_positives`, `rank` (of the positive ranked
    first, counted from 1), the columns of `per_user_values`, then the lists `positives` (item ids), `ranks` and, for
    each kind of slices, `slice:<kind>` (the part of each positive).

    Args:
        config: `metrics` and `topk`.
        users: the ranked cases.
        struct: the result of `rank_users` for them.
        item_tokens: (item_num,) item ids of the data files by RecBole's ids; None: RecBole's ids.
        slices: kinds of slices of these cases.
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
            **{PREFIX + kind.name: kind.column(users.positives) for kind in slices},
        }
    )


def write_per_user(path: str | os.PathLike, table: pa.Table) -> None:
    """Write the table as Parquet; a reader never sees half a file.

    Raises:
        DiskError: it cannot be written.
    """
    write_parquet(Path(path), table)


def read_per_user(path: str | os.PathLike) -> pa.Table:
    """Read the table of a run folder, or a file of such a table.

    Raises:
        DataError: there is none, or it cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        path = path / FILE
    if not path.is_file():
        raise DataError(f"{path} does not exist; run the model again with save_per_user: True")
    try:
        return read_parquet(path)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read as Parquet ({str(error).splitlines()[0]}); run the model again"
        ) from error
