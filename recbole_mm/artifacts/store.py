"""One SQLite file for everything costly that is computed offline: texts and vectors, by content key.

The file is readable with any SQLite tool::

    sqlite3 artifacts.sqlite "SELECT stage, dtype, count(*) FROM artifacts GROUP BY stage, dtype"

`artifacts(key, stage, dtype, value, created, checksum)` holds the values: TEXT where dtype is `text`, a little-endian
BLOB where it is `float32` or `float16`. `failures(key, stage, reason, attempts, created)` holds what could not be
computed. A key says everything the value depends on (`artifact_key`), so a value is never replaced and never stale.

A value whose checksum does not match, or a vector with NaN, is as good as absent: it is removed, and computed anew. In
a store of version 1 the column of checksums is added when it is first opened for writing; values from before have none
and are taken as they are.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from recbole_mm.artifacts.values import DamagedValueError, Value, check, decode, encode
from recbole_mm.errors import StoreError

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

SCHEMA_VERSION = 2
CANNOT_WRITE = (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM)
READ_ONLY = "nothing can be written there; copy its folder to where it can, and give that as artifact_dir"
KEYS_PER_QUERY = 500  # SQLite builds older than 3.32 allow 999 bound variables
SCHEMA = """
CREATE TABLE IF NOT EXISTS artifacts(
    key TEXT PRIMARY KEY, stage TEXT NOT NULL, dtype TEXT NOT NULL, value NOT NULL, created REAL NOT NULL,
    checksum INTEGER);
CREATE INDEX IF NOT EXISTS artifacts_by_stage ON artifacts(stage);
CREATE TABLE IF NOT EXISTS failures(
    key TEXT PRIMARY KEY, stage TEXT NOT NULL, reason TEXT NOT NULL, attempts INTEGER NOT NULL, created REAL NOT NULL);
