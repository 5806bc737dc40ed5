"""Precomputed item vectors from files, lined up by item id and never by row position."""

from __future__ import annotations

import csv
import io
import json
import logging
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from recbole_mm.data.names import CONTROL, NameIndex
from recbole_mm.errors import DataError
from recbole_mm.utils.spelling import did_you_mean

logger = logging.getLogger(__name__)

TENSOR = "features"
IDS = "ids"
ID_COLUMN = "item_id"


def read_features(file: Path, ids: Path | None = None) -> tuple[list[str], np.ndarray]:
    """Item ids and their vectors.

    Args:
        file: `.npy` with an (n, d) array, or `.safetensors` with an (n, d) tensor named `features`.
        ids: n item ids: a text file with one per line, or a `.csv` or `.tsv` file with a column `item_id`. A
            safetensors file may instead hold them as a JSON list under `ids` in its metadata. Spaces around an id are
            dropped.

    Returns:
        n ids and an (n, d) array of numbers.

    Raises:
        DataError: a file is missing or malformed, there are no ids, their number is not n, or an id occurs twice.
    """
    for path in (file, ids):
        if path is not None and not path.is_file():
            raise DataError(f"feature file {path} does not exist")
    if file.suffix == ".npy":
        matrix, names = open_npy(file), None
    elif file.suffix == ".safetensors":
        matrix, names = _read_safetensors(file)
    else:
        raise DataError(f"feature file {file}: only .npy and .safetensors are read; save the array as one of them")
    _check_matrix(file, matrix)
    if ids is not None:
        names = _read_ids(ids)
    if names is None:
        raise DataError(f"feature file {file}: no item ids; name a file with one id per row as `ids`")
    where = ids or file
    if len(names) != len(matrix):
        raise DataError(f"feature file {file} has {len(matrix)} rows, but {where} names {len(names)} item ids")
    if len(set(names)) < len(names):
        twice = Counter(names).most_common(1)[0][0]
        raise DataError(f"{where}: item id {twice!r} occurs twice; keep one row per item")
    return names, matrix


def align(names: Sequence[str], matrix: np.ndarray, tokens: Sequence[str], what: str) -> np.ndarray:
    """Vectors in the order of RecBole's item ids.

    Args:
        names: n item ids of the rows of `matrix`.
        matrix: (n, d).
        tokens: item token of every RecBole id; padding first.
        what: the feature's name, for messages.

    Returns:
        (len(tokens), d) float32. Row 0 and the rows of items that have no vector are zeros; both these and the ids that
        are no items are counted in the log.

    Raises:
        DataError: no item has a vector, or most have none while most ids are no items; two items have the same one,
            their ids differing in spaces or Unicode form alone; or a vector in use holds NaN or infinity.
    """
    index_of = NameIndex({name.strip(): row for row, name in enumerate(names)}, f"feature {what}")
    items = [(index, index_of.find(token.strip())) for index, token in enumerate(tokens) if index]
    found = [(index, row) for index, row in items if row is not None]
    if 2 * len(found) < min(len(names), len(items)) or not found:
        used = {row for _, row in found}
        name = next((name for row, name in enumerate(names) if row not in used), "none")
        token = next((tokens[index] for index, row in items if row is None), "none")
        count = (
            f"only {len(found)} of its {len(names)} ids are items"
            if found
            else f"none of its {len(names)} ids is an item"
        )
        advice = "; if that is meant, leave the other rows out" if found else ""
        raise DataError(f"feature {what}: {count} of the dataset (compare {name!r} and {token!r}){advice}")
    indices, rows = map(list, zip(*found))
    if len(set(rows)) < len(rows):
        row = Counter(rows).most_common(1)[0][0]
        twins = " and ".join(repr(tokens[index]) for index, place in found if place == row)
        raise DataError(f"feature {what}: the items {twins} differ in spaces or Unicode form alone; name them apart")
    aligned = np.zeros((len(tokens), matrix.shape[1]), dtype=np.float32)
    aligned[indices] = matrix[rows]
    bad = np.flatnonzero(~np.isfinite(aligned).all(1))
    if len(bad):
        raise DataError(
            f"feature {what}: the vectors of {len(bad)} items hold NaN or infinity, such as {tokens[bad[0]]!r}"
        )
    lacking, unknown = len(tokens) - 1 - len(found), len(names) - len(found)
    (logger.warning if lacking else logger.info)(
        "feature %s: %d items, %d dimensions; %d items have no vector and get zeros; %d ids are no items",
        *(what, len(tokens) - 1, matrix.shape[1], lacking, unknown),
    )
    return aligned


