"""Sampled candidates of a run: drawn once per seed, stored in its folder by token, and read again when the run is
resumed or loaded.

The draw goes by tokens, not by RecBole's ids, and depends on the seed, the phase, the ranked users and their histories
alone: every model of the same data, split and seed ranks the same items. Validation and test have separate draws.
`candidates-valid.parquet` and `candidates-test.parquet` have a row per ranked case, in the order of the
users' tokens: `user_id`, and the lists `positives` and `negatives`, of item tokens in ascending order.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from recbole_mm.errors import ConfigError, DataError
from recbole_mm.evaluation.csr import CSR
from recbole_mm.evaluation.sampled import SampledCandidates
from recbole_mm.utils.files import read_parquet, write_parquet

FILES = {"valid": "candidates-valid.parquet", "test": "candidates-test.parquet"}
SAMPLED_MODE = re.compile(r"(uni|pop)([1-9]\d*)")
_LISTS = ("positives", "negatives")


class Tokens:
    """RecBole's ids in the order of their tokens.

    Args:
        tokens: (n,) ids of the data files by RecBole's ids; index 0 is padding and stays at place 0.

    Example:
        >>> tokens = Tokens(["[PAD]", "pear", "apple"])
        >>> tokens.ids, tokens.named(np.array(["pear", "fig"]))
        (array([0, 2, 1]), array([2, 0]))
    """

    def __init__(self, tokens: Sequence[str]) -> None:
        self.tokens = np.asarray(tokens).astype(str)
        self.ids = np.concatenate([[0], 1 + np.argsort(self.tokens[1:], kind="stable")])
        self.places = np.empty(len(self.ids), dtype=np.int64)
        self.places[self.ids] = np.arange(len(self.ids))

    def __len__(self) -> int:
        return len(self.ids)

    def named(self, tokens: np.ndarray) -> np.ndarray:
        """Return the places (m,) of tokens (m,); 0 for an unknown one."""
        ordered = self.tokens[self.ids[1:]]
        at = np.minimum(np.searchsorted(ordered, tokens), len(ordered) - 1)
        return np.where(ordered[at] == tokens, at + 1, 0)


class Cases:
    """The ranked cases of a phase in the order of tokens: rows by user, items by place among `Tokens`.

    Args:
        users: `EvalUsers` of the phase.
        user_tokens, item_tokens: tokens by RecBole's ids, padding first.
    """

    def __init__(self, users, user_tokens: Sequence[str], item_tokens: Sequence[str]) -> None:
        self.items = Tokens(item_tokens)
        names = np.asarray(user_tokens).astype(str)[users.user_ids]
        self.rows = np.argsort(names, kind="stable")  # of one user's cases, the order of time stays
        self.names = names[self.rows]
        self.positives = self._by_place(users.positives)
        self.history = None if users.history is None else self._by_place(users.history)

    def _by_place(self, lists: CSR) -> CSR:
        mine = lists.take(self.rows)
        return CSR(mine.offsets, self.items.places[mine.items]).distinct(len(self.items))

    def by_id(self, candidates: CSR) -> SampledCandidates:
        """Turn candidates by place, in the order of tokens, into RecBole's ids in the order of `EvalUsers`."""
        back = np.empty_like(self.rows)
        back[self.rows] = np.arange(len(self.rows))
        mine = candidates.take(back)
        return SampledCandidates(CSR(mine.offsets, self.items.ids[mine.items]).distinct(len(self.items)))


