"""Whom to recommend to, as it is given: ids, lists in files, and histories as a table, JSON lines or one line of ids.

A file of histories is JSON lines, one new user each:

    {"user": "ann", "history": ["i7", "i9"]}

or a table of interactions (.csv, .tsv, .inter or .parquet) with the columns `user_id`, `item_id` and, unless it is in
the order of time already, `timestamp`. JSON lines are read one by one, so a file may be larger than memory.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from recbole_mm.errors import DataError
from recbole_mm.evaluation.csr import CSR
from recbole_mm.recommending.recommender import Recommender
from recbole_mm.utils.paths import expanded, is_path

ROWS_AT_ONCE = 4096
"""Users or histories that are recommended to at once."""

LONGEST_LINE = 1 << 24
"""Characters of a line of a file; a longer one is none."""

SEPARATORS = {".csv": ",", ".tsv": "\t", ".inter": "\t"}
JSON_LINES = (".jsonl", ".ndjson")


@dataclass(frozen=True)
class Batch:
    """Some of those that are recommended to.

    Attributes:
        names: of each, as it is written to the result.
        ids: (n,) RecBole's ids of users of the data, or of items; None for new users.
        histories: (n) RecBole's item ids; None for what is known of the users.
    """

    names: Sequence[str]
    ids: np.ndarray | None = None
    histories: CSR | None = None


def of_users(recommender: Recommender, tokens: Sequence[str] | None, known: str = "all") -> Iterator[Batch]:
    """Yield batches of users of the data; None for all of whom enough is known.

    Raises:
        DataError: a user is not in the data.
    """
    ids = recommender.users_with_history(known) if tokens is None else recommender.user_ids(tokens)
    for start in range(0, len(ids), ROWS_AT_ONCE):
        users = ids[start : start + ROWS_AT_ONCE]
        yield Batch([str(token) for token in recommender.user_tokens[users]], users)


def of_histories(
    recommender: Recommender, given: Iterator[tuple[str, Sequence[str], str]], skip_unknown: bool = False
) -> Iterator[Batch]:
    """Yield batches of new users.

    Args:
        recommender: knows the items.
        given: name, item tokens, and where they stand, for messages.
        skip_unknown: leave out items that the run does not know; else they are an error.

    Raises:
        DataError: a history is empty, or holds an unknown item; names where it stands.
    """
    names: list[str] = []
    lists: list[np.ndarray] = []
    for name, tokens, where in given:
        names.append(name)
        lists.append(_known_items(recommender, tokens, where, skip_unknown))
        if len(names) == ROWS_AT_ONCE:
            yield Batch(names, None, CSR.from_lists(lists))
            names, lists = [], []
    if names:
        yield Batch(names, None, CSR.from_lists(lists))


def _known_items(recommender: Recommender, tokens: Sequence[str], where: str, skip_unknown: bool) -> np.ndarray:
    if skip_unknown:
        tokens = [token for token in tokens if recommender.knows_item(token)]
    try:
        items = recommender.item_ids(tokens)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error
    if not len(items):
        raise DataError(f"{where}: the history is empty{' of known items' * skip_unknown}; give one item at least")
    return items


def read_histories(path: Path) -> Iterator[tuple[str, Sequence[str], str]]:
    """Yield name, item tokens, and where they stand, of each history of a file.

    Raises:
        DataError: the file is missing, of an unknown kind, or malformed.
    """
    path = Path(expanded(str(path)))
    if not path.is_file():
        raise DataError(f"{path}: no such file of histories")
    if path.suffix in JSON_LINES:
        yield from _json_lines(path)
    elif path.suffix in (*SEPARATORS, ".parquet"):
        yield from _table(path)
    else:
        known = ", ".join((*JSON_LINES, *SEPARATORS, ".parquet"))
        raise DataError(f"{path}: histories are read from {known}, told by the name's end")


def _json_lines(path: Path) -> Iterator[tuple[str, Sequence[str], str]]:
    for number, line in _lines(path):
        where = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f'{where}: no JSON ({error}); a line is {{"user": "ann", "history": ["i7"]}}') from error
        history = record.get("history") if isinstance(record, dict) else None
        if not isinstance(history, list) or not all(map(_is_id, history)):
            raise DataError(f'{where}: no list "history" of item ids, as in {{"user": "ann", "history": ["i7"]}}')
        user = record.get("user", number)
        if not _is_id(user):
            raise DataError(f'{where}: "user" is no id, as in {{"user": "ann", "history": ["i7"]}}; or leave it out')
        yield str(user), [str(item) for item in history], where


def _is_id(value: Any) -> bool:
    return isinstance(value, (str, int)) and not isinstance(value, bool)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield number and text of each line that is not empty, however many there are."""
    try:
        with path.open(encoding="utf-8") as file:
            number = 0
            while line := file.readline(LONGEST_LINE):
                number += 1
                if len(line) == LONGEST_LINE and not line.endswith("\n"):
                    raise DataError(f"{path}, line {number}: longer than {LONGEST_LINE:,} characters")
                if line.strip():
                    yield number, line.strip()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error.reason} at byte {error.start})") from error


