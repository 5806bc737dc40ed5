"""The values of a batch as a table, on their way back from a worker: the same bits, and nothing that is unpickled."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from recbole_mm import errors
from recbole_mm.artifacts.executor import Failure
from recbole_mm.artifacts.store import TEXT, VECTOR_DTYPES, Value
from recbole_mm.errors import RecboleMMError

SCHEMA = pa.schema([("batch", pa.int64()), ("place", pa.int32()), ("kind", pa.string()), ("value", pa.large_binary())])
"""A row is a value: which batch, its place there, `text`, `float32`, `float16`, `failure`, `told` or `error`, bytes."""

FAILURE, TOLD, ERROR = "failure", "told", "error"


@dataclass
class Done:
    """A batch that has come back.

    Attributes:
        outcomes: in the order of its inputs; empty after an error.
        told: what the worker told of it.
        error: what the worker raised.
    """

    outcomes: list[Value | Failure] = field(default_factory=list)
    told: dict[str, Any] = field(default_factory=dict)
    error: Exception | None = None


def to_table(batch: int, outcomes: Sequence[Value | Failure], told: Mapping[str, Any]) -> pa.Table:
    """A batch's outcomes as a table of `SCHEMA`."""
    rows = [_packed(outcome) for outcome in outcomes]
    rows += [(TOLD, json.dumps(dict(told)).encode())] if told else []
    return _table(batch, rows)


def error_table(batch: int, error: Exception, where: str, trace: str = "") -> pa.Table:
    """An exception in place of a batch's outcomes."""
    return _table(batch, [(ERROR, json.dumps([type(error).__name__, f"{error}{trace}", where]).encode())])


def _table(batch: int, rows: Sequence[tuple[str, bytes]]) -> pa.Table:
    kinds, values = [kind for kind, _ in rows], [value for _, value in rows]
    columns = [[batch] * len(rows), range(len(rows)), kinds, values]
    return pa.table([pa.array(column, of.type) for column, of in zip(columns, SCHEMA)], schema=SCHEMA)


def _packed(outcome: Value | Failure) -> tuple[str, bytes]:
    if isinstance(outcome, Failure):
        return FAILURE, outcome.reason.encode("utf-8", "surrogatepass")
    if isinstance(outcome, str):
        return TEXT, outcome.encode("utf-8", "surrogatepass")
    vector = np.asarray(outcome)
    if vector.ndim != 1 or vector.dtype.name not in VECTOR_DTYPES:
        raise TypeError(f"a value is a text or a 1-D float32 or float16 array, not {vector.dtype} of {vector.shape}")
    return vector.dtype.name, vector.astype(VECTOR_DTYPES[vector.dtype.name], copy=False).tobytes()


def from_table(table: pa.Table) -> dict[int, Done]:
    """Batch -> what has come of it."""
    found: dict[int, Done] = {}
    for row in table.to_pylist():  # rows of a batch stay in order
        done = found.setdefault(row["batch"], Done())
        if row["kind"] == TOLD:
            done.told = json.loads(row["value"])
        elif row["kind"] == ERROR:
            done.error = raised(*json.loads(row["value"]))
        else:
            done.outcomes.append(_unpacked(row["kind"], row["value"]))
    return found


def _unpacked(kind: str, value: bytes) -> Value | Failure:
    if kind == FAILURE:
        return Failure(value.decode("utf-8", "surrogatepass"))
    if kind == TEXT:
        return value.decode("utf-8", "surrogatepass")
    dtype = VECTOR_DTYPES[kind]
    return np.frombuffer(value, dtype=dtype).astype(dtype.newbyteorder("="), copy=True)


def raised(name: str, text: str, where: str) -> Exception:
    """The exception of a worker: ours of the same class, or a RuntimeError that says what it was."""
    kind = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, RecboleMMError):
        return kind(f"{text} (on the node {where})")
    return RuntimeError(f"{name} on the node {where}: {text}")
