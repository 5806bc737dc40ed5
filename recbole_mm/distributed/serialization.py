"""The values of a batch as a table, which Ray Data brings from a worker: bit for bit, and without pickle."""

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
"""A row is a batch: number, and for each value its kind (`text`, `float32`, `float16`, `failure`, `report`, `error`)
and its bytes. One row, so that Ray Data cannot cut it in two."""

FAILURE, REPORT, ERROR = "failure", "report", "error"


@dataclass
class BatchResult:
    """What a worker has made of a batch.

    Attributes:
        outcomes: values and failures in the order of the inputs; empty after an error.
        report: what the worker's `report` returned.
        error: what the worker raised.
    """

    outcomes: list[Value | Failure] = field(default_factory=list)
    report: dict[str, Any] = field(default_factory=dict)
    error: Exception | None = None


def to_table(batch: int, outcomes: Sequence[Value | Failure], report: Mapping[str, Any]) -> pa.Table:
    """Returns a batch's outcomes as a table of `SCHEMA`."""
    rows = [_packed(outcome) for outcome in outcomes]
    rows += [(REPORT, json.dumps(dict(report)).encode())] if report else []
    return _table(batch, rows)


def error_table(batch: int, error: Exception, where: str, trace: str = "") -> pa.Table:
    """Returns an exception in place of a batch's outcomes, as a table of `SCHEMA`."""
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


def from_table(table: pa.Table) -> dict[int, BatchResult]:
    """Returns number of batch -> its result."""
    return {row["batch"]: _result(zip(row["kinds"], row["values"])) for row in table.to_pylist()}


def _result(values: Iterable[tuple[str, bytes]]) -> BatchResult:
    result = BatchResult()
    for kind, value in values:
        if kind == REPORT:
            result.report = json.loads(value)
        elif kind == ERROR:
            result.error = raised(*json.loads(value))
        else:
            result.outcomes.append(_unpacked(kind, value))
    return result


def _unpacked(kind: str, value: bytes) -> Value | Failure:
    if kind == FAILURE:
        return Failure(value.decode("utf-8", "surrogatepass"))
    if kind == TEXT:
        return value.decode("utf-8", "surrogatepass")
    dtype = VECTOR_DTYPES[kind]
    return np.frombuffer(value, dtype=dtype).astype(dtype.newbyteorder("="), copy=True)


def raised(name: str, text: str, where: str) -> Exception:
    """Returns a worker's exception: ours of the same class, or a RuntimeError that names its class."""
    kind = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, RecboleMMError):
        return kind(f"{text} (on the node {where})")
    return RuntimeError(f"{name} on the node {where}: {text}")