def open_npy(file: Path) -> np.ndarray:
    """The matrix of a `.npy` file, which stays on disk.

    Raises:
        DataError: it is damaged, cut short, an archive, or no matrix of numbers.
    """
    try:
        matrix = np.load(file, mmap_mode="r", allow_pickle=False)
    except Exception as error:
        # The header is a Python literal; of a damaged one, numpy lets errors of tokenize, mmap and others through.
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(
            f"feature file {file}: not a plain .npy array ({reason}); pickles are never loaded, save it again as an "
            "array of numbers"
        ) from error
    if not isinstance(matrix, np.memmap):
        raise DataError(f"feature file {file}: an archive of arrays; save the one array with numpy.save")
    _check_matrix(file, matrix)
    if (size := file.stat().st_size) != matrix.offset + matrix.nbytes:
        raise DataError(
            f"feature file {file}: {size:,} bytes, more than its header says of {matrix.shape}; save it again"
        )
    return matrix


def _check_matrix(file: Path, matrix: np.ndarray) -> None:
    if matrix.ndim != 2 or matrix.dtype.kind not in "fiu" or not matrix.shape[1]:
        raise DataError(f"feature file {file}: {matrix.dtype} of shape {matrix.shape}, not numbers of shape (items, d)")


def _read_safetensors(file: Path) -> tuple[np.ndarray, list[str] | None]:
    import torch

    try:
        with safe_open(file, framework="pt") as content:
            if TENSOR not in content.keys():  # noqa: SIM118  (safe_open is no mapping)
                known = did_you_mean(TENSOR, content.keys())
                raise DataError(f"feature file {file}: no tensor named {TENSOR!r}{known}")
            tensor = content.get_tensor(TENSOR)
            names = (content.metadata() or {}).get(IDS)
    except (SafetensorError, OSError) as error:
        raise DataError(f"feature file {file}: not a safetensors file ({error})") from error
    # numpy has no bfloat16.
    matrix = tensor.to(torch.float32).numpy() if tensor.is_floating_point() else tensor.numpy()
    return matrix, None if names is None else _parse_ids(names, file)


def _parse_ids(text: str, file: Path) -> list[str]:
    try:
        names = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"feature file {file}: `{IDS}` in its metadata is not JSON ({error})") from error
    if not isinstance(names, list) or not all(type(name) in (str, int) for name in names):
        raise DataError(f"feature file {file}: `{IDS}` in its metadata is not a list of item ids")
    return _checked([str(name) for name in names], file)


def _read_ids(file: Path) -> list[str]:
    separator = {".csv": ",", ".tsv": "\t"}.get(file.suffix)
    try:
        with open(file, encoding="utf-8-sig", newline="") as lines:
            text = lines.read()
        if "\n" not in text:
            text = text.replace("\r", "\n")
        names = text.rstrip().split("\n") if separator is None else _id_column(file, text, separator)
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise DataError(f"{file}: cannot be read as UTF-8 text ({error})") from error
    return _checked(names, file)


def _checked(names: list[str], file: Path) -> list[str]:
    """The ids without spaces around them."""
    names = [name.strip() for name in names]
    for row, name in enumerate(names, start=1):
        if not name or re.search(CONTROL, name):
            raise DataError(f"{file}: the item id of row {row} {'holds a control character' if name else 'is empty'}")
    return names


def _id_column(file: Path, text: str, separator: str) -> list[str]:
    reader = csv.reader(io.StringIO(text, newline="\n"), delimiter=separator)
    header = next(reader, [])
    if header.count(ID_COLUMN) != 1:
        hint = " twice" if ID_COLUMN in header else did_you_mean(ID_COLUMN, header)
        raise DataError(f"{file}: {'' if ID_COLUMN in header else 'no '}column {ID_COLUMN!r}{hint}")
    place, names = header.index(ID_COLUMN), []
    for row in filter(None, reader):
        if len(row) != len(header):
            raise DataError(f"{file}, line {reader.line_num}: {len(row)} fields instead of {len(header)}")
        names.append(row[place])
    return names
