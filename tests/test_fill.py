"""The loop that fills a stage: resumable, safe for two processes, nothing lost but the batch in flight."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest

from recbole_mm.artifacts.executor import Failure
from recbole_mm.artifacts.fill import fill
from recbole_mm.artifacts.store import Store
from recbole_mm.errors import StoreError


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "artifacts.sqlite")


class Squares:
    """A worker that remembers what it was asked."""

    def __init__(self, pause: float = 0.0) -> None:
        self.batches: list[list[int]] = []
        self.pause = pause

    def __call__(self, numbers: list[int]) -> list[np.ndarray]:
        self.batches.append(numbers)
        time.sleep(self.pause)
        return [square(number) for number in numbers]


def square(number: int) -> np.ndarray:
    return np.full(16, number * number, dtype=np.float32)


def inputs_of(count: int) -> dict[str, int]:
    return {f"k{number}": number for number in range(count)}


def assert_complete(store: Store, count: int) -> None:
    matrix = store.get_matrix(list(inputs_of(count)))
    np.testing.assert_array_equal(matrix, np.stack([square(number) for number in range(count)]))
    assert store.count() == count


def test_computes_each_missing_key_once(store: Store) -> None:
    store.put_many("squares", {"k3": square(3), "k5": square(5)})
    work = Squares()
    report = fill(store, "squares", inputs_of(10), work, batches=3)
    assert work.batches == [[0, 1, 2], [4, 6, 7], [8, 9]]
    assert (report.done, report.computed, report.failed, report.reasons) == (10, 8, 0, {})
    assert report.seconds > 0
    assert_complete(store, 10)
    again = Squares()
    report = fill(store, "squares", inputs_of(10), again)
    assert (report.done, report.computed, again.batches) == (10, 0, [])
    assert fill(store, "squares", {}, again).done == 0


def test_failures_are_recorded_and_tried_again(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    def picky(numbers: list[int]) -> list[np.ndarray | Failure]:
        return [Failure("odd number") if number % 2 else square(number) for number in numbers]

    with caplog.at_level(logging.WARNING):
        report = fill(store, "squares", inputs_of(6), picky, batches=4)
    assert (report.done, report.computed, report.failed) == (3, 3, 3)
    assert report.reasons == store.failures("squares") == {f"k{n}": "odd number" for n in (1, 3, 5)}
    assert "3 of 6 could not be computed" in caplog.text
    assert "odd number" in caplog.text
    report = fill(store, "squares", inputs_of(6), Squares())
    assert (report.done, report.computed, report.failed) == (6, 3, 0)
    assert store.failures() == {}


def test_a_vector_with_nan_is_a_failure(store: Store) -> None:
    report = fill(store, "v", inputs_of(2), lambda numbers: [square(0), np.array([0.0, np.nan], dtype=np.float32)])
    assert (report.done, report.failed) == (1, 1)
    assert store.failures("v") == {"k1": "the vector holds NaN or infinity"}


def test_own_batches_may_prepare_inputs(store: Store) -> None:
    store.put_many("squares", {"k0": square(0)})
    seen: list[list[str]] = []

    def cut(missing: Mapping[str, int]) -> Iterator[Mapping[str, int | Failure]]:
        yield {"k4": missing["k4"] + 0, "k1": Failure("not prepared"), "k2": missing["k2"]}
        seen.append(sorted(store.contains(missing)))  # the first batch is in the store before the second is asked for
        yield {"k3": missing["k3"]}

    work = Squares()
    report = fill(store, "squares", inputs_of(5), work, batches=cut)
    assert work.batches == [[4, 2], [3]]
    assert seen == [["k2", "k4"]]
    assert (report.done, report.computed, report.failed) == (4, 3, 1)
    assert store.failures() == {"k1": "not prepared"}


def test_wrong_workers_are_reported(store: Store) -> None:
    with pytest.raises(ValueError, match="returned 1 values for 4 inputs"):
        fill(store, "s", inputs_of(4), lambda numbers: ["x"])
    with pytest.raises(ValueError, match="covered 1 of 4"):
        fill(store, "s", inputs_of(4), Squares(), batches=lambda missing: [{"k0": 0}])
    with pytest.raises(ValueError, match="at least one"):
        fill(store, "s", inputs_of(4), Squares(), batches=0)


def test_an_interrupted_loop_keeps_its_finished_batches(store: Store) -> None:
    work = Squares()

    def interrupted(numbers: list[int]) -> list[np.ndarray]:
        if numbers[0] == 6:
            raise KeyboardInterrupt
        return work(numbers)

    with pytest.raises(KeyboardInterrupt):
        fill(store, "squares", inputs_of(9), interrupted, batches=3)
    assert store.count() == 6
    fill(store, "squares", inputs_of(9), work, batches=3)
    assert work.batches == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert_complete(store, 9)


def test_a_full_disk_stops_the_loop_and_keeps_the_rest(tmp_path: Path) -> None:
    store = Store(tmp_path / "a.sqlite", max_page_count=30)
    work = Squares()
    with pytest.raises(StoreError, match="disk is full"):
        fill(store, "squares", inputs_of(5000), work, batches=50)
    kept = store.count()
    assert kept == 50 * (len(work.batches) - 1)
    assert kept > 0
    store.close()
    roomy = Store(store.path)
    report = fill(roomy, "squares", inputs_of(5000), Squares(), batches=500)
    assert report.computed == 5000 - kept
    assert_complete(roomy, 5000)


# --- several processes -----------------------------------------------------------------------------------------------


def fill_in_a_child(store: Store, count: int, start: Iterable[int], results: multiprocessing.Queue) -> None:
    numbers = inputs_of(count)
    report = fill(store, "squares", {f"k{i}": numbers[f"k{i}"] for i in start}, Squares(pause=0.01), batches=7)
    results.put((report.done, report.computed, report.failed))


def test_two_processes_fill_one_store(store: Store) -> None:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    orders = (range(140), range(139, -1, -1))
    children = [context.Process(target=fill_in_a_child, args=(store, 140, order, results)) for order in orders]
    for child in children:
        child.start()
    reports = [results.get(timeout=120) for _ in children]
    for child in children:
        child.join(120)
    assert [child.exitcode for child in children] == [0, 0]
    assert [(done, failed) for done, _, failed in reports] == [(140, 0), (140, 0)]
    assert sorted(computed for _, computed, _ in reports) == [0, 140], "one computes, the other one waits"
    assert_complete(store, 140)


def test_processes_that_want_some_keys_in_common_do_not_wait(store: Store) -> None:
    """A batch skips what another process has finished since the keys were looked up."""

    def also(numbers: list[int]) -> list[np.ndarray]:
        if numbers == [0, 1, 2]:
            assert fill(store, "squares", {f"k{n}": n for n in (3, 4, 9)}, Squares()).computed == 3
        return [square(number) for number in numbers]

    report = fill(store, "squares", inputs_of(6), also, batches=3)
    assert (report.done, report.computed) == (6, 4)


KILLED = """
import sys, time
import numpy as np
from recbole_mm.artifacts.fill import fill
from recbole_mm.artifacts.store import Store

def work(numbers):
    time.sleep(0.02)
    return [np.full(16, number * number, dtype=np.float32) for number in numbers]

inputs = {f"k{number}": number for number in range(5000)}
fill(Store(sys.argv[1]), "squares", inputs, work, batches=5, show_progress=False)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_kill_minus_nine_loses_only_the_batch_in_flight(store: Store) -> None:
    finished = 0
    for round_ in range(1, 4):
        child = subprocess.Popen([sys.executable, "-c", KILLED, str(store.path)], stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 120
        while store.count() < finished + 20 * round_:
            assert child.poll() is None, child.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.005)
        seen = store.count()
        os.kill(child.pid, signal.SIGKILL)
        assert child.wait(60) == -signal.SIGKILL
        child.communicate()
        finished = store.count()
        assert seen <= finished < 5000
        assert finished % 5 == 0  # whole batches only
        numbers = inputs_of(finished)
        np.testing.assert_array_equal(store.get_matrix(list(numbers)), np.stack([square(n) for n in numbers.values()]))
        with sqlite3.connect(store.path) as plain:
            assert plain.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    report = fill(store, "squares", inputs_of(5000), Squares(), batches=500)
    assert report.computed == 5000 - finished
    assert_complete(store, 5000)
