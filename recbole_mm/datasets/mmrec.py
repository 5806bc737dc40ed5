"""Precomputed features and a given split, in the form that multimodal recommendation toolboxes hand datasets around.

Raw layout, in one folder:

    *.inter                 userID, itemID, x_label (0 training, 1 validation, 2 test), perhaps rating and timestamp
    image_feat.npy          (items, d), row = itemID; either file may be absent, not both
    text_feat.npy           (items, d'), row = itemID
    i_id_mapping.csv        optional: asin and itemID; the dataset then names items by their asin
    u_id_mapping.csv        optional: user_id and userID, likewise
    meta*.csv               optional: itemID or asin, and some of title, brand, categories, price, features, description
    images/                 optional: pictures named after the item

Tables are separated by tabs or by commas. The split becomes three atomic files that RecBole takes as they are
(`benchmark_filename`); the same interactions stand in one file too, for another split of them.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from recbole_mm.data.feature_files import open_npy
from recbole_mm.datasets.amazon_items import COLUMNS, TEXT_FIELDS, category_paths, plain_text, price_of
from recbole_mm.datasets.assemble import RawDataset, Summary, Table, write_dataset
from recbole_mm.datasets.atomic import write_table
from recbole_mm.datasets.files import check_source, explained, find_file, open_raw
from recbole_mm.datasets.folder import SPLITS, dataset_name
from recbole_mm.datasets.images import find_images
from recbole_mm.datasets.lines import Layout, read_header, read_rows
from recbole_mm.datasets.raw import Column, read_catalogue, read_table
from recbole_mm.errors import DataError

FEATURE_FILES = {"image": "image_feat.npy", "text": "text_feat.npy"}
IDS = "item_ids.txt"
MAPPINGS = ("i_id_mapping.csv", "u_id_mapping.csv")

_INTER = {
    "user_id": Column("integer", ("userID",)),
    "item_id": Column("integer", ("itemID",)),
    "label": Column("integer", ("x_label",)),
    "rating": Column("number", required=False),
    "timestamp": Column("time", required=False),
}
_TYPES = {"user_id": "token", "item_id": "token", "rating": "float", "timestamp": "float"}
_TOKEN_NAMES = {"item": ("asin", "item_id", "parent_asin"), "user": ("user_id", "reviewerID")}
_READERS: Mapping[str, Callable[[Any], Any]] = {"price": price_of, "categories": category_paths}
_LONGEST_LITERAL = 2**16
_ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class Feature:
    """A matrix of vectors and the file it comes from; the array stays on disk."""

    path: Path
    matrix: np.ndarray

    def write(self, target: Path) -> None:
        """Write it as float32, a few rows at a time."""
        out = np.lib.format.open_memmap(target, mode="w+", dtype=np.float32, shape=self.matrix.shape)
        for start in range(0, len(self.matrix), _ROWS_AT_ONCE):
            out[start : start + _ROWS_AT_ONCE] = self.matrix[start : start + _ROWS_AT_ONCE]
        out.flush()


def convert(
    source: Path,
    out: Path,
    interactions: str | None = None,
    items: str | None = None,
    images: str | None = None,
    name: str | None = None,
    link: bool = False,
    force: bool = False,
) -> Summary:
    """Convert the raw layout of this module.

    Args:
        source: folder of raw files.
        out: dataset folder to write.
        interactions: the file with `x_label`, where the folder holds several `.inter` files.
        items: CSV file of item texts; by default the one `meta*.csv`, if there is one.
        images: folder of pictures; `images/` of `source` by default.
        name: dataset name, the name of `out` by default.
        link: hard-link images instead of copying them, where possible.
        force: replace a different dataset in `out`.

    Raises:
        DataError: a file is missing or malformed, or they do not belong together.
    """
    check_source(source)
    path = find_file(source, interactions, ("*.inter", "*.inter.gz"), "--interactions")
    if path is None:
        raise DataError(f"{source}: no .inter file with userID, itemID and x_label")
    texts = find_file(source, items, ("meta*.csv", "meta*.csv.gz"), "--items")
    features = read_feature_files(source)
    notes: list[str] = []
    inter = read_split(path, notes)
    item_names = _names(source, "item", MAPPINGS[0], inter["item_id"], path, notes)
    user_names = _names(source, "user", MAPPINGS[1], inter["user_id"], path, notes)
    tokens = _check_rows(features, inter["item_id"], item_names, path)
    labels = inter.pop("label").to_numpy()
    for column, names in (("item_id", item_names), ("user_id", user_names)):
        inter[column] = _renamed(inter[column], names)
    types = {column: kind for column, kind in _TYPES.items() if column in inter}
    parts = {split: inter[labels == label] for label, split in enumerate(SPLITS)}
    notes.append(f"the split is the source's: {', '.join(f'{len(part):,} {split}' for split, part in parts.items())}")
    seen = inter["item_id"][labels == 0].unique()
    if unseen := int((~parts["test"]["item_id"].isin(seen)).sum()):
        notes.append(f"{unseen:,} test interactions are with items that have none in training")
    if "timestamp" not in types:
        notes.append(f"{path.name} has no times: models of sequences need them, others do not")
    catalogue, described = (None, []) if texts is None else _read_texts(texts, tokens, notes)
    name = dataset_name(out, name)
    beside: dict[str, Callable[[Path], object]] = {
        f"{name}.{split}.inter": partial(write_table, table=part, types=types) for split, part in parts.items()
    }
    beside |= {FEATURE_FILES[kind]: feature.write for kind, feature in features.items()}
    beside[IDS] = lambda target: target.write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8")
    raw = RawDataset(
        inter=Table(inter, types),
        item=catalogue,
        user=None,
        images=find_images(source, images, ("images",), "--images"),
        text_fields=described,
        features=[],
        source=source,
        converter="mmrec",
        files=(path.name, *(feature.path.name for feature in features.values())),
        notes=notes,
        settings={
            "benchmark_filename": list(SPLITS),
            "item_features": {kind: {"file": FEATURE_FILES[kind], "ids": IDS} for kind in features},
        },
        files_beside=beside,
    )
    return write_dataset(raw, out, name, link, force)


# ------------------------------------------------------------------------------------------------ interactions and ids


def read_split(path: Path, notes: list[str]) -> pd.DataFrame:
    """Columns `user_id`, `item_id`, `label` (0, 1, 2), perhaps `rating` and `timestamp`, in the file's order.

    Raises:
        DataError: malformed, a label is missing or another number, an id is negative, a user has an item twice, or a
            part of the split is empty. The message names the line.
    """
    layout = _layout(path)
    table = read_table(path, _INTER, notes, layout)
    for fault, reason in (
        (~table["label"].isin((0, 1, 2)), "x_label {label} is none of 0 (training), 1 (validation) and 2 (test)"),
        (table["user_id"] < 0, "userID {user_id} is negative"),
        (table["item_id"] < 0, "itemID {item_id} is negative"),
        (table.duplicated(["user_id", "item_id"]), "user {user_id} has item {item_id} already; keep one of the lines"),
    ):
        if fault.any():
            row = int(np.flatnonzero(fault)[0])
            more = f" ({int(fault.sum()):,} such lines)" if fault.sum() > 1 else ""
            values = {column: table[column].iloc[row] for column in table}
            raise DataError(f"{path}, line {_line(path, layout, row)}: {reason.format(**values)}{more}")
    for label, split in enumerate(SPLITS):
        if not (table["label"] == label).any():
            raise DataError(f"{path}: no line has x_label {label} ({split}); the split needs all three")
    return table


def _names(source: Path, kind: str, file: str, numbers: pd.Series, inter: Path, notes: list[str]) -> list[str] | None:
    """Tokens of users or items by their number, from a mapping that lists 0 to n - 1 once each; None without one."""
    path = source / file
    if not path.is_file():
        return None
    layout = _layout(path)
    columns = {"token": Column("id", _TOKEN_NAMES[kind]), "number": Column("integer", (f"{kind}ID",))}
    mapping = read_table(path, columns, notes, layout)
    twice = [column for column in columns if mapping[column].duplicated().any()]
    if twice:
        row = int(np.flatnonzero(mapping[twice[0]].duplicated())[0])
        value = str(mapping[twice[0]].iloc[row])
        raise DataError(f"{path}, line {_line(path, layout, row)}: {value!r} was already listed; one line per {kind}")
    if mapping["number"].min() < 0 or mapping["number"].max() >= len(mapping):
        raise DataError(
            f"{path}: {kind}ID is not 0 to {len(mapping) - 1}, one number for each of its {len(mapping)} lines"
        )
    unknown = numbers[numbers >= len(mapping)]
    if len(unknown):
        raise DataError(f"{inter}: {kind}ID {unknown.iloc[0]} is not in {path.name}; do the files belong together?")
    return mapping.sort_values("number")["token"].astype(str).tolist()


def _renamed(numbers: pd.Series, names: list[str] | None) -> pd.Series:
    """Numbers as categories of str, in numerical order."""
    known = np.unique(numbers.to_numpy())
    tokens = [str(number) if names is None else names[number] for number in known]
    return pd.Series(pd.Categorical.from_codes(np.searchsorted(known, numbers.to_numpy()), tokens), index=numbers.index)


# ------------------------------------------------------------------------------------------------------------ features


def read_feature_files(source: Path) -> dict[str, Feature]:
    """The feature files that are there, by `image` and `text`.

    Raises:
        DataError: there is none; one is no plain array of numbers, two of them differ in rows, or holds no number.
    """
    found = {kind: Feature(source / file, open_npy(source / file)) for kind, file in FEATURE_FILES.items()
             if (source / file).is_file()}  # fmt: skip
    if not found:
        raise DataError(f"{source}: neither {' nor '.join(FEATURE_FILES.values())}, the precomputed features")
    if len({len(feature.matrix) for feature in found.values()}) > 1:
        rows = ", ".join(f"{feature.path.name} {len(feature.matrix):,}" for feature in found.values())
        raise DataError(f"{source}: the feature files differ in rows ({rows}); both have one row per itemID")
    for feature in found.values():
        for start in range(0, len(feature.matrix), _ROWS_AT_ONCE):
            bad = np.flatnonzero(~np.isfinite(feature.matrix[start : start + _ROWS_AT_ONCE]).all(1))
            if len(bad):
                raise DataError(f"{feature.path}: row {start + bad[0]} holds NaN or infinity")
    return found


def _check_rows(features: Mapping[str, Feature], items: pd.Series, names: list[str] | None, inter: Path) -> list[str]:
    """The item token of every row of the features."""
    feature = next(iter(features.values()))
    rows = len(feature.matrix)
    if names is not None and len(names) != rows:
        raise DataError(f"{feature.path}: {rows:,} rows, but {MAPPINGS[0]} lists {len(names):,} items")
    if items.max() >= rows:
        raise DataError(f"{feature.path}: {rows:,} rows, but {inter.name} has itemID {items.max()}; row = itemID")
    return [str(row) for row in range(rows)] if names is None else names


# --------------------------------------------------------------------------------------------------------------- texts


def _read_texts(path: Path, tokens: list[str], notes: list[str]) -> tuple[Table, list[str]]:
    """Texts of the items in the order of `tokens`, and which columns they are."""
    layout = _layout(path)
    header = {name.lower() for name in read_header(path, layout)}
    by_number = "itemid" in header
    columns = {"item_id": Column("id", ("itemID",) if by_number else _TOKEN_NAMES["item"])}
    columns |= {column: Column("text", required=False) for column in COLUMNS if column != "item_id"}
    table = read_catalogue(path, columns, notes, layout)
    table["item_id"] = table["item_id"].astype(str)
    if by_number:
        rows = {str(row): token for row, token in enumerate(tokens)}
        table["item_id"] = table["item_id"].map(rows)
    known = table["item_id"].isin(tokens)
    if not known.any():
        raise DataError(f"{path}: describes none of the {len(tokens):,} items; do the files belong together?")
    if not known.all():
        notes.append(f"{int((~known).sum()):,} lines of {path.name} are about no item and were left out")
    place = {token: row for row, token in enumerate(tokens)}
    table = table[known].sort_values("item_id", key=lambda column: column.map(place)).reset_index(drop=True)
    for column in table.columns.drop("item_id"):
        values = table[column].map(_value)
        table[column] = values.map(_READERS.get(column, plain_text))
    fields = [column for column in TEXT_FIELDS if column in table]
    if not fields:
        raise DataError(f"{path}, line 1: none of the columns {', '.join(TEXT_FIELDS)} is there")
    return Table(table, {column: kind for column, kind in COLUMNS.items() if column in table}), fields


def _value(text: str) -> object:
    """A field; lists are written as Python prints them."""
    if not text.startswith("[") or len(text) > _LONGEST_LITERAL:
        return text
    try:
        return ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return text


def _layout(path: Path) -> Layout:
    """Tabs where the header has one, else commas; a quotation mark is a character in a file of tabs."""
    with explained(path), open_raw(path) as file:
        return Layout(separator="\t", quoted=False) if b"\t" in file.readline() else Layout()


def _line(path: Path, layout: Layout, row: int) -> int:
    return next(line for place, (line, _) in enumerate(read_rows(path, layout)) if place == row)
