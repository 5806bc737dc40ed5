"""Values kept within a bound on memory."""

from __future__ import annotations

import doctest
from concurrent.futures import ThreadPoolExecutor

from recbole_mm.utils import cache
from recbole_mm.utils.cache import ByteCache


def test_the_example_of_the_docstring():
    assert doctest.testmod(cache).failed == 0


def test_the_least_recently_used_go_first():
    kept: ByteCache[str, int] = ByteCache(10)
    for value, key in enumerate("abc"):
        kept.put(key, value, 3)
    assert kept.get("a") == 0
    kept.put("d", 3, 3)
    assert [kept.get(key) for key in "abcd"] == [0, None, 2, 3]
    assert (len(kept), kept.nbytes) == (3, 9)


def test_a_value_in_place_of_another_is_counted_once():
    kept: ByteCache[str, int] = ByteCache(10)
    kept.put("a", 0, 8)
    kept.put("a", 1, 4)
    assert (kept.get("a"), kept.nbytes) == (1, 4)


def test_what_alone_is_too_large_is_not_kept():
    kept: ByteCache[str, int] = ByteCache(10)
    kept.put("a", 0, 11)
    assert (kept.get("a"), len(kept), kept.nbytes) == (None, 0, 0)


def test_threads_keep_the_count():
    kept: ByteCache[int, int] = ByteCache(50)

    def use(start: int) -> None:
        for number in range(start, start + 500):
            kept.put(number % 70, number, 1 + number % 5)
            kept.get(number % 7)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(use, range(8)))
    assert kept.nbytes == sum(size for _, size in kept._kept.values()) <= 50
