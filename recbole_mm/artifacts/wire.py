"""The values of a batch as a table, on their way back from a worker: the same bits, and nothing that is unpickled."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from recbole_mm import errors
from recbole_mm.artifacts.executor import Failure
from recbole_mm.artifacts.values import TEXT, VECTOR_DTYPES, Value
from recbole_mm.errors import RecboleMMError

SCHEMA = pa.schema([("batch", pa.int64()), ("kinds", pa.list_(pa.string())), ("values", pa.list_(pa.large_binary()))])
"""A row is a batch: its number, and for each value a kind (`text`, `float32`, `float16`, `failure`, `told` or `error`)
and its bytes. One row, so that Ray Data cannot cut it in two."""

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


def _table(batch: int, values: Sequence[tuple[str, bytes]]) -> pa.Table:
    row = {"batch": batch, "kinds": [kind for kind, _ in values], "values": [value for _, value in values]}
    return pa.Table.from_pylist([row], schema=SCHEMA)


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
    return {row["batch"]: _done(zip(row["kinds"], row["values"])) for row in table.to_pylist()}


def _done(values: Iterable[tuple[str, bytes]]) -> Done:
    done = Done()
    for kind, value in values:
        if kind == TOLD:
            done.told = json.loads(value)
        elif kind == ERROR:
            done.error = raised(*json.loads(value))
        else:
            done.outcomes.append(_unpacked(kind, value))
    return done


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