"""


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


class Store:
    """An artifact store in one SQLite file, safe for several threads and processes.

    Each batch is one transaction in write-ahead-log mode: a killed process loses only the batch in flight, and no
    reader ever sees half of one. A process holds one connection, guarded by a lock, and lets go of it across a fork
    (a connection carried into a child breaks SQLite's locks). A store can be pickled into another process: only its
    path and settings travel. The file must lie on a local disk: WAL does not work over a network file system.

    A store where nothing may be written, as that of a team, is read as it is.

    Args:
        path: the SQLite file; it and its folder are made on first use.
        timeout: seconds to wait for another process that is writing.
        max_page_count: upper bound of the file in pages of 4 KiB; None leaves only the disk as a bound.

    Raises:
        StoreError: from every method, on a full disk, a lock that is not released, a damaged or foreign file.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, Store(f"{folder}/artifacts.sqlite") as store:
        ...     store.put_many("caption", {"k1": "a red shoe"})
        ...     store.get_many(["k1", "k2"])
        {'k1': 'a red shoe'}
    """

    def __init__(self, path: str | os.PathLike[str], timeout: float = 60.0, max_page_count: int | None = None) -> None:
        self.path = Path(path)
        self.timeout = timeout
        self.max_page_count = max_page_count
        self._start()

    def _start(self) -> None:
        self._connection: sqlite3.Connection | None = None
        self._read_only, self._has_checksums = False, True
        self._lock = threading.RLock()
        _open_stores.add(self)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "timeout": self.timeout, "max_page_count": self.max_page_count}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    def __repr__(self) -> str:
        return f"Store({str(self.path)!r})"

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Close this process's connection; the next call opens a new one."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

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
        told = f"{len(damaged)} damaged value{'s' * (len(damaged) > 1)}, such as {key}: {reason}"
        if self.read_only:
            logger.warning("%s: %s", self.path, told)
            return
        logger.warning("%s: %s; removed, to be computed anew", self.path, told)
        keys = [(key,) for key in damaged]
        self._write(lambda connection: connection.executemany("DELETE FROM artifacts WHERE key = ?", keys))

    # --- the connection ----------------------------------------------------------------------------------------------

    def _select(self, columns: str, keys: list[str]) -> Iterator[tuple]:
        """Yield the rows of `keys`, a few hundred keys a query: one query per key would dominate the time."""
        for start in range(0, len(keys), KEYS_PER_QUERY):
            chunk = keys[start : start + KEYS_PER_QUERY]
            marks = ",".join("?" * len(chunk))
            yield from self._read(f"SELECT {columns} FROM artifacts WHERE key IN ({marks})", chunk)

    def _read(self, statement: str, arguments: Sequence[Any]) -> list[tuple]:
        return self._run(lambda connection: connection.execute(statement, arguments).fetchall())

    @property
    def read_only(self) -> bool:
        """Whether nothing can be written where the store is."""
        self._run(lambda connection: None)  # opens it
        return self._read_only

    def _write(self, work: Callable[[sqlite3.Connection], object]) -> None:
        def transaction(connection: sqlite3.Connection) -> None:
            if self._read_only:
                raise StoreError(f"{self.path}: {READ_ONLY}")
            # IMMEDIATE: take the write lock now, where the timeout applies; an upgrade later could fail at once.
            connection.execute("BEGIN IMMEDIATE")
            try:
                work(connection)
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:  # a full disk may have rolled back already
                    connection.execute("ROLLBACK")
                raise

        self._run(transaction)

    def _run(self, work: Callable[[sqlite3.Connection], Result]) -> Result:
        with self._lock, self._errors():
            if self._connection is None:
                self._connection = self._open()
            return work(self._connection)

    def _open(self) -> sqlite3.Connection:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"{self.path}: the folder of the artifact store cannot be made: {error.strerror}"
            ) from error
        try:
            self._read_only = False
            return self._connect("", self._prepare)
        except sqlite3.OperationalError as error:
            if _primary_code(error) not in CANNOT_WRITE or not self.path.is_file():
                raise
            return self._open_read_only(error)

    def _open_read_only(self, refusal: sqlite3.OperationalError) -> sqlite3.Connection:
        """Open a store where SQLite may write neither the file nor its log beside it.

        `mode=ro` reads along with a process that writes, by the files of its log. Without these `immutable` reads what
        nobody writes to. A log that a killed process has left can be taken over only by who may write.
        """
        self._read_only = True
        log = self.path.with_name(f"{self.path.name}-wal")
        try:
            return self._connect("?mode=ro", self._check_filled)
        except sqlite3.OperationalError as error:
            if _primary_code(error) not in CANNOT_WRITE or (log.is_file() and log.stat().st_size):
                raise refusal from error
        return self._connect("?immutable=1", self._check_filled)

    def _check_filled(self, connection: sqlite3.Connection) -> None:
        if self._check(connection) == 0:
            raise StoreError(f"{self.path}: the artifact store is empty, and {READ_ONLY}")

    def _connect(self, how: str, prepare: Callable[[sqlite3.Connection], object]) -> sqlite3.Connection:
        connection = sqlite3.connect(
            f"{self.path.absolute().as_uri()}{how}",
            timeout=self.timeout,
            isolation_level=None,
            check_same_thread=False,
            uri=True,
        )
        try:
            connection.text_factory = _readable
            if self.max_page_count is not None and not self._read_only:
                connection.execute(f"PRAGMA max_page_count = {int(self.max_page_count)}")
            prepare(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        """Create the tables, or bring those of an earlier version to this one."""
        version = self._check(connection)
        self._use_write_ahead_log(connection)
        # A commit survives the death of the process at once, that of the machine as soon as the system has written the
        # log out. Waiting for the disk at every commit would slow each batch only to save the last few from a crash.
        connection.execute("PRAGMA synchronous = NORMAL")
        if version < SCHEMA_VERSION:
            self._upgrade(connection)

    def _upgrade(self, connection: sqlite3.Connection) -> None:
        """One process does it, others that have found the old version too wait for it and find it done."""
        connection.execute("BEGIN IMMEDIATE")
        try:
            if connection.execute("PRAGMA user_version").fetchone()[0] == 1:
                connection.execute("ALTER TABLE artifacts ADD COLUMN checksum INTEGER")
            for statement in filter(str.strip, SCHEMA.split(";")):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        self._has_checksums = True

    def _check(self, connection: sqlite3.Connection) -> int:
        """Version of the store: 0 for an empty file."""
        connection.execute("BEGIN")  # one snapshot for both questions: another process may be creating the tables now
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        connection.execute("COMMIT")
        if version == 0 and tables:
            raise StoreError(f"{self.path}: this SQLite file is not an artifact store; choose another path")
        if version > SCHEMA_VERSION:
            raise StoreError(f"{self.path}: written by a newer recbole_mm (store version {version}); update recbole_mm")
        self._has_checksums = version != 1
        return version

    def _use_write_ahead_log(self, connection: sqlite3.Connection) -> None:
        """Switch to WAL. SQLite does not wait for other connections here, whatever the timeout, so wait ourselves."""
        deadline = time.monotonic() + self.timeout
        while True:
            try:
                connection.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if _primary_code(error) != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            reason = self._explain(error)
            if reason is None:
                raise
            raise StoreError(f"{self.path}: {reason}") from error

    def _explain(self, error: sqlite3.DatabaseError) -> str | None:
        """Say in one line what a user can mend; None for anything else, which is a bug."""
        code = _primary_code(error)
        if code == sqlite3.SQLITE_FULL:
            return "the disk is full; what was computed so far is kept, free some space and run again"
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return (
                f"another process has held the artifact store locked for {self.timeout:g} s; run again when it is done"
            )
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            return f"damaged, or not an artifact store ({error}); move it away and run again"
        if code in CANNOT_WRITE or code == sqlite3.SQLITE_IOERR:
            return f"cannot be read or written ({error}); check the disk, the folder and its permissions"
        return None


def _readable(raw: bytes) -> str:
    """A text of SQLite, even where a damaged file holds no UTF-8."""
    return raw.decode("utf-8", "replace")


def _primary_code(error: sqlite3.Error) -> int:
    """The primary result code: the low byte of SQLite's extended code."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


# SQLite's locks belong to a process; a fork copies its book-keeping of them, but not the locks. So no connection may be
# open while the process forks: close them before (waiting for calls in flight), and let each side open its own.
_open_stores: weakref.WeakSet[Store] = weakref.WeakSet()
_held_for_fork: list[Store] = []


def _before_fork() -> None:
    for store in list(_open_stores):
        store._lock.acquire()
        _held_for_fork.append(store)
        store.close()


def _after_fork_in_parent() -> None:
    while _held_for_fork:
        _held_for_fork.pop()._lock.release()


def _after_fork_in_child() -> None:
    while _held_for_fork:
        _held_for_fork.pop()._lock = threading.RLock()  # its other owners do not exist in the child


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