def draw(cases: Cases, mode: str, phase: str, seed: int, counts: np.ndarray | None) -> CSR:
    """Draw the candidates of each case by place, positives included, in the order of `cases`.

    Args:
        cases: the cases to rank.
        mode: `uni<n>` for n per positive, all items alike; `pop<n>` for n per positive with chances by `counts`.
        phase: valid or test.
        seed: the run's seed.
        counts: (item_num,) number of training interactions of each item, by RecBole's id.

    Raises:
        ConfigError: another mode, or `pop<n>` without counts.
    """
    found = SAMPLED_MODE.fullmatch(mode)
    if not found:
        raise ConfigError(f"eval_args.mode: {mode!r} is no ranking; give full, uni<n> or pop<n>, such as uni100")
    weights = None
    if found[1] == "pop":
        if counts is None:
            raise ConfigError(f"eval_args.mode: {mode} needs the counts of the training data")
        weights = counts[cases.items.ids]
    return SampledCandidates.draw(
        cases.positives,
        cases.history,
        len(cases.items),
        int(found[2]),
        seed=(seed, list(FILES).index(phase)),
        weights=weights,
    ).items


def write_candidates(path: Path, cases: Cases, candidates: CSR) -> None:
    """Write drawn candidates; a reader never sees half a file.

    Raises:
        DiskError: the file cannot be written.
    """
    negatives = candidates.without(cases.positives, len(cases.items))
    tokens = cases.items.tokens[cases.items.ids]
    lists = [
        pa.ListArray.from_arrays(pa.array(one.offsets, pa.int32()), pa.array(tokens[one.items], pa.string()))
        for one in (cases.positives, negatives)
    ]
    table = pa.table({"user_id": pa.array(cases.names, pa.string()), **dict(zip(_LISTS, lists))})
    write_parquet(path, table)


def read_candidates(path: Path, cases: Cases) -> CSR:
    """Read the candidates by place, as `draw` returns them, that `write_candidates` wrote.

    Raises:
        DataError: it cannot be read, or was not written for these users, held-out items and histories.
    """
    table = _read(path)
    misfit = f"{path} does not fit the data of this run: %s; the data has changed since, so run the model anew"
    names = table["user_id"].to_numpy().astype(str)
    if not np.array_equal(names, cases.names):
        raise DataError(misfit % "it ranks other users")
    stored = {}
    for name in _LISTS:
        offsets, tokens = _flat(table[name])
        places = cases.items.named(tokens.astype(str))
        if not places.all():
            raise DataError(misfit % f"there is no item {tokens[np.argmin(places)]!r}")
        stored[name] = CSR(offsets, places).distinct(len(cases.items))
    if stored["positives"].keys(len(cases.items)).tolist() != cases.positives.keys(len(cases.items)).tolist():
        raise DataError(misfit % "other items are held out")
    excluded = cases.positives
    if cases.history is not None:
        excluded = excluded.union(cases.history, len(cases.items))
    if len(stored["negatives"].without(excluded, len(cases.items)).items) < len(stored["negatives"].items):
        raise DataError(misfit % "a negative is an item that the user knows")
    return cases.positives.union(stored["negatives"], len(cases.items))


def candidates_digest(run_dir: str | os.PathLike) -> str | None:
    """Return a hash of the candidates of a run's test users; None for a run without any (full ranking).

    Raises:
        DataError: the file cannot be read.
    """
    path = Path(run_dir) / FILES["test"]
    if not path.is_file():
        return None
    table = _read(path)
    total = hashlib.sha256(_hashes(table["user_id"].to_numpy()))
    for name in _LISTS:
        offsets, tokens = _flat(table[name])
        total.update(offsets.astype("<i8").tobytes() + _hashes(tokens))
    return total.hexdigest()


def _read(path: Path) -> pa.Table:
    try:
        return read_parquet(path, columns=["user_id", *_LISTS]).combine_chunks()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read as stored candidates ({str(error).splitlines()[0]}); run the model anew"
        ) from error


def _flat(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Return a column of lists as int64 offsets (n + 1,) and the flat tokens."""
    lengths = column.combine_chunks().value_lengths().to_numpy(zero_copy_only=False)
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), _strings(column.combine_chunks().flatten())


def _strings(values: pa.Array) -> np.ndarray:
    return values.to_numpy(zero_copy_only=False).astype(object)


def _hashes(tokens: np.ndarray) -> bytes:
    """Return a hash of each token, the same on every machine."""
    return pd.util.hash_array(np.asarray(tokens, dtype=object)).astype("<u8").tobytes()
