"""One SQLite file for all that is costly and computed offline: texts and vectors, by content key.

The file is readable with any SQLite tool::

    sqlite3 artifacts.sqlite "SELECT stage, dtype, count(*) FROM artifacts GROUP BY stage, dtype"

`artifacts(key, stage, dtype, value, created, checksum)` holds the values: TEXT where dtype is `text`, a little-endian
BLOB where it is `float32` or `float16`. `failures(key, stage, reason, attempts, created)` holds what could not be
computed. A key says everything the value depends on (`artifact_key`), so a value is never replaced and never stale.

A value whose checksum does not match, or a vector with NaN, counts as absent: it is removed, and computed again. A
store of version 1 gets its column of checksums when it is first opened for writing; its values are taken as they are.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from recbole_mm.artifacts.database import Database
from recbole_mm.artifacts.values import DamagedValueError, Value, check, decode, encode
from recbole_mm.errors import StoreError

logger = logging.getLogger(__name__)

KEYS_PER_QUERY = 500  # SQLite builds older than 3.32 allow 999 bound variables


def artifact_key(stage: str, model: str, prompt: str, parameters: Mapping[str, Any], content_hash: str) -> str:
    """Name a value by everything it depends on.

    Args:
        stage: what is computed, e.g. `item_vector`.
        model: the model and its revision, or a hash of its files.
        prompt: the prompt's full text.
        parameters: plain settings (str, int, float, bool, None, lists and dicts of these). 1 and 1.0 are the same.
        content_hash: hash of the input.

    Returns:
        sha256 in hex over canonical JSON (sorted keys, ASCII, no spaces): the same on every machine.

    Raises:
        TypeError: a parameter is not plain (a numpy float32 0.1, for one, is not the float 0.1).
        ValueError: a parameter is NaN or infinite.
    """
    parts = {"stage": stage, "model": model, "prompt": prompt, "parameters": parameters, "content": content_hash}
    text = json.dumps(_canonical(parts), sort_keys=True, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def _canonical(value: Any) -> Any:
    """Reduce a plain value to one JSON spelling: integral floats become integers, tuples become lists."""
    if isinstance(value, Mapping):
        if not all(type(name) is str for name in value):
            raise TypeError(f"parameter names are strings, not {sorted(map(repr, value))}")
        return {name: _canonical(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(item) for item in value]
    if type(value) is float:
        return int(value) if value.is_integer() else value
    if value is None or type(value) in (str, int, bool):
        return value
    raise TypeError(f"a parameter of an artifact key must be a plain value, not {type(value).__name__} ({value!r})")


class Store(Database):
    """An artifact store in one SQLite file: texts and vectors by key.

    Args and errors are those of `Database`. Each batch is one transaction.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, Store(f"{folder}/artifacts.sqlite") as store:
        ...     store.put_many("caption", {"k1": "a red shoe"})
        ...     store.get_many(["k1", "k2"])
        {'k1': 'a red shoe'}
    """

    # --- reading -----------------------------------------------------------------------------------------------------

    def get_many(self, keys: Iterable[str]) -> dict[str, Value]:
        """Return the values of the keys that are present, in the order of `keys`. Damaged ones are removed."""
        wanted = list(dict.fromkeys(keys))
        found = {key: decode(dtype, raw) for key, dtype, raw in self._sound(wanted)}
        return {key: found[key] for key in wanted if key in found}

    def get_matrix(self, keys: Sequence[str | None], dtype: np.dtype | type = np.float32) -> np.ndarray:
        """Return the vectors of `keys` as one matrix.

        Args:
            keys: n keys; a key may occur more than once, None stands for a row of zeros.
            dtype: of the matrix.

        Returns:
            (n, d) array whose row r is the vector of keys[r]; (n, 0) where every key is None.

        Raises:
            StoreError: a key is absent or damaged, is a text, or has another length than the others.
        """
        rows: dict[str, list[int]] = {}
        for row, key in enumerate(keys):
            if key is not None:
                rows.setdefault(key, []).append(row)
        matrix = np.zeros((len(keys), 0), dtype=dtype)
        found = 0
        for key, kind, raw in self._sound(list(rows)):
            vector = decode(kind, raw)
            if isinstance(vector, str):
                raise StoreError(f"{self.path}: artifact {key} is a text where a vector is expected")
            if found == 0:
                matrix = np.zeros((len(keys), vector.size), dtype=dtype)
            if vector.size != matrix.shape[1]:
                sizes = f"{vector.size} numbers, another of the same matrix {matrix.shape[1]}"
                raise StoreError(f"{self.path}: vector {key} has {sizes}")
            matrix[rows[key]] = vector
            found += 1
        if found < len(rows):
            lacking = f"{len(rows) - found} of {len(rows)} vectors are not in the store"
            raise StoreError(f"{self.path}: {lacking}; compute them first")
        return matrix

    def contains(self, keys: Iterable[str]) -> set[str]:
        """Return those of `keys` that have a value; it is not read."""
        return {key for (key,) in self._select("key", list(dict.fromkeys(keys)))}

    def sound(self, keys: Iterable[str]) -> set[str]:
        """Return those of `keys` that have a value, each read and found to be what was written; others are removed."""
        return {key for key, _, _ in self._sound(list(dict.fromkeys(keys)))}

    def count(self, stage: str | None = None) -> int:
        """Count the values of a stage, or of all stages."""
        where, arguments = ("", ()) if stage is None else (" WHERE stage = ?", (stage,))
        return self._read(f"SELECT count(*) FROM artifacts{where}", arguments)[0][0]

    def failures(self, stage: str | None = None) -> dict[str, str]:
        """Return key -> reason of what could not be computed, of a stage or of all stages, oldest first."""
        where, arguments = ("", ()) if stage is None else (" WHERE stage = ?", (stage,))
        return dict(self._read(f"SELECT key, reason FROM failures{where} ORDER BY created, key", arguments))

    # --- writing -----------------------------------------------------------------------------------------------------

    def put_many(self, stage: str, values: Mapping[str, Value]) -> None:
        """Write a batch in one transaction. A key that is already present keeps its value; its failure is forgotten.

        Raises:
            StoreError: also for a vector with NaN or infinity; nothing is written then.
        """
        now = time.time()
        encoded = [(key, *encode(stage, key, value)) for key, value in values.items()]
        rows = [(key, stage, dtype, raw, now, crc) for key, dtype, raw, crc in encoded]

        def write(connection: sqlite3.Connection) -> None:
            connection.executemany("INSERT OR IGNORE INTO artifacts VALUES (?, ?, ?, ?, ?, ?)", rows)
            connection.executemany("DELETE FROM failures WHERE key = ?", [(row[0],) for row in rows])

        self._write(write)

    def fail_many(self, stage: str, reasons: Mapping[str, str]) -> None:
        """Record in one transaction why keys have no value; each further failure of a key counts one more attempt."""
        now = time.time()
        rows = [(key, stage, reason, now) for key, reason in reasons.items()]
        statement = (
            "INSERT INTO failures VALUES (?, ?, ?, 1, ?) ON CONFLICT(key) DO UPDATE"
            " SET reason = excluded.reason, attempts = attempts + 1, created = excluded.created"
        )
        self._write(lambda connection: connection.executemany(statement, rows))

    def _sound(self, keys: list[str]) -> Iterator[tuple[str, str, bytes]]:
        """Yield (key, dtype, bytes) of `keys`; those that are damaged are removed afterwards, and the log says so."""
        damaged: dict[str, str] = {}
        # Neither a flipped bit of a text nor one of a type may stop the reading: texts are read as bytes.
        for key, dtype, raw, crc in self._select(f"key, dtype, CAST(value AS BLOB), {self._checksum_column()}", keys):
            try:
                check(key, dtype, raw, crc)
            except DamagedValueError as error:
                damaged[key] = str(error)
            else:
                yield key, dtype, raw
        if damaged:
            self._remove(damaged)

    def _checksum_column(self) -> str:
        self._run(lambda connection: None)  # opens it
        return "checksum" if self._has_checksums else "NULL"

    def _remove(self, damaged: Mapping[str, str]) -> None:
        key, reason = next(iter(damaged.items()))
        what = f"{len(damaged)} damaged value{'s' * (len(damaged) > 1)}, such as {key}: {reason}"
        if self.read_only:
            logger.warning("%s: %s", self.path, what)
            return
        logger.warning("%s: %s; removed, to be computed anew", self.path, what)
        keys = [(key,) for key in damaged]
        self._write(lambda connection: connection.executemany("DELETE FROM artifacts WHERE key = ?", keys))

    def _select(self, columns: str, keys: list[str]) -> Iterator[tuple]:
        """Yield the rows of `keys`, a few hundred keys a query: one query per key would dominate the time."""
        for start in range(0, len(keys), KEYS_PER_QUERY):
            chunk = keys[start : start + KEYS_PER_QUERY]
            marks = ",".join("?" * len(chunk))
            yield from self._read(f"SELECT {columns} FROM artifacts WHERE key IN ({marks})", chunk)
