"""Items as JSON lines, and what each user chose, in order: a text, a number or a list for each key of an item.

    items.jsonl                    {"item_id": 1, "title": "Toy Story", "genres": ["Comedy"], "image": "posters/1.jpg"}
    sequences.tsv                  user <tab> item item item ..., oldest first; a first line may name the columns
    users.tsv                      optional: user_id <tab> gender <tab> ..., with a header line
    posters/<item id>.jpg          where `image` says; without that key also images/, covers/, ..., or --images

Every file may be gzipped. A value is a text, a number, true, false, null, or a list of texts and numbers. Only an order
is known: an interaction's timestamp is its position in its user's line, 0, 1, 2, ...
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from recbole_mm.config.dataset_files import leaves
from recbole_mm.data.decode import IMAGE_SUFFIXES
from recbole_mm.datasets.assemble import RawDataset, Table
from recbole_mm.datasets.base import IMAGES, INTERACTIONS, ITEMS, Converter, Option
from recbole_mm.datasets.files import Layout
from recbole_mm.datasets.images import ImageFolder, is_safe_id
from recbole_mm.datasets.json_items import Digits, Item, read_items
from recbole_mm.datasets.raw import Column
from recbole_mm.datasets.sequences import PATTERNS, first_line_with, read_sequences
from recbole_mm.datasets.tables import (
    IMAGE_FOLDERS,
    USERS,
    RawTable,
    comma_separated,
    field_names,
    is_quantity,
    item_table,
    open_table,
)
from recbole_mm.errors import DataError

CATALOGUES = ("items.jsonl", "items.jsonl.gz", "*.jsonl", "*.jsonl.gz")
SEQUENCES = tuple(f"*sequences{pattern}" for pattern in PATTERNS)
USER_TABLES = ("users.tsv", "users.tsv.gz", "users.csv", "users.csv.gz")
IMAGE_KEY = "image"
"""Key of an item's picture: a path, relative to the folder of raw files."""

SEPARATORS = (" ", ", ", "; ", " | ")
"""What may stand between two entries of a list: the first of them whose sign is in no entry of any list."""

_BLANK = re.compile(r"\s")


class JsonLines(Converter):
    """A catalogue of JSON lines with a file of sequences."""

    name = "jsonl"
    options = (
        INTERACTIONS,
        ITEMS,
        Option("--users", "table of users, with a header line (default: users.tsv or users.csv, if there)", "FILE"),
        IMAGES,
        Option("--item", "key of the items' ids (default: item_id)", "KEY"),
        Option("--texts", "keys of items that models read, in this order (default: all but numbers)", "A,B"),
        Option("--categories", "keys of items for RecBole's feature models, such as brand", "A,B"),
    )

    def read(
        self,
        interactions: str | None = None,
        items: str | None = None,
        users: str | None = None,
        images: str | None = None,
        item: str | None = None,
        texts: str | None = None,
        categories: str | None = None,
    ) -> RawDataset:
        """Read the catalogue and the sequences, and the users if there is a table of them.

        Args:
            interactions: file of sequences; by default the first of `SEQUENCES` that is there.
            items: the catalogue; by default the first of `CATALOGUES` that is there.
            users: table of users; by default the first of `USER_TABLES` that is there.
            images: folder of images named after items; by default the files that `IMAGE_KEY` names, else one of
                `IMAGE_FOLDERS` in the source.
            item: key of the items' ids.
            texts: keys, with commas between them, that are text for a model; by default the title and every other one
                but numbers and `IMAGE_KEY`.
            categories: keys that RecBole's feature models embed: a text or number as one value, a list as several.

        Raises:
            DataError: a file is missing or malformed; a value is neither plain nor a list; an item of the sequences is
                not in the catalogue; a picture is not there.
        """
        catalogue = self._file(items, CATALOGUES, "--items", "items.jsonl (an item a line, as JSON)")
        sequences = self._file(
            interactions, SEQUENCES, "--interactions", "sequences.tsv (a line per user: user item ...)"
        )
        listing = read_items(catalogue, item or "item_id", self.notes)
        acts = read_sequences(sequences, self.notes)
        self.notes.append(f"{sequences.name} gives the order only: timestamp is the position in the user's line")
        _check_known(acts["item_id"].cat.categories, listing, sequences, catalogue)
        table, words, features, settings = self._items(
            catalogue, listing, comma_separated(texts), comma_separated(categories)
        )
        user, files = self._users(users, acts["user_id"].cat.categories, sequences)
        named = {} if images is not None else {token: each for token, each in listing.items() if _image(each)}
        return RawDataset(
            inter=Table.of(acts),
            item=table,
            user=user,
            images=_pictures(self.source, catalogue, named) if named else self.images(images, IMAGE_FOLDERS),
            text_fields=words,
            features=features,
            files=(sequences.name, catalogue.name, *files),
            settings=settings,
        )

    def _file(self, chosen: str | None, patterns: Sequence[str], option: str, what: str) -> Path:
        path = self.find(chosen, patterns, option)
        if path is None:
            raise DataError(f"{self.source}: no {what}; {option} names one of another name")
        return path

    def _items(
        self, path: Path, listing: Mapping[str, Item], texts: list[str] | None, categories: list[str] | None
    ) -> tuple[Table, list[str], list[str], dict[str, object]]:
        """The catalogue, its columns of text, its categories, and the setting that says how its lists are written."""
        keys = list(dict.fromkeys(key for item in listing.values() for key in item.values if key != IMAGE_KEY))
        fields = field_names(keys, str(path))
        known = RawTable(path, Layout(), keys)
        chosen_texts = None if texts is None else [fields[known.named(name, "--texts")] for name in texts]
        features = [fields[known.named(name, "--categories")] for name in categories or ()]
        columns = {fields[key]: [item.values.get(key, "") for item in listing.values()] for key in keys}
        lists = [field for field, values in columns.items() if any(isinstance(value, list) for value in values)]
        separator = _separator(path, [value for field in lists for value in columns[field]])
        chosen = {*(chosen_texts or ()), *features}
        numbers = [field for field, values in columns.items() if field not in chosen and _all_numbers(values)]
        rows = pd.DataFrame({"item_id": list(listing)}, dtype=object)
        for field, values in columns.items():
            rows[field] = [separator.join(value) if isinstance(value, list) else str(value) for value in values]
        if separator != SEPARATORS[0]:
            self.notes.append(f"{separator!r} stands between the entries of lists of {path.name}: {', '.join(lists)}")
        tokens = [field for field in features if field not in lists]
        table, words = item_table(rows, numbers, tokens, path, self.notes)
        settings: dict[str, object] = {} if separator == SEPARATORS[0] else {"seq_separator": separator}
        return table, words if chosen_texts is None else chosen_texts, features, settings

    def _users(self, chosen: str | None, known: pd.Index, sequences: Path) -> tuple[Table | None, list[str]]:
        """The table of users, and its file; none where there is no such file."""
        path = self.find(chosen, USER_TABLES, "--users")
        if path is None:
            return None, []
        raw = open_table(path)
        id_column = raw.column(USERS)
        if id_column is None:
            raise DataError(f"{path}, line 1: no user_id among {', '.join(raw.names)}")
        fields = field_names([name for name in raw.names if name != id_column], f"{path}, line 1")
        columns = {"user_id": Column("id", (id_column,))}
        columns |= {field: Column("text", (name,)) for name, field in fields.items()}
        rows = self.catalogue(path, columns, raw.layout, "user_id")
        if unlisted := int((~known.isin(rows["user_id"])).sum()):
            self.notes.append(f"{unlisted:,} users of {sequences.name} are not in {path.name}")
        if unused := int((~rows["user_id"].isin(known)).sum()):
            self.notes.append(f"{unused:,} users of {path.name} are not in {sequences.name}")
        return Table(rows, dict.fromkeys(columns, "token")), [path.name]


