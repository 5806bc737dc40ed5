"""Tables of your own: a CSV of who chose what and when, perhaps one of what the items are, perhaps a folder of images.

    orders.csv                     a column of users, one of items; perhaps times (seconds, days, dates) and ratings
    products.csv                   a column of the same item ids, none of users; every other column describes the item
    images/<item id>.jpg           also image/, covers/, cover/, photos/ or posters/; or the folder given with --images

Files may be separated by commas, semicolons or tabs, be called `.csv` or `.tsv` (others are read if they are named),
and be gzipped. Columns are found by the usual names below, or named by options.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd

from recbole_mm.datasets.assemble import RawDataset, Table
from recbole_mm.datasets.base import IMAGES, INTERACTIONS, ITEMS, Converter, Option
from recbole_mm.datasets.files import Layout, read_header
from recbole_mm.datasets.raw import Column, is_number, join_times
from recbole_mm.errors import DataError
from recbole_mm.utils.spelling import did_you_mean

TABLE = re.compile(r".+\.(csv|tsv)(\.gz)?", re.IGNORECASE)
USERS = ("user_id", "userid", "user", "uid", "customer_id", "customer", "reviewer_id", "reviewerid", "session_id")
ITEM_IDS = ("item_id", "itemid", "iid", "product_id", "article_id", "movie_id", "movieid", "asin")
NAMES_OR_IDS = ("item", "product")
"""Columns of ids in a table of interactions; in one of items that has another column of ids, their names."""
ITEM_NAMES = (*ITEM_IDS, *NAMES_OR_IDS)
ABOUT_ITEMS = re.compile(r"item|product|article|movie|film|book|song|track|video|news|catalog", re.IGNORECASE)
"""In the name of a file whose column `id` is that of items."""
TIMES = ("timestamp", "time", "datetime", "date", "created_at", "unixreviewtime")
NO_TIME = "none"
"""Value of `--time`: the order of the lines stands in for times."""
_TIME_WORDS = re.compile(r"(?:^|_)(?:at|day|when|ts|\w*time|\w*date|\w*timestamp)(?:_|$)")
_PADDED = re.compile(r"[+-]?0\d")
RATINGS = ("rating", "stars", "score")
TITLES = ("title", "name", "item_name", "product_name", "prod_name")
IMAGE_FOLDERS = ("images", "image", "covers", "cover", "photos", "posters")


@dataclass(frozen=True)
class RawTable:
    """A table in the source: its file, how it is written, and its columns."""

    path: Path
    layout: Layout
    names: list[str]

    def column(self, choices: Iterable[str]) -> str | None:
        """The column of the first of these names; `Product ID` is `product_id`."""
        by_plain = {_plain(name): name for name in self.names}
        return next((by_plain[_plain(choice)] for choice in choices if _plain(choice) in by_plain), None)

    def named(self, name: str, option: str) -> str:
        """The column that an option names.

        Raises:
            DataError: there is none.
        """
        found = self.column([name])
        if found is None:
            raise DataError(f"{option} {name}: no such column in {self.path.name}{did_you_mean(name, self.names)}")
        return found


class Tables(Converter):
    """Tables of any origin."""

    name = "csv"
    options = (
        INTERACTIONS,
        ITEMS,
        IMAGES,
        Option("--user", "column of users, when it has none of the usual names", "COLUMN"),
        Option("--item", "column of items, in both files", "COLUMN"),
        Option("--time", "column of times; date,time joins two; none takes the order of the lines", "COLUMN"),
        Option("--texts", "columns of items that models read (default: all columns of words)", "A,B"),
        Option("--categories", "columns of items for RecBole's feature models, such as brand", "A,B"),
    )

    def read(
        self,
        interactions: str | None = None,
        items: str | None = None,
        images: str | None = None,
        user: str | None = None,
        item: str | None = None,
        time: str | None = None,
        texts: str | None = None,
        categories: str | None = None,
    ) -> RawDataset:
        """Read a table of interactions and perhaps one of items.

        Args:
            interactions: file of interactions; by default the only one with columns of users and items.
            items: file of items; by default the only other one with a column of items, if there is one.
            images: folder of images; by default one of `IMAGE_FOLDERS` in the source.
            user, item: columns; by default those of the usual names.
            time: column of times, two of a day and a time of day with a comma between them, or `NO_TIME`; by default
                the one of a usual name. A table without times is taken to be in order.
            texts: columns of items, with commas between them, that are text for a model, the most telling first; by
                default the title and every other column of words.
            categories: columns of items that RecBole's feature models embed as one value each.

        Raises:
            DataError: a file or column is missing or malformed, or several fit.
        """
        tables = self._tables(named=[interactions, items])
        users, ids = [user] if user else USERS, [item] if item else ITEM_NAMES
        fitting = [table for table in tables if table.column(users) and table.column(ids)]
        acts = self._chosen(fitting, interactions, "--interactions")
        if acts is None:
            listed = "; ".join(f"{table.path.name}: {', '.join(table.names)}" for table in tables)
            raise DataError(
                f"{self.source}: no file has a column of users and one of items ({listed or 'no CSV file there'}); "
                "name the columns with --user and --item"
            )
        inter = self._interactions(acts, users, ids, time)
        fitting = [table for table in tables if _describes_items(table, acts, users, ids)]
        catalogue = self._chosen(fitting, items, "--items")
        raw = RawDataset(inter, files=[table.path.name for table in (acts, catalogue) if table is not None])
        if catalogue is None:
            self.notes.append("no table of items, so no texts; --items names one")
        else:
            table, words, tokens = self._items(catalogue, ids, comma_separated(texts), comma_separated(categories))
            raw = replace(raw, item=table, text_fields=words, features=tokens)
        return replace(raw, images=self.images(images, IMAGE_FOLDERS))

    def _tables(self, named: Sequence[str | None]) -> list[RawTable]:
        """The tables of the folder, unless both files are named; a file that is none is noted."""
        tables = []
        for path in sorted(path for path in self.source.iterdir() if TABLE.fullmatch(path.name) and None in named):
            try:
                tables.append(open_table(path))
            except DataError as error:
                self.notes.append(f"left out: {error}")
        return tables

    def _chosen(self, fitting: Sequence[RawTable], chosen: str | None, option: str) -> RawTable | None:
        """The file that the user chose, else the only one that fits; None if none does."""
        path = self.find(chosen, (), option)
        if path is not None:
            return open_table(path)
        if len(fitting) > 1:
            names = ", ".join(table.path.name for table in fitting)
            raise DataError(f"{self.source}: {names} all fit; choose one with {option}")
        return fitting[0] if fitting else None

    def _interactions(self, raw: RawTable, users: Sequence[str], items: Sequence[str], time: str | None) -> Table:
        """The interactions."""
        found = {"user_id": raw.column(users), "item_id": raw.column(items), "rating": raw.column(RATINGS)}
        for field, option in (("user_id", "--user"), ("item_id", "--item")):
            if found[field] is None:
                raise DataError(f"{raw.path}, line 1: no {field} among {', '.join(raw.names)}; name it with {option}")
        taken = {field: name for field, name in found.items() if name is not None}
        times = _time_columns(raw, time, list(taken.values()))
        columns = {field: Column("optional_number" if field == "rating" else "id", (taken[field],)) for field in taken}
        if len(times) == 1:
            columns["timestamp"] = Column("time", (times[0],))
        columns |= {name: Column("text") for name in times if len(times) == 2}
        rows = self.table(raw.path, columns, raw.layout)
        if not times:
            rows["timestamp"] = rows.groupby("user_id", observed=True).cumcount()
            self.notes.append(f"the order of the lines of {raw.path.name} stands in for times; else --time COLUMN")
        elif len(times) == 2:
            rows["timestamp"] = join_times(raw.path, raw.layout, raw.names, (times[0], times[1]), rows, self.notes)
        used = [*taken.values(), *times]
        if "rating" in rows and (empty := int(rows["rating"].isna().sum())):
            del rows["rating"]
            self.notes.append(f"{empty:,} lines of {raw.path.name} have no rating, so that ratings are left out")
        origin = f"users from {taken['user_id']}, items from {taken['item_id']}"
        self.notes.append(f"{raw.path.name}: {origin}" + (f", times from {' and '.join(times)}" if times else ""))
        if left_out := [name for name in raw.names if name not in used]:
            self.notes.append(f"columns of {raw.path.name} that are not used: {', '.join(left_out)}")
        return Table.of(rows)

    def _items(
        self, raw: RawTable, ids: Sequence[str], texts: list[str] | None, categories: list[str] | None
    ) -> tuple[Table, list[str], list[str]]:
        """The items, their columns of text and their categories: a column is a number where all its values are."""
        id_column = raw.column([*([] if ids is ITEM_NAMES else ids), *ITEM_IDS, "id", *NAMES_OR_IDS])
        if id_column is None:
            raise DataError(f"{raw.path}, line 1: no item_id among {', '.join(raw.names)}; name it with --item")
        fields = field_names([name for name in raw.names if name != id_column], f"{raw.path}, line 1")
        others = RawTable(raw.path, raw.layout, list(fields))
        chosen_texts = None if texts is None else [fields[others.named(name, "--texts")] for name in texts]
        tokens = [fields[others.named(name, "--categories")] for name in categories or ()]
        columns = {"item_id": Column("id", (id_column,))}
        columns |= {field: Column("text", (name,)) for name, field in fields.items()}
        rows = self.catalogue(raw.path, columns, raw.layout)
        chosen = {*(chosen_texts or ()), *tokens}
        numbers = [field for field in fields.values() if field not in chosen and _all_numbers(rows[field])]
        table, words = item_table(rows, numbers, tokens, raw.path, self.notes)
        return table, words if chosen_texts is None else chosen_texts, tokens


def open_table(path: Path) -> RawTable:
    """A table; its separator is the one that its first line has most of."""
    first = "".join(read_header(path, Layout(separator="\0", quoted=False)))
    layout = Layout(separator=max(",;\t", key=first.count))
    return RawTable(path, layout, read_header(path, layout))


def _describes_items(table: RawTable, acts: RawTable, users: Sequence[str], items: Sequence[str]) -> bool:
    """Whether it may be the catalogue: it has the items and not the users of the interactions."""
    if table.path.resolve() == acts.path.resolve() or table.column(users):
        return False
    return table.column([*items, *ITEM_NAMES]) is not None or bool(
        table.column(["id"]) and ABOUT_ITEMS.search(table.path.name)
    )


def _time_columns(raw: RawTable, chosen: str | None, others: Sequence[str]) -> list[str]:
    """The column of times; two, of a day and a time of day; or none.

    Raises:
        DataError: there is none of the chosen name; or nothing is chosen and several columns have a usual name, or none
            has and another one looks as if it held the times.
    """
    if chosen is not None and raw.column([chosen]) is None:
        if chosen == NO_TIME:
            return []
        parts = [raw.named(name, "--time") for name in chosen.split(",")]
        if len(parts) != 2:
            raise DataError(f"--time {chosen}: one column, or two: a day and a time of day, as in --time date,time")
        return parts
    if chosen is not None:
        return [raw.named(chosen, "--time")]
    free = [name for name in raw.names if name not in others]
    usual = [name for name in free if _plain(name) in TIMES]
    if len(usual) == 1:
        return usual
    words = {name: _plain(re.sub(r"([a-z])([A-Z])", r"\1_\2", name)) for name in free}
    candidates = usual or [name for name in free if _TIME_WORDS.search(words[name])]
    if not candidates:
        return []
    joined = f", --time {candidates[0]},{candidates[1]} for a day and a time of day" if len(candidates) > 1 else ""
    raise DataError(
        f"{raw.path}, line 1: {', '.join(candidates)} may hold the times; say --time {candidates[0]}{joined}, or "
        f"--time {NO_TIME} for the order of the lines"
    )


def item_table(
    rows: pd.DataFrame, numbers: Collection[str], tokens: Collection[str], path: Path, notes: list[str]
) -> tuple[Table, list[str]]:
    """A catalogue, and its columns of words, the title first.

    Args:
        rows: `item_id` and columns of text.
        numbers: columns that are written as numbers, and are no words; they are changed in `rows`.
        tokens: columns whose text is one value.
        path: the file they are from.
        notes: gets a line where there are numbers.
    """
    types = {"item_id": "token"}
    for field in rows.columns.drop("item_id"):
        types[field] = "float" if field in numbers else "token" if field in tokens else "token_seq"
        if field in numbers:
            rows[field] = rows[field].str.strip().replace("", "nan").astype(np.float64)
    words = [field for field in types if types[field] != "float" and field != "item_id"]
    words.sort(key=lambda field: field.lower() not in TITLES)  # stable: the title first, else the file's order
    if numbers:
        notes.append(f"numbers of {path.name}, no part of the text: {', '.join(numbers)}")
    return Table(rows, types), words


def field_names(names: Sequence[str], where: str) -> dict[str, str]:
    """Column -> its name in the atomic file, which may hold letters, digits and underscores alone.

    Raises:
        DataError: two columns would have the same name; the message begins with `where`.
    """
    fields: dict[str, str] = {}
    for place, name in enumerate(names):
        field = re.sub(r"\W+", "_", name).strip("_") or f"column_{place + 1}"
        if field in fields.values() or field == "item_id":
            raise DataError(f"{where}: column {name!r} would be called {field}, as another one; rename it")
        fields[name] = field
    return fields


def _plain(name: str) -> str:
    return re.sub(r"\W+", "_", name.strip().lower())


def comma_separated(given: str | None) -> list[str] | None:
    """The names in an option's value, with commas between them; None where it was not given."""
    return None if given is None else [name.strip() for name in given.split(",") if name.strip()]


def _all_numbers(column: pd.Series) -> bool:
    """Whether all values but empty ones are quantities."""
    values = column.str.strip()
    filled = values[values != ""]
    return len(filled) > 0 and bool(filled.map(is_quantity).all())


def is_quantity(text: str) -> bool:
    """Whether a text is a number that a float holds as it is written; `007` is a code.

    >>> is_quantity("7.50"), is_quantity("007"), is_quantity("12345678901234567891")
    (True, False, False)
    """
    return is_number(text) and not _PADDED.match(text) and Decimal(text) == Decimal(repr(float(text)))
