"""Amazon's reviews and ratings as interactions, filtered to their k-core while the file is read as a stream.

The file is read twice. The first time only a hash of each user and item is kept (16 bytes a line, and about as much to
count them); the second time, the ids of the lines that stay. Texts of reviews are never kept.
"""

from __future__ import annotations

import itertools
import math
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from recbole_mm.datasets.amazon_records import parse_record, read_records
from recbole_mm.datasets.files import Layout, check_lines, no_end, read_rows
from recbole_mm.datasets.values import NUMBER, id_fault, units_of
from recbole_mm.errors import DataError
from recbole_mm.utils.progress import progress

Review = tuple[str, str, float, int]
"""User, item, rating, time: unix seconds in 2014 and 2018, milliseconds in 2023."""

_JSON_KEYS = {  # by the key of the user: 2014 and 2018, then 2023
    "reviewerID": ("reviewerID", "asin", "overall", "unixReviewTime"),
    "user_id": ("user_id", "parent_asin", "rating", "timestamp"),
}
_CSV_NAMES = (
    ("user_id", "reviewerid"),
    ("parent_asin", "asin"),
    ("rating", "overall"),
    ("timestamp", "unixreviewtime"),
)
_CSV = Layout(header=False)
_ASIN_LENGTH = 10
_EXACT = 2**53
_LINES_TO_TELL = 200


@dataclass(frozen=True)
class Reviews:
    """Interactions that stay.

    Attributes:
        table: `user_id` and `item_id` (categories of str), `rating` and `timestamp` (int64), in the file's order.
        read: lines of the file.
        repeated: of the lines left by a first count, how many repeat a user's review of an item.
        notes: further lines for the summary.
    """

    table: pd.DataFrame
    read: int
    repeated: int
    notes: tuple[str, ...]


def read_reviews(path: Path, k_core: int) -> Reviews:
    """The reviews of a file, one for each user and item (the earliest), every user and item with `k_core` at least.

    Raises:
        DataError: the file is malformed, naming the line; nothing stays.
    """
    kept, notes = None, _check_csv(path) if ".csv" in path.suffixes else ()
    if k_core > 1:
        kept = _rows_of_core(path, k_core)
        if not kept.any():
            raise DataError(f"{path}: no {k_core}-core in its {len(kept):,} lines; choose a smaller --k_core")
    users: dict[str, int] = {}
    items: dict[str, int] = {}
    user_codes, item_codes, ratings, times = array("i"), array("i"), array("d"), array("q")
    read = 0
    for read, (user, item, rating, time) in enumerate(progress(iter_reviews(path), "reading reviews", unit="line"), 1):
        if kept is not None and not kept[read - 1]:
            continue
        user_codes.append(users.setdefault(user, len(users)))
        item_codes.append(items.setdefault(item, len(items)))
        ratings.append(rating)
        times.append(time)
    for token in itertools.chain(users, items):
        if reason := id_fault(token):
            raise DataError(f"{path}: id {token!r} {reason}")
    by_user, by_item = np.asarray(user_codes), np.asarray(item_codes)
    moments = np.asarray(times)
    if len(units := units_of(moments)) > 1:
        raise DataError(
            f"{path}: some times are of the size of {units[0]} and some of {units[1]}; write all times alike"
        )
    first = _earliest(by_user, by_item, moments)
    rows = np.flatnonzero(first)
    # Where two ids share a hash, the first count was too high; this one is exact.
    rows = rows[_in_core(by_user[rows], by_item[rows], k_core)]
    table = pd.DataFrame(
        {
            "user_id": pd.Categorical.from_codes(by_user[rows], list(users)).remove_unused_categories(),
            "item_id": pd.Categorical.from_codes(by_item[rows], list(items)).remove_unused_categories(),
            "rating": np.asarray(ratings)[rows],
            "timestamp": moments[rows],
        }
    )
    return Reviews(table, read, int((~first).sum()), notes)


def _rows_of_core(path: Path, k: int) -> np.ndarray:
    """Whether each line is of the k-core, counted by hashes. bool (lines,)."""
    users, items = array("q"), array("q")
    for user, item, _, _ in progress(iter_reviews(path), f"counting reviews for the {k}-core", unit="line"):
        users.append(hash(user))
        items.append(hash(item))
    by_user = pd.factorize(np.frombuffer(users, np.int64))[0].astype(np.int32)
    by_item = pd.factorize(np.frombuffer(items, np.int64))[0].astype(np.int32)
    return _in_core(by_user, by_item, k)


def _in_core(users: np.ndarray, items: np.ndarray, k: int) -> np.ndarray:
    """Whether each row's user and item both have k distinct partners among those that stay.

    Args:
        users, items: codes from 0, int (M,).
        k: the least number of distinct partners.
    """
    pairs = np.unique(users.astype(np.int64) * (int(items.max(initial=-1)) + 1) + items, return_index=True)[1]
    left_users, left_items = users[pairs], items[pairs]
    good_users = np.ones(int(users.max(initial=-1)) + 1, dtype=bool)
    good_items = np.ones(int(items.max(initial=-1)) + 1, dtype=bool)
    while True:
        good_users &= np.bincount(left_users, minlength=len(good_users)) >= k
        good_items &= np.bincount(left_items, minlength=len(good_items)) >= k
        stay = good_users[left_users] & good_items[left_items]
        if stay.all():
            return good_users[users] & good_items[items]
        left_users, left_items = left_users[stay], left_items[stay]


