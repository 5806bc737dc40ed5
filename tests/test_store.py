"""The artifact store: round trips, keys, and what happens when disk, file or another process gets in the way."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import pickle
import sqlite3
import subprocess
import sys
import threading
import zlib
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from recbole_mm.artifacts.fill import fill
from recbole_mm.artifacts.store import Store, artifact_key
from recbole_mm.errors import StoreError


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache" / "artifacts.sqlite")


def vector_of(key: str, size: int = 64) -> np.ndarray:
    """A vector that anyone can recompute from its key."""
    return np.random.default_rng(abs(hash_of(key))).standard_normal(size).astype(np.float32)


def hash_of(key: str) -> int:
    return int(artifact_key("test", "", "", {}, key)[:8], 16)


def one_line(error: pytest.ExceptionInfo[StoreError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


# --- values ----------------------------------------------------------------------------------------------------------


def test_texts_and_vectors_come_back_as_they_went_in(store: Store) -> None:
    values = {
        "text": "Schuhe, größe 42 👟\nsecond line\0after NUL",
        "empty": "",
        "single": np.array([1.5, -0.0, 3e-39, 1e38], dtype=np.float32),
        "half": np.array([1.5, 65504.0], dtype=np.float16),
        "strided": np.arange(10, dtype=np.float32)[::3],
        "big endian": np.array([1.25, 2.5], dtype=">f4"),
    }
    store.put_many("mixed", values)
    found = store.get_many([*values, "absent"])
    assert list(found) == list(values)
    for key, value in values.items():
        if isinstance(value, str):
            assert found[key] == value
        else:
            assert found[key].dtype == value.dtype.newbyteorder("=")
            np.testing.assert_array_equal(found[key], value)
            found[key][0] = 0  # a private copy, not a read-only view


def test_values_are_readable_with_public_tools(store: Store) -> None:
    vector = np.array([1.0, -2.0], dtype=np.float32)
    store.put_many("stage", {"v": vector, "t": "hello"})
    store.close()
    with sqlite3.connect(store.path) as plain:
        rows = dict(
            (key, (stage, kind, value))
            for key, stage, kind, value in plain.execute("SELECT key, stage, dtype, value FROM artifacts")
        )
        assert plain.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert rows["t"] == ("stage", "text", "hello")
    assert rows["v"] == ("stage", "float32", vector.astype("<f4").tobytes())


@pytest.mark.parametrize("value", [np.zeros((2, 2), np.float32), np.zeros(3), [1.0], 3, None, b"bytes"])
def test_other_values_are_refused(store: Store, value: object) -> None:
    with pytest.raises(TypeError, match="a value is a str or a 1-D float32 or float16 array"):
        store.put_many("stage", {"fine": "text", "k": value})
    assert store.count() == 0


def test_a_key_keeps_its_first_value(store: Store) -> None:
    store.put_many("stage", {"k": "first"})
    store.put_many("stage", {"k": "second", "other": "x"})
    assert store.get_many(["k", "other"]) == {"k": "first", "other": "x"}


def test_more_keys_than_one_query_takes(store: Store) -> None:
    keys = [f"k{i}" for i in range(1733)]
    store.put_many("stage", {key: key.upper() for key in keys})
    asked = [*reversed(keys), "absent", keys[0]]
    assert list(store.get_many(asked).items()) == [(key, key.upper()) for key in reversed(keys)]
    assert store.contains(asked) == set(keys)
    assert store.count("stage") == store.count() == len(keys)
    assert store.count("another") == 0


def test_matrix_rows_follow_the_keys(store: Store) -> None:
    keys = [f"k{i}" for i in range(1200)]
    store.put_many("v", {key: vector_of(key, 8) for key in keys})
    asked = [keys[7], *reversed(keys), keys[7]]
    matrix = store.get_matrix(asked)
    assert matrix.shape == (1202, 8)
    assert matrix.dtype == np.float32
    np.testing.assert_array_equal(matrix, np.stack([vector_of(key, 8) for key in asked]))
    np.testing.assert_array_equal(store.get_matrix([None, "k1", None])[[0, 2]], np.zeros((2, 8)))
    assert store.get_matrix([]).shape == (0, 0)
    assert store.get_matrix([None, None]).shape == (2, 0)


def test_matrix_of_half_precision_vectors(store: Store) -> None:
    store.put_many("v", {"k": np.array([0.1, 2.0], dtype=np.float16)})
    np.testing.assert_array_equal(store.get_matrix(["k"]), np.array([[0.1, 2.0]], np.float16).astype(np.float32))
    assert store.get_matrix(["k"], dtype=np.float16).dtype == np.float16


def test_matrix_refuses_absent_keys_texts_and_mixed_lengths(store: Store) -> None:
    store.put_many("v", {"a": np.zeros(2, np.float32), "b": np.zeros(3, np.float32), "t": "text"})
    for keys, message in (
        (["a", "x", "y"], "2 of 3 vectors"),
        (["t"], "is a text"),
        (["a", "b"], "3 numbers|2 numbers"),
    ):
        with pytest.raises(StoreError, match=message) as error:
            store.get_matrix(keys)
        assert store.path.name in one_line(error)


def test_failures_count_attempts_until_a_value_arrives(store: Store) -> None:
    store.fail_many("stage", {"a": "no image", "b": "too long"})
    store.fail_many("stage", {"a": "still none"})
    store.fail_many("elsewhere", {"c": "other"})
    assert store.failures("stage") == {"a": "still none", "b": "too long"}
    assert set(store.failures()) == {"a", "b", "c"}
    with sqlite3.connect(store.path) as plain:
        attempts = dict(plain.execute("SELECT key, attempts FROM failures"))
    assert attempts == {"a": 2, "b": 1, "c": 1}
    store.put_many("stage", {"a": "found"})
    assert store.failures("stage") == {"b": "too long"}


# --- keys ------------------------------------------------------------------------------------------------------------


def test_key_does_not_depend_on_order_or_on_how_a_number_is_spelled() -> None:
    one = artifact_key("s", "m", "p", {"b": [1, 2.5], "a": 1.0, "c": {"y": None, "x": True}}, "h")
    two = artifact_key("s", "m", "p", {"c": {"x": True, "y": None}, "a": 1, "b": (1.0, 2.50)}, "h")
    assert one == two
    assert len(one) == 64


def test_key_is_the_same_on_every_machine() -> None:
    key = artifact_key("item_vector", "modèle@1", "Say.", {"lr": 1e-4, "n": 3, "names": ["b", "a"]}, "00ff")
    spelled = (
        r'{"content":"00ff","model":"mod\u00e8le@1","parameters":{"lr":0.0001,"n":3,"names":["b","a"]},'
        r'"prompt":"Say.","stage":"item_vector"}'
    )
    assert key == hashlib.sha256(spelled.encode()).hexdigest()


def test_every_part_changes_the_key() -> None:
    parts = {"stage": "s", "model": "m", "prompt": "p", "parameters": {"a": 1}, "content_hash": "h"}
    variants = [parts, *({**parts, name: "other"} for name in parts if name != "parameters")]
    variants += [{**parts, "parameters": other} for other in ({"a": 2}, {"a": True}, {"a": "1"}, {"b": 1}, {})]
    variants += [{**parts, "stage": "sm", "model": ""}]
    keys = {artifact_key(**variant) for variant in variants}
    assert len(keys) == len(variants)


@pytest.mark.parametrize(
    ("parameters", "error"),
    [
        ({"a": np.float32(0.1)}, TypeError),
        ({"a": {1, 2}}, TypeError),
        ({1: "a"}, TypeError),
        ({"a": Path("x")}, TypeError),
        ({"a": float("nan")}, ValueError),
        ({"a": [float("inf")]}, ValueError),
    ],
)
def test_key_refuses_what_has_no_single_spelling(parameters: dict, error: type[Exception]) -> None:
    with pytest.raises(error):
        artifact_key("s", "m", "p", parameters, "h")


# --- trouble ---------------------------------------------------------------------------------------------------------


def test_full_disk_is_one_line_and_keeps_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "small.sqlite"
    store = Store(path, max_page_count=40)
    written: list[str] = []

    def write_until_full() -> None:
        for start in range(0, 10_000, 20):
            batch = {f"k{i}": vector_of(f"k{i}") for i in range(start, start + 20)}
            store.put_many("v", batch)
            written.extend(batch)

    with pytest.raises(StoreError) as error:
        write_until_full()
    assert "small.sqlite" in one_line(error)
    assert "disk is full" in str(error.value)
    assert "kept" in str(error.value)
    assert len(written) >= 20
    store.put_many("v", {})  # the connection is usable after the failure
    assert store.contains(written) == set(written)
    store.close()
    roomy = Store(path)  # space was freed: the same file goes on
    assert roomy.count() == len(written)
    np.testing.assert_array_equal(roomy.get_matrix(written), np.stack([vector_of(key) for key in written]))
    roomy.put_many("v", {f"more{i}": vector_of("x") for i in range(500)})
    assert roomy.count() == len(written) + 500


def test_a_file_that_is_no_store_is_named_and_left_alone(tmp_path: Path) -> None:
    garbage = tmp_path / "garbage.sqlite"
    garbage.write_bytes(b"this is not a database, it only looks like one from far away" * 40)
    before = garbage.read_bytes()
    with pytest.raises(StoreError, match="not an artifact store") as error:
        Store(garbage).put_many("s", {"k": "v"})
    assert "garbage.sqlite" in one_line(error)
    assert garbage.read_bytes() == before

    foreign = tmp_path / "foreign.sqlite"
    with sqlite3.connect(foreign) as plain:
        plain.execute("CREATE TABLE people(name TEXT)")
    with pytest.raises(StoreError, match="not an artifact store"):
        Store(foreign).count()
    with sqlite3.connect(foreign) as plain:
        assert plain.execute("SELECT name FROM sqlite_master").fetchall() == [("people",)]


def test_a_damaged_file_is_reported(store: Store) -> None:
    store.put_many("v", {f"k{i}": vector_of(f"k{i}") for i in range(2000)})
    store.close()
    data = bytearray(store.path.read_bytes())
    data[4096:] = os.urandom(len(data) - 4096)
    store.path.write_bytes(data)
    with pytest.raises(StoreError, match="damaged") as error:
        store.get_many([f"k{i}" for i in range(2000)])
    assert store.path.name in one_line(error)


def test_a_value_of_wrong_length_is_reported(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    store.put_many("v", {"k": vector_of("k")})
    with sqlite3.connect(store.path) as plain:
        plain.execute("UPDATE artifacts SET value = x'010203'")
    assert store.get_many(["k"]) == {}
    assert "1 damaged value, such as k: its checksum does not match; removed, to be computed anew" in caplog.text
    assert store.count() == 0


def change(store: Store, statement: str) -> None:
    with closing(sqlite3.connect(store.path)) as plain, plain:
        plain.execute(statement)


NAN = "x'0000c07f'"
DAMAGE = {
    "a bit of a vector": "UPDATE artifacts SET value = x'0100803f0000803f' WHERE key = 'v'",
    "a letter of a text": "UPDATE artifacts SET value = 'hellp' WHERE key = 't'",
    "a text that is no UTF-8": "UPDATE artifacts SET value = CAST(x'68ff6c' AS TEXT) WHERE key = 't'",
    "a text as a blob": "UPDATE artifacts SET value = x'68656c70' WHERE key = 't'",
    "a type": "UPDATE artifacts SET dtype = 'float16' WHERE key = 'v'",
    "a type that is none": "UPDATE artifacts SET dtype = CAST(x'ff' AS TEXT) WHERE key = 'v'",
    "a value of another key": "UPDATE artifacts SET (value, checksum) ="
    " (SELECT value, checksum FROM artifacts WHERE key = 'w') WHERE key = 'v'",
    "a checksum": "UPDATE artifacts SET checksum = checksum + 1 WHERE key = 'v'",
    "NaN of a version without checksums": f"UPDATE artifacts SET value = {NAN}, checksum = NULL WHERE key = 'v'",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_value_is_as_good_as_absent_and_computed_anew(
    store: Store, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    values = {"v": np.ones(2, np.float32), "w": np.full(2, 2, np.float32), "t": "hello"}
    store.put_many("s", values)
    change(store, DAMAGE[damage])
    key = "t" if "text" in damage else "v"
    assert store.contains(values) == set(values), "it is there"
    report = fill(store, "s", {name: name for name in values}, lambda names: [values[name] for name in names])
    assert (report.done, report.computed, report.failed) == (3, 1, 0)
    assert f"1 damaged value, such as {key}: " in caplog.text
    found = store.get_many(values)
    assert found["t"] == "hello"
    assert (found["v"].tolist(), found["w"].tolist()) == ([1, 1], [2, 2])


def test_a_damaged_vector_never_gets_into_a_matrix(store: Store) -> None:
    store.put_many("s", {"v": np.ones(2, np.float32), "w": np.ones(2, np.float32)})
    change(store, DAMAGE["a bit of a vector"])
    with pytest.raises(StoreError, match="1 of 2 vectors are not in the store; compute them first"):
        store.get_matrix(["v", "w"])


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_a_vector_that_is_not_finite_is_not_stored(store: Store, number: float) -> None:
    with pytest.raises(StoreError, match="item_vector k is not stored: the vector holds NaN or infinity"):
        store.put_many("item_vector", {"fine": np.ones(2, np.float32), "k": np.array([1, number], np.float32)})
    assert store.count() == 0


def old_store(path: Path) -> None:
    """As version 1 wrote it."""
    with closing(sqlite3.connect(path)) as plain, plain:
        plain.executescript(
            "PRAGMA journal_mode = WAL;"
            "CREATE TABLE artifacts(key TEXT PRIMARY KEY, stage TEXT NOT NULL, dtype TEXT NOT NULL, value NOT NULL,"
            " created REAL NOT NULL); CREATE INDEX artifacts_by_stage ON artifacts(stage);"
            "CREATE TABLE failures(key TEXT PRIMARY KEY, stage TEXT NOT NULL, reason TEXT NOT NULL,"
            " attempts INTEGER NOT NULL, created REAL NOT NULL);"
            "INSERT INTO artifacts VALUES ('t', 's', 'text', 'hello', 1.0), ('v', 's', 'float32', x'0000803f', 1.0);"
            "PRAGMA user_version = 1;"
        )


def test_a_store_of_version_1_is_read_and_goes_on_with_checksums(tmp_path: Path) -> None:
    old_store(tmp_path / "a.sqlite")
    store = Store(tmp_path / "a.sqlite")
    assert store.get_many(["t", "v"]) == {"t": "hello", "v": np.ones(1, np.float32)}
    store.put_many("s", {"new": "text"})
    with closing(sqlite3.connect(store.path)) as plain:
        checksums = dict(plain.execute("SELECT key, checksum FROM artifacts"))
        assert plain.execute("PRAGMA user_version").fetchone() == (2,)
    assert checksums == {"t": None, "v": None, "new": zlib.crc32(b"new\0text\0text")}
    assert Store(store.path).get_many(["t", "new"]) == {"t": "hello", "new": "text"}


# --- a store that may not be written ---------------------------------------------------------------------------------


@pytest.fixture
def unwritable(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """SQLite as on a disk where nothing may be written, for root, too; gives the addresses that were tried."""
    connect, asked = sqlite3.connect, []

    def refuse(address: str, **options: object) -> sqlite3.Connection:
        asked.append(str(address).partition("?")[2])
        if "immutable" in address:
            return connect(address, **options)
        error = sqlite3.OperationalError("unable to open database file")
        error.sqlite_errorcode = sqlite3.SQLITE_CANTOPEN
        raise error

    monkeypatch.setattr(sqlite3, "connect", refuse)
    return asked


@pytest.mark.parametrize("version", [1, 2])
def test_a_store_where_nothing_may_be_written_serves(tmp_path: Path, unwritable: list[str], version: int) -> None:
    path = tmp_path / "a ? b.sqlite"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sqlite3, "connect", sqlite3.dbapi2.connect)
        if version == 1:
            old_store(path)
        else:
            with Store(path) as store:
                store.put_many("s", {"t": "hello", "v": np.ones(1, np.float32)})
    store = Store(path)
    assert store.get_many(["t", "v"]) == {"t": "hello", "v": np.ones(1, np.float32)}
    assert unwritable == ["", "mode=ro", "immutable=1"]
    inputs = {"t": "t", "v": "v"}
    assert fill(store, "s", inputs, lambda names: [][len(names) :]).done == 2
    with pytest.raises(StoreError, match="1 of 3 values of s are not in the store, and nothing can be written there;"):
        fill(store, "s", {**inputs, "x": "x"}, lambda names: list(names))
    with pytest.raises(StoreError, match="nothing can be written there; copy its folder to where it can, and give"):
        store.put_many("s", {"x": "x"})
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [path.name], "no lock, no log"


def test_damage_where_nothing_may_be_written_is_told(
    store: Store, unwritable: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sqlite3, "connect", sqlite3.dbapi2.connect)
        store.put_many("s", {"v": np.ones(2, np.float32), "w": np.ones(2, np.float32)})
        store.close()
        change(store, DAMAGE["a checksum"])
    assert list(Store(store.path).get_many(["v", "w"])) == ["w"]
    assert "1 damaged value, such as v: its checksum does not match" in caplog.text
    assert "removed" not in caplog.text


def test_what_a_killed_process_has_left_is_not_read_over(store: Store, unwritable: list[str]) -> None:
    store.path.parent.mkdir()
    store.path.touch()
    store.path.with_name(f"{store.path.name}-wal").write_bytes(b"changes that are not in the file yet")
    with pytest.raises(StoreError, match="cannot be read or written"):
        store.get_many(["v"])
    assert unwritable == ["", "mode=ro"]


def test_an_empty_store_where_nothing_may_be_written(store: Store, unwritable: list[str]) -> None:
    store.path.parent.mkdir()
    store.path.touch()
    with pytest.raises(StoreError, match="the artifact store is empty, and nothing can be written there"):
        store.get_many(["v"])


def test_a_newer_store_is_refused(store: Store) -> None:
    store.put_many("v", {"k": "v"})
    store.close()
    with sqlite3.connect(store.path) as plain:
        plain.execute("PRAGMA user_version = 99")
    with pytest.raises(StoreError, match="newer recbole_mm"):
        store.count()


def test_a_place_that_cannot_hold_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file" / "a.sqlite", tmp_path):
        with pytest.raises(StoreError) as error:
            Store(path).count()
        assert str(path) in one_line(error)


def test_a_lock_that_is_not_released_is_reported(tmp_path: Path) -> None:
    store = Store(tmp_path / "a.sqlite", timeout=0.1)
    store.put_many("v", {"k": "v"})
    holder = sqlite3.connect(store.path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    try:
        with pytest.raises(StoreError, match=r"locked for 0\.1 s") as error:
            store.put_many("v", {"k2": "v"})
        assert "a.sqlite" in one_line(error)
        assert store.get_many(["k"]) == {"k": "v"}  # readers are never kept out
    finally:
        holder.close()
    store.put_many("v", {"k2": "v"})
    assert store.count() == 2


# --- threads and processes -------------------------------------------------------------------------------------------


def test_threads_share_a_store(store: Store) -> None:
    errors: list[BaseException] = []

    def write(worker: int) -> None:
        try:
            for i in range(20):
                key = f"{worker}-{i}"
                store.put_many("v", {key: vector_of(key)})
                np.testing.assert_array_equal(store.get_many([key])[key], vector_of(key))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert store.count() == 80


def write_in_a_child(store: Store, first: int) -> None:
    for i in range(first, first + 30):
        store.put_many("v", {f"k{i}": vector_of(f"k{i}")})


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_processes_share_a_store(store: Store, method: str) -> None:
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system has no {method}")
    store.put_many("v", {"parent": vector_of("parent")})  # a connection is open while the children start
    context = multiprocessing.get_context(method)
    children = [context.Process(target=write_in_a_child, args=(store, first)) for first in (0, 20)]
    for child in children:
        child.start()
    write_in_a_child(store, 100)
    for child in children:
        child.join(120)
    assert [child.exitcode for child in children] == [0, 0]
    expected = ["parent", *(f"k{i}" for i in range(50)), *(f"k{i}" for i in range(100, 130))]
    np.testing.assert_array_equal(store.get_matrix(expected), np.stack([vector_of(key) for key in expected]))
    assert store.count() == len(expected)
    with sqlite3.connect(store.path) as plain:
        assert plain.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_no_connection_is_carried_through_a_fork(store: Store) -> None:
    store.put_many("v", {"k": "v"})
    assert store._connection is not None
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        answer = {"open": store._connection is not None, "value": store.get_many(["k"])}
        os.write(writer, json.dumps(answer).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        assert json.loads(pipe.read()) == {"open": False, "value": {"k": "v"}}
    assert os.waitpid(child, 0)[1] == 0
    assert store.get_many(["k"]) == {"k": "v"}


def test_a_store_travels_to_another_process_as_a_path(store: Store) -> None:
    store.put_many("v", {"k": "v"})
    copy = pickle.loads(pickle.dumps(store))
    assert (copy.path, copy.timeout, copy.get_many(["k"])) == (store.path, store.timeout, {"k": "v"})


def test_many_processes_may_create_one_store_at_once(tmp_path: Path) -> None:
    path = tmp_path / "new.sqlite"
    code = (
        "import os; from recbole_mm.artifacts.store import Store;"
        f"Store({str(path)!r}).put_many('s', {{str(os.getpid()): 'v'}})"
    )
    children = [subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) for _ in range(4)]
    errors = [child.communicate(timeout=120)[1] for child in children]
    assert [child.returncode for child in children] == [0] * 4, errors
    assert Store(path).count() == 4
