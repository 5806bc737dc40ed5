"""What a trained model knows, for other programs: vectors of items and users with their ids, an index, a model card.

    export/
        README.md                              the model card
        items.safetensors  item_ids.txt        or items.npy with item_ids.txt, or items.parquet with ids in it
        users.safetensors  user_ids.txt
        items.faiss                            with `index`

A score is the dot product of a user's and an item's vector. Row n of the vectors is of the id in line n. Files of item
vectors can be read back as `item_features` of another run: `{file: items.npy, ids: item_ids.txt}`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from recbole_mm.errors import ConfigError, DataError
from recbole_mm.recommending.card import model_card
from recbole_mm.recommending.command import Source, opened
from recbole_mm.recommending.index import Recall, build_index, check_index
from recbole_mm.recommending.recommender import Recommender
from recbole_mm.recommending.requests import ROWS_AT_ONCE
from recbole_mm.utils.files import atomic_write, make_folder, write_text
from recbole_mm.utils.paths import expanded

Put = Callable[[Sequence[str], np.ndarray], None]
"""Takes the ids (n) and vectors (n, d) float32 of some rows, one call after the other."""

CARD = "README.md"


@dataclass
class Exported:
    """What was written.

    Attributes:
        folder: with all of it.
        files: name -> what it holds, in words.
        recall: of the index; None without one.
    """

    folder: Path
    files: dict[str, str] = field(default_factory=dict)
    recall: Recall | None = None


def export(
    run: Source,
    out: str | os.PathLike[str],
    *,
    kind: str = "safetensors",
    users: bool = True,
    known: str = "all",
    index: str | None = None,
    model: type | None = None,
    changed: Mapping[str, Any] | None = None,
) -> Exported:
    """Write the vectors of a finished run, perhaps an index over its items, and its model card.

    Args:
        run, model, changed: as for `recommend`.
        out: the folder; files of the same names in it are replaced.
        kind: `safetensors`, `parquet` or `npy`.
        users: include users; of a model of sequences, the vectors after what is `known` of them.
        known: `all` interactions of users, or those before the `test` items.
        index: `hnsw` or `flat`: also build a FAISS index of items, for inner products, and measure its recall.

    Raises:
        ConfigError: the model scores by no vectors, another `kind` or `index`, or FAISS is not installed.
        DiskError: something cannot be written.
    """
    if kind not in WRITERS:
        raise ConfigError(f"--format={kind} is not accepted; give {', '.join(WRITERS)}")
    if index is not None:
        check_index(index)
    recommender, folder = opened(run, model, changed), Path(expanded(os.fspath(out)))
    vectors = recommender.item_vectors()
    if vectors is None:
        raise ConfigError(
            f"{recommender.config['model']} does not score by the dot product of two vectors, so it has none to export"
        )
    make_folder(folder)
    done = Exported(folder)
    items = vectors[1:].float().cpu().numpy()
    done.files |= _write(folder, kind, "item", iter([(recommender.item_tokens[1:].tolist(), items)]), items.shape)
    if users:
        ids = recommender.users_with_history(known)
        rows = _user_batches(recommender, ids, known)
        done.files |= _write(folder, kind, "user", rows, (len(ids), items.shape[1]))
    if index is not None:
        path = folder / "items.faiss"
        done.recall = build_index(index, items, lambda count: _some_users(recommender, known, count), path)
        done.files[path.name] = str(done.recall)
    write_text(folder / CARD, model_card(recommender, done.files))
    done.files[CARD] = "model card"
    return done


def _user_batches(recommender: Recommender, ids: np.ndarray, known: str) -> Iterator[tuple[Sequence[str], np.ndarray]]:
    for start in range(0, len(ids), ROWS_AT_ONCE):
        users = ids[start : start + ROWS_AT_ONCE]
        yield recommender.user_tokens[users], recommender.user_vectors(users, known).float().cpu().numpy()


def _some_users(recommender: Recommender, known: str, count: int) -> np.ndarray:
    """Return vectors of users, evenly spread over all."""
    ids = recommender.users_with_history(known)
    ids = ids[np.linspace(0, len(ids) - 1, min(count, len(ids))).astype(np.int64)]
    return np.concatenate([vectors for _, vectors in _user_batches(recommender, ids, known)])


def _write(
    folder: Path, kind: str, what: str, rows: Iterator[tuple[Sequence[str], np.ndarray]], shape: tuple[int, ...]
) -> dict[str, str]:
    """Write ids and vectors, and return the files with what they hold."""
    with WRITERS[kind](folder, what, (shape[0], shape[1])) as put:
        for ids, vectors in rows:
            put([str(one) for one in ids], vectors)
    said = f"{shape[0]:,} {what}s x {shape[1]}, float32"
    if kind == "parquet":
        return {f"{what}s.parquet": said}
    return {f"{what}s.{kind}": said, f"{what}_ids.txt": f"{what} of each row"}


@contextmanager
def _numpy(folder: Path, what: str, shape: tuple[int, int]) -> Iterator[Put]:
    with atomic_write(folder / f"{what}s.npy") as draft, _ids(folder, what) as put_ids:
        table = np.lib.format.open_memmap(draft, mode="w+", dtype=np.float32, shape=shape)
        yield _into(table, put_ids)
        table.flush()


@contextmanager
def _safetensors(folder: Path, what: str, shape: tuple[int, int]) -> Iterator[Put]:
    from safetensors.numpy import save_file

    table = np.empty(shape, dtype=np.float32)
    with _ids(folder, what) as put_ids:
        yield _into(table, put_ids)
    with atomic_write(folder / f"{what}s.safetensors") as draft:
        save_file({"vectors": table}, draft, metadata={"rows": f"{what}_ids.txt"})


def _into(table: np.ndarray, put_ids: Callable[[Sequence[str]], None]) -> Put:
    """Return what fills a table, from its first row on."""
    filled = 0

    def put(ids: Sequence[str], vectors: np.ndarray) -> None:
        nonlocal filled
        put_ids(ids)
        table[filled : filled + len(ids)] = vectors
        filled += len(ids)

    return put


@contextmanager
def _parquet(folder: Path, what: str, shape: tuple[int, int]) -> Iterator[Put]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    name, kind = f"{what}_id", pa.list_(pa.float32(), shape[1])
    schema = pa.schema([(name, pa.string()), ("vector", kind)])
    with atomic_write(folder / f"{what}s.parquet") as draft, pq.ParquetWriter(draft, schema) as writer:

        def put(ids: Sequence[str], vectors: np.ndarray) -> None:
            flat = pa.array(np.ascontiguousarray(vectors, dtype=np.float32).reshape(-1))
            table = {name: pa.array(ids, pa.string()), "vector": pa.FixedSizeListArray.from_arrays(flat, shape[1])}
            writer.write_table(pa.table(table, schema=schema))

        yield put


@contextmanager
def _ids(folder: Path, what: str) -> Iterator[Callable[[Sequence[str]], None]]:
    with atomic_write(folder / f"{what}_ids.txt") as draft, draft.open("w", encoding="utf-8", newline="") as file:

        def put(ids: Sequence[str]) -> None:
            broken = next((one for one in ids if "\n" in one or "\r" in one), None)
            if broken is not None:
                raise DataError(f"{what} {broken!r} has a line break in its id; export it as parquet")
            file.writelines(f"{one}\n" for one in ids)

        yield put


WRITERS: Mapping[str, Callable[[Path, str, tuple[int, int]], AbstractContextManager[Put]]] = {
    "safetensors": _safetensors,
    "parquet": _parquet,
    "npy": _numpy,
}
"""Format -> what writes ids and vectors of it."""
