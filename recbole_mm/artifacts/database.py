"""The SQLite file of the artifact store: connections, transactions, versions of its tables, and errors in one line."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, TypeVar

from recbole_mm.errors import StoreError

Result = TypeVar("Result")

SCHEMA_VERSION = 2
CANNOT_WRITE = (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM)
READ_ONLY = "nothing can be written there; copy its folder to where it can, and give that as artifact_dir"
SCHEMA = """
CREATE TABLE IF NOT EXISTS artifacts(
    key TEXT PRIMARY KEY, stage TEXT NOT NULL, dtype TEXT NOT NULL, value NOT NULL, created REAL NOT NULL,
    checksum INTEGER);
CREATE INDEX IF NOT EXISTS artifacts_by_stage ON artifacts(stage);
CREATE TABLE IF NOT EXISTS failures(
    key TEXT PRIMARY KEY, stage TEXT NOT NULL, reason TEXT NOT NULL, attempts INTEGER NOT NULL, created REAL NOT NULL);
"""


class Database:
    """One SQLite file, safe for several threads and processes.

    Each write is one transaction in write-ahead-log mode: a killed process loses only the transaction in flight, and no
    reader ever sees half of one. A process holds one connection, guarded by a lock, and closes it before a fork (a
    connection carried into a child breaks SQLite's locks). A database can be pickled into another process: only its
    path and settings are sent. The file must lie on a local disk: WAL does not work over a network file system.

    A file in a folder where nothing may be written is opened for reading.

    Args:
        path: the SQLite file; it and its folder are made on first use.
        timeout: seconds to wait for another process that is writing.
        max_page_count: upper bound of the file in pages of 4 KiB; None leaves only the disk as a bound.

    Raises:
        StoreError: from every method, on a full disk, a lock that is not released, a damaged or foreign file.

    Example:
        >>> Database(tmp_path / "artifacts.sqlite").read_only
        False
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
        _open_databases.add(self)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "timeout": self.timeout, "max_page_count": self.max_page_count}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Close this process's connection; the next call opens a new one."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def _read(self, statement: str, arguments: Sequence[Any]) -> list[tuple]:
        return self._run(lambda connection: connection.execute(statement, arguments).fetchall())

    @property
    def read_only(self) -> bool:
        """Whether nothing can be written in the store's folder."""
        self._run(lambda connection: None)  # opens it
        return self._read_only

    def _write(self, work: Callable[[sqlite3.Connection], object]) -> None:
        def write(connection: sqlite3.Connection) -> None:
            if self._read_only:
                raise StoreError(f"{self.path}: {READ_ONLY}")
            with _transaction(connection):
                work(connection)

        self._run(write)

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
        """Open a file where SQLite may write neither the file nor its log.

        `mode=ro` reads while another process writes, by the files of its log. Without these, `immutable` reads a file
        that nothing writes to. The log of a killed process can be taken over only by a process that may write.
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
        """Create or upgrade the tables; processes that wait for the lock find that it was done."""
        with _transaction(connection):
            if connection.execute("PRAGMA user_version").fetchone()[0] == 1:
                connection.execute("ALTER TABLE artifacts ADD COLUMN checksum INTEGER")
            for statement in filter(str.strip, SCHEMA.split(";")):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        self._has_checksums = True

    def _check(self, connection: sqlite3.Connection) -> int:
        """Returns the version of the store, 0 for an empty file."""
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
        """Switch to WAL. SQLite does not wait for other connections here, whatever the timeout, so we do."""
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
        """Returns what a user can mend, in one line; None for anything else, which is a bug."""
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
    """Returns a text of SQLite, even where a damaged file holds no UTF-8."""
    return raw.decode("utf-8", "replace")


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Commit what the block has written, or nothing of it."""
    # IMMEDIATE: take the write lock now, where the timeout applies; an upgrade later could fail at once.
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # a full disk may have rolled back already
            connection.execute("ROLLBACK")
        raise


def _primary_code(error: sqlite3.Error) -> int:
    """Returns the primary result code: the low byte of SQLite's extended code."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


# SQLite's locks belong to a process; a fork copies its book-keeping of them, but not the locks. So no connection may be
# open while the process forks: close them before (waiting for calls in flight), and let each side open its own.
_open_databases: weakref.WeakSet[Database] = weakref.WeakSet()
_held_for_fork: list[Database] = []


def _before_fork() -> None:
    for database in list(_open_databases):
        database._lock.acquire()
        _held_for_fork.append(database)
        database.close()


def _after_fork_in_parent() -> None:
    while _held_for_fork:
        _held_for_fork.pop()._lock.release()


def _after_fork_in_child() -> None:
    while _held_for_fork:
        _held_for_fork.pop()._lock = threading.RLock()  # its other owners do not exist in the child


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
