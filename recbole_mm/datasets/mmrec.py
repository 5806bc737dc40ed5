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
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from recbole_mm.data.feature_files import open_npy
from recbole_mm.datasets.amazon_items import COLUMNS, TEXT_FIELDS, category_paths, plain_text, price_of
from recbole_mm.datasets.assemble import RawDataset, Table
from recbole_mm.datasets.base import IMAGES, INTERACTIONS, ITEMS, Converter
from recbole_mm.datasets.files import Layout, explained, open_raw, read_header, read_rows
from recbole_mm.datasets.folder import SPLITS
from recbole_mm.datasets.raw import Column
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


class MMRec(Converter):
    """Interactions with a given split, and precomputed features of the items."""

    name = "mmrec"
    options = (INTERACTIONS, ITEMS, IMAGES)

    def read(self, interactions: str | None = None, items: str | None = None, images: str | None = None) -> RawDataset:
        """Read interactions, features, and ids and texts where they are there.

        Args:
            interactions: the file with `x_label`, where the folder holds several `.inter` files.
            items: CSV file of item texts; by default the one `meta*.csv`, if there is one.
            images: folder of pictures; `images/` of the source by default.

        Raises:
            DataError: a file is missing or malformed, or they do not belong together.
        """
        path = self.find(interactions, ("*.inter", "*.inter.gz"), "--interactions")
        if path is None:
            raise DataError(f"{self.source}: no .inter file with userID, itemID and x_label")
        texts = self.find(items, ("meta*.csv", "meta*.csv.gz"), "--items")
        features = read_feature_files(self.source)
        inter = self._split(path)
        item_names = self._names("item", MAPPINGS[0], inter["item_id"], path)
        user_names = self._names("user", MAPPINGS[1], inter["user_id"], path)
        tokens = _check_rows(features, inter["item_id"], item_names, path)
        labels = inter.pop("label").to_numpy()
        for column, names in (("item_id", item_names), ("user_id", user_names)):
            inter[column] = _renamed(inter[column], names)
        parts = {split: inter[labels == label] for label, split in enumerate(SPLITS)}
        counts = ", ".join(f"{len(part):,} {split}" for split, part in parts.items())
        self.notes.append(f"the split is the source's: {counts}")
        seen = inter["item_id"][labels == 0].unique()
        if unseen := int((~parts["test"]["item_id"].isin(seen)).sum()):
            self.notes.append(f"{unseen:,} test interactions are with items that have none in training")
        if "timestamp" not in inter:
            self.notes.append(f"{path.name} has no times: models of sequences need them, others do not")
        catalogue, described = (None, []) if texts is None else self._texts(texts, tokens)
        extra: dict[str, Callable[[Path], object]] = {
            FEATURE_FILES[kind]: feature.write for kind, feature in features.items()
        }
        extra[IDS] = lambda target: target.write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8")
        return RawDataset(
            inter=Table.of(inter),
            item=catalogue,
            images=self.images(images, ("images",)),
            text_fields=described,
            files=(path.name, *(feature.path.name for feature in features.values())),
            settings={
                "benchmark_filename": list(SPLITS),
                "item_features": {kind: {"file": FEATURE_FILES[kind], "ids": IDS} for kind in features},
            },
            splits=parts,
            extra_files=extra,
        )

    def _split(self, path: Path) -> pd.DataFrame:
        """Columns `user_id`, `item_id`, `label` (0, 1, 2), perhaps `rating` and `timestamp`, in the file's order.

        Raises:
            DataError: malformed, a label is missing or another number, an id is negative, a user has an item twice, or
                a part of the split is empty. The message names the line.
        """
        layout = _layout(path)
        table = self.table(path, _INTER, layout)
        for fault, reason in (
            (~table["label"].isin((0, 1, 2)), "x_label {label} is none of 0 (training), 1 (validation) and 2 (test)"),
            (table["user_id"] < 0, "userID {user_id} is negative"),
            (table["item_id"] < 0, "itemID {item_id} is negative"),
            (
                table.duplicated(["user_id", "item_id"]),
                "user {user_id} has item {item_id} already; keep one of the lines",
            ),
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

    def _names(self, kind: str, file: str, numbers: pd.Series, inter: Path) -> list[str] | None:
        """Tokens of users or items by their number, from a mapping that lists 0 to n - 1 once each; None without."""
        path = self.source / file
        if not path.is_file():
            return None
        layout = _layout(path)
        columns = {"token": Column("id", _TOKEN_NAMES[kind]), "number": Column("integer", (f"{kind}ID",))}
        mapping = self.table(path, columns, layout)
        twice = [column for column in columns if mapping[column].duplicated().any()]
        if twice:
            row = int(np.flatnonzero(mapping[twice[0]].duplicated())[0])
            value = str(mapping[twice[0]].iloc[row])
            raise DataError(
                f"{path}, line {_line(path, layout, row)}: {value!r} was already listed; one line per {kind}"
            )
        if mapping["number"].min() < 0 or mapping["number"].max() >= len(mapping):
            raise DataError(
                f"{path}: {kind}ID is not 0 to {len(mapping) - 1}, one number for each of its {len(mapping)} lines"
            )
        unknown = numbers[numbers >= len(mapping)]
        if len(unknown):
            raise DataError(f"{inter}: {kind}ID {unknown.iloc[0]} is not in {path.name}; do the files belong together?")
        return mapping.sort_values("number")["token"].astype(str).tolist()

    def _texts(self, path: Path, tokens: list[str]) -> tuple[Table, list[str]]:
        """Texts of the items in the order of `tokens`, and which columns they are."""
        layout = _layout(path)
        by_number = "itemid" in {name.lower() for name in read_header(path, layout)}
        columns = {"item_id": Column("id", ("itemID",) if by_number else _TOKEN_NAMES["item"])}
        columns |= {column: Column("text", required=False) for column in COLUMNS if column != "item_id"}
        table = self.catalogue(path, columns, layout).astype({"item_id": str})
        place = {token: row for row, token in enumerate(tokens)}
        if by_number:
            table["item_id"] = table["item_id"].map({str(row): token for token, row in place.items()})
        known = table["item_id"].isin(tokens)
        if not known.any():
            raise DataError(f"{path}: describes none of the {len(tokens):,} items; do the files belong together?")
        if not known.all():
            self.notes.append(f"{int((~known).sum()):,} lines of {path.name} are about no item and were left out")
        table = table[known].sort_values("item_id", key=lambda column: column.map(place)).reset_index(drop=True)
        for column in table.columns.drop("item_id"):
            table[column] = table[column].map(_value).map(_READERS.get(column, plain_text))
        fields = [column for column in TEXT_FIELDS if column in table]
        if not fields:
            raise DataError(f"{path}, line 1: none of the columns {', '.join(TEXT_FIELDS)} is there")
        return Table.of(table, COLUMNS), fields


def _renamed(numbers: pd.Series, names: list[str] | None) -> pd.Series:
    """Numbers as categories of str, in numerical order."""
    known = np.unique(numbers.to_numpy())
    tokens = [str(number) if names is None else names[number] for number in known]
    return pd.Series(pd.Categorical.from_codes(np.searchsorted(known, numbers.to_numpy()), tokens), index=numbers.index)


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