def _check_known(tokens: Iterable[str], listing: Mapping[str, Item], sequences: Path, catalogue: Path) -> None:
    """Make sure that every item of the sequences is in the catalogue.

    Raises:
        DataError: one is not; the message names the first line that lists it.
    """
    missing = [token for token in tokens if token not in listing]
    if missing:
        line = first_line_with(sequences, missing[0])
        raise DataError(
            f"{sequences}, line {line}: item {missing[0]!r} is not in {catalogue.name} "
            f"({len(missing):,} such items); add a line for it there, which may hold its id alone"
        )


def _all_numbers(values: Iterable[str | list[str]]) -> bool:
    """Whether all values but empty ones are numbers that a float holds exactly."""
    filled = [value for value in values if value != ""]
    return bool(filled) and all(isinstance(value, Digits) and is_quantity(value) for value in filled)


def _separator(path: Path, values: Iterable[str | list[str]]) -> str:
    """What stands between the entries of all lists."""
    entries = {entry for value in values if isinstance(value, list) for entry in value}
    for separator in SEPARATORS:
        sign = separator.strip()
        if not any(sign in entry if sign else _BLANK.search(entry) for entry in entries):
            return separator
    raise DataError(f"{path}: entries of lists hold blanks, ',', ';' and '|', so that no sign can stand between them")


# -------------------------------------------------------------------------------------------------------- the pictures


def _image(item: Item) -> str | list[str]:
    return item.values.get(IMAGE_KEY, "")


def _pictures(source: Path, catalogue: Path, items: Mapping[str, Item]) -> ImageFolder:
    """The files that items name as their pictures; ids that cannot be file names get none.

    Raises:
        DataError: a picture is no path to an image file in `source`; the message names the line.
    """
    files: dict[str, Path] = {}
    empty = 0
    for token, item in items.items():
        given = _image(item)
        if fault := _path_fault(source, given):
            raise DataError(f"{catalogue}, line {item.line}: {IMAGE_KEY} {given!r} {fault}")
        path = source / str(given)
        if path.stat().st_size == 0:
            empty += 1
        elif is_safe_id(token):
            files[token] = path
    return ImageFolder(source, files, empty)


def _path_fault(source: Path, given: str | list[str]) -> str | None:
    """Why a value is no path to an image file in `source`, or None."""
    if isinstance(given, list | Digits):
        return "is no path"
    if leaves(source, given):
        return f"leads out of {source}; paths are relative to it"
    if os.path.splitext(given)[1].lower() not in IMAGE_SUFFIXES:
        return f"is not called as images are ({', '.join(IMAGE_SUFFIXES)})"
    if not os.path.isfile(source / given):
        return f"is not there in {source}; write null, or give the folder of <item id>.jpg with --images"
    return None
