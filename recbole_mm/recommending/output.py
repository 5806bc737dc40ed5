"""Recommendations as files, written a chunk at a time, so that what was interrupted goes on.

Beside `top.csv` there is `top.csv.parts/` while it is written: one file for each chunk, whole or not there. The same
command goes on with it, and another one begins anew. At the end the chunks are joined, and the folder goes.
"""

from __future__ import annotations

import csv
import itertools
import json
import logging
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from recbole_mm.errors import ConfigError
from recbole_mm.utils.escaping import csv_cell, encodable
from recbole_mm.utils.file_lock import locked
from recbole_mm.utils.files import atomic_write, disk_errors, make_folder, read_json, write_json

logger = logging.getLogger(__name__)

Row = Mapping[str, Any]
"""`user` and the lists `item`, `score` and `title`, the best first; perhaps `reason`."""

STATE = "state.json"


def write_csv(path: Path, rows: Iterable[Row], fields: Sequence[str], separator: str = ",") -> None:
    """Write a line for each recommendation. Text that a spreadsheet would compute has a `'` before it."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter=separator, lineterminator="\n")
        for record in _recommendations(rows, fields):
            writer.writerow([csv_cell(encodable(value) if isinstance(value, str) else value) for value in record])


def write_jsonl(path: Path, rows: Iterable[Row], fields: Sequence[str]) -> None:
    """Write a line for each row, with its list of recommendations."""
    with path.open("w", encoding="utf-8", newline="") as file:
        for row in rows:
            own = [name for name in ("item", "score", "title") if name in fields]
            items = [dict(zip(own, values, strict=True)) for values in zip(*(row[name] for name in own), strict=True)]
            said = {name: row[name] for name in fields if name not in (*own, "rank")}
            line = json.dumps({**said, "items": items}, ensure_ascii=False)
            file.write(encodable(line) + "\n")


def write_parquet_rows(path: Path, rows: Iterable[Row], fields: Sequence[str]) -> None:
    """Write a row for each recommendation, with exact ids."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {"rank": pa.int32(), "score": pa.float64()}
    columns: list[list[Any]] = [list(column) for column in zip(*_recommendations(rows, fields), strict=True)]
    schema = pa.schema([(name, kinds.get(name, pa.string())) for name in fields])
    texts = [[encodable(value) if isinstance(value, str) else value for value in column] for column in columns] or [
        [] for _ in fields
    ]
    pq.write_table(pa.table(dict(zip(fields, texts, strict=True)), schema=schema), path, compression="zstd")


def _recommendations(rows: Iterable[Row], fields: Sequence[str]) -> Iterator[list[Any]]:
    for row in rows:
        for place in range(len(row["item"])):
            values = {**row, "rank": place + 1}
            yield [value[place] if isinstance(value := values[name], list) else value for name in fields]


def join_text(target: Path, parts: Sequence[Path], header: str) -> None:
    """Join files of lines, with a header before them."""
    with target.open("wb") as file:
        file.write(header.encode())
        for part in parts:
            with part.open("rb") as one:
                shutil.copyfileobj(one, file, 1 << 20)


def join_parquet(target: Path, parts: Sequence[Path], header: str) -> None:
    """Join Parquet files, a row group at a time."""
    import pyarrow.parquet as pq

    with pq.ParquetWriter(target, pq.read_schema(parts[0]), compression="zstd") as writer:
        for part in parts:
            file = pq.ParquetFile(part)
            for group in range(file.num_row_groups):
                writer.write_table(file.read_row_group(group))


WRITERS: Mapping[str, tuple[Callable[..., None], Callable[..., None]]] = {
    ".csv": (write_csv, join_text),
    ".jsonl": (write_jsonl, join_text),
    ".parquet": (write_parquet_rows, join_parquet),
}
"""End of a file's name -> what writes a chunk, and what joins the chunks."""


def check_output(path: Path) -> None:
    """Make sure that recommendations can be written to a file of this name.

    Raises:
        ConfigError: its end is none of `WRITERS`, or it is a folder.
    """
    if path.suffix not in WRITERS:
        raise ConfigError(f"--out={path}: recommendations are written as {', '.join(WRITERS)}, told by the name's end")
    if path.is_dir():
        raise ConfigError(f"--out={path} is a folder; give the name of a file")


def write_chunks(
    path: Path,
    chunks: Iterable[Callable[[], Sequence[Row]]],
    fields: Sequence[str],
    identity: Mapping[str, Any],
    report: Callable[[int], None] = lambda done: None,
) -> Path:
    """Write rows to a file, chunk by chunk, and go on where an interrupted process of the same arguments ended.

    Args:
        path: the file; its end tells the kind.
        chunks: each makes its rows when it is called; those that are written already are passed over.
        fields: names of the columns.
        identity: what the rows depend on; a folder of parts that was begun with other values is thrown away.
        report: called with the number of chunks that are done.

    Raises:
        ConfigError: see `check_output`.
        DiskError: it cannot be written.
    """
    check_output(path)
    write, join = WRITERS[path.suffix]
    parts, folder = [], path.with_name(f"{path.name}.parts")
    wanted, waiting = json.loads(json.dumps({**identity, "fields": list(fields)})), iter(chunks)
    with locked(folder, "writing"):
        if not _goes_on(folder, wanted):
            # What is refused with the first rows must not cost another command its parts.
            rows_of_first = [chunk() for chunk in itertools.islice(waiting, 1)]
            waiting = itertools.chain([lambda: rows_of_first.pop()] if rows_of_first else [], waiting)
            _begin(folder, wanted)
        for number, chunk in enumerate(waiting):
            part = folder / f"{number:07d}{path.suffix}"
            if not part.is_file():
                rows = chunk()
                with atomic_write(part) as draft:
                    write(draft, rows, fields)
            parts.append(part)
            report(number + 1)
        if not parts:
            with atomic_write(part := folder / f"{0:07d}{path.suffix}") as draft:
                write(draft, [], fields)
            parts.append(part)
        header = ",".join(fields) + "\n" if path.suffix == ".csv" else ""
        with atomic_write(path) as draft:
            join(draft, parts, header)
        shutil.rmtree(folder)
    return path


def _goes_on(folder: Path, wanted: Mapping[str, Any]) -> bool:
    """Return whether a folder was begun with the same values."""
    try:
        begun = read_json(folder / STATE)
    except (OSError, ValueError):
        return False
    if begun != wanted:
        return False
    logger.info("%s: going on after %d parts", folder, len([part for part in folder.iterdir() if part.stem.isdigit()]))
    return True


def _begin(folder: Path, wanted: Mapping[str, Any]) -> None:
    """Begin an empty folder, in the place of one that was begun with other values."""
    with disk_errors(folder):
        if folder.exists():
            if any(folder.iterdir()) and not (folder / STATE).is_file():
                raise ConfigError(f"{folder} is in the way and was not made here; move it, or give another --out")
            shutil.rmtree(folder)
    make_folder(folder)
    write_json(folder / STATE, wanted)