def _earliest(users: np.ndarray, items: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Marks each pair's earliest row; of equal times the first in the file. bool (M,)."""
    order = np.lexsort((times, items, users))  # stable
    new = np.ones(len(order), dtype=bool)
    new[1:] = (np.diff(users[order]) != 0) | (np.diff(items[order]) != 0)
    marked = np.zeros(len(order), dtype=bool)
    marked[order[new]] = True
    return marked


# ------------------------------------------------------------------------------------------------------ single reviews


def iter_reviews(path: Path) -> Iterator[Review]:
    """The reviews of a `.json`, `.jsonl` or `.csv` file (or `.gz` of these), one at a time.

    A CSV file may have a header, as in 2023. Without one its columns are user, item, rating, time (2014) or item, user,
    rating, time (2018): items are recognized by their ids of ten characters.

    Raises:
        DataError: a line is malformed or lacks a value, naming it.
    """
    return _from_csv(path) if ".csv" in path.suffixes else _from_json(path)


def _from_json(path: Path) -> Iterator[Review]:
    keys: tuple[str, ...] = ()
    for number, text in read_records(path):
        record = parse_record(path, number, text)
        if not keys:
            keys = next((keys for user, keys in _JSON_KEYS.items() if user in record), ())
            if not keys:
                raise DataError(
                    f"{path}, line {number}: no reviewerID (2014, 2018) and no user_id (2023); not reviews?"
                )
        yield _review(path, number, keys, tuple(record.get(key) for key in keys))


def _from_csv(path: Path) -> Iterator[Review]:
    lines = read_rows(path, _CSV)
    head = list(itertools.islice(lines, _LINES_TO_TELL))
    if not head:
        raise DataError(f"{path}: the file is empty")
    width = len(head[0][1])
    order = _order_of_header(path, head[0][1])
    if order is not None:
        head = head[1:]
    else:
        order = _order_of_ids(path, [row for _, row in head])
    names = tuple(kinds[0] for kinds in _CSV_NAMES)
    for number, row in itertools.chain(head, lines):
        if len(row) != width:
            raise DataError(f"{path}, line {number}: {len(row)} fields instead of {width}")
        yield _review(path, number, names, tuple(row[place] for place in order))


def _check_csv(path: Path) -> tuple[str, ...]:
    """Notes on a CSV file; DataError, naming the line, where it is malformed."""
    first = next(read_rows(path, _CSV), None)
    sound = first is None or check_lines(path, _CSV, len(first[1])).ended
    return () if sound else (no_end(path),)


def _order_of_header(path: Path, row: list[str]) -> list[int] | None:
    """Places of user, item, rating and time; None where the first line is a rating already."""
    place: Mapping[str, int] = {name.strip().lower(): index for index, name in enumerate(row)}
    found = [next((place[name] for name in names if name in place), None) for names in _CSV_NAMES]
    if all(index is None for index in found):
        return None
    for index, names in zip(found, _CSV_NAMES):
        if index is None:
            raise DataError(f"{path}, line 1: column {names[0]} is missing; found {', '.join(map(str.strip, row))}")
    return [index for index in found if index is not None]


def _order_of_ids(path: Path, rows: list[list[str]]) -> list[int]:
    if len(rows[0]) != 4:
        raise DataError(f"{path}, line 1: {len(rows[0])} fields; ratings have user, item, rating and time")
    asins = [sum(len(row) > column and len(row[column]) == _ASIN_LENGTH for row in rows) for column in (0, 1)]
    if asins[0] == asins[1]:
        raise DataError(f"{path}: cannot tell users from items; add the header user_id,parent_asin,rating,timestamp")
    return [1, 0, 2, 3] if asins[0] > asins[1] else [0, 1, 2, 3]


def _review(path: Path, number: int, names: tuple[str, ...], values: tuple[object, ...]) -> Review:
    for name, value in zip(names, values):
        if value is None or value == "":
            raise DataError(f"{path}, line {number}: {name} is missing")
    user, item, rating, time = values
    return (
        user if isinstance(user, str) else _numbered(path, number, names[0], user),
        item if isinstance(item, str) else _numbered(path, number, names[1], item),
        _number(path, number, names[2], rating),
        _whole(path, number, names[3], time),
    )


def _numbered(path: Path, number: int, name: str, value: object) -> str:
    """An id that JSON gives as a number."""
    if type(value) is int:
        return str(value)
    raise DataError(f"{path}, line {number}: {name} {value!r} is neither a text nor a whole number")


def _number(path: Path, number: int, name: str, value: object) -> float:
    written = type(value) in (int, float) or (isinstance(value, str) and NUMBER.fullmatch(value))
    found = float(value) if written else math.nan  # type: ignore[arg-type]
    if not math.isfinite(found):
        raise DataError(f"{path}, line {number}: {name} {value!r} is not a number")
    return found


def _whole(path: Path, number: int, name: str, value: object) -> int:
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 16:
        return int(value)
    found = _number(path, number, name, value)
    if abs(found) > _EXACT:
        raise DataError(f"{path}, line {number}: {name} {value!r} is too large")
    if found % 1:
        raise DataError(f"{path}, line {number}: {name} {value!r} is not a whole number of seconds or milliseconds")
    return int(found)