def _table(path: Path) -> Iterator[tuple[str, Sequence[str], str]]:
    table = _read_table(path)
    lacking = [name for name in ("user_id", "item_id") if name not in table]
    if lacking:
        raise DataError(f"{path}: no column {lacking[0]!r}; it has {', '.join(map(str, table.columns))}")
    for name in ("user_id", "item_id"):
        if (empty := table[name].isna() | (table[name] == "")).any():
            raise DataError(f"{path}, row {int(np.flatnonzero(empty)[0]) + 1}: no {name}")
    if "timestamp" in table:
        times = pd.to_numeric(table["timestamp"], errors="coerce")
        if times.isna().any():
            raise DataError(f"{path}, row {int(np.flatnonzero(times.isna())[0]) + 1}: timestamp is no number")
        table = table.iloc[np.argsort(times.to_numpy(), kind="stable")]
    for user, rows in table.groupby("user_id", sort=False):
        yield str(user), rows["item_id"].tolist(), f"{path}, user {user!r}"


def _read_table(path: Path) -> pd.DataFrame:
    """Return the columns of a table as text, their names without RecBole's types."""
    try:
        if path.suffix == ".parquet":
            table = pd.read_parquet(path)
            for name in {"user_id", "item_id"} & set(table):
                table[name] = table[name].map(str, na_action="ignore")
        else:
            separator = SEPARATORS[path.suffix]
            # As everywhere, nothing is quoted in RecBole's own files.
            quoting = csv.QUOTE_MINIMAL if path.suffix == ".csv" else csv.QUOTE_NONE
            table = pd.read_csv(
                path, sep=separator, dtype=str, keep_default_na=False, encoding="utf-8", quoting=quoting
            )
    except (OSError, ValueError, pd.errors.ParserError) as error:
        raise DataError(f"{path}: cannot be read as a table ({' '.join(str(error).split())})") from error
    return table.rename(columns=lambda name: str(name).partition(":")[0])


def listed(given: Any) -> list[str] | None:
    """Return ids that are given as a list, as `a,b,c`, or as a file with one in each line; None for None.

    Raises:
        DataError: the list is empty.

    Example:
        >>> listed("i7, i9")
        ['i7', 'i9']
    """
    if given is None:
        return None
    if not isinstance(given, str):
        found = [str(one) for one in given]
    elif is_path(expanded(given)) and Path(expanded(given)).is_file():
        found = [line for _, line in _lines(Path(expanded(given)))]
    else:
        found = [one.strip() for one in given.split(",") if one.strip()]
    if not found:
        raise DataError("a list of ids is empty; give them as a,b,c or as a file with one in each line")
    return found
