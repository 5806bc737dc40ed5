"""MovieLens (GroupLens), in every layout it has been published in, with posters if you have them.

Raw layouts, recognized by the files that are there:

    with texts   items_mm.csv + one RecBole <name>.inter, .item and (optional) .user
                 items_mm.csv: item_id, director, actors, omdb_plot, tmdb_overview (others are ignored)
    100K         u.data (tab: user item rating timestamp), u.item (|, 19 genre flags), u.user (optional)
    1M, 10M      ratings.dat, movies.dat, users.dat (optional), separated by ::
    CSV          ratings.csv, movies.csv, links.csv (optional): ml-latest, ml-20m, ml-25m, ml-32m

Posters are files <item_id>.jpg in posters/ or in the folder given with --posters. Columns of `.item` are named as in
RecBole's own conversions: movie_title without the year, release_year, and the genres as `class` (100K) or `genre` (the
others). Tags and rating counts are left out: they were made by the same users, held-out interactions included.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pandas as pd

from recbole_mm.datasets.assemble import RawDataset, Table
from recbole_mm.datasets.base import Converter, Option
from recbole_mm.datasets.files import Layout, find_undecodable
from recbole_mm.datasets.raw import Column
from recbole_mm.errors import DataError

GENRES_100K = (
    "unknown",
    "Action",
    "Adventure",
    "Animation",
    "Children's",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Fantasy",
    "Film-Noir",
    "Horror",
    "Musical",
    "Mystery",
    "Romance",
    "Sci-Fi",
    "Thriller",
    "War",
    "Western",
)
"""Genres of u.item's flags, in the order of u.genre."""

_RATINGS = {
    "user_id": Column("id", ("userId", "user_id:token")),
    "item_id": Column("id", ("movieId", "item_id:token")),
    "rating": Column("number", ("rating", "rating:float")),
    "timestamp": Column("time", ("timestamp", "timestamp:float")),
}
_USER_TYPES = dict.fromkeys(("user_id", "age", "gender", "occupation", "zip_code"), "token")
_TITLE_AND_YEAR = r"^(?P<movie_title>.*?)\s*\((?P<release_year>\d{4})\)\s*$"
_ATOMIC = Layout(separator="\t", quoted=False)


class MovieLens(Converter):
    """MovieLens in each of this module's layouts."""

    name = "movielens"
    options = (Option("--posters", "folder of posters named <item_id>.jpg (default: posters/ in --source)", "DIR"),)

    def read(self, posters: str | None = None) -> RawDataset:
        """Read whichever layout the source holds.

        Args:
            posters: folder of posters; `posters/` of the source by default.

        Raises:
            DataError: no layout fits, or a file is malformed.
        """
        self.posters = self.images(posters, ("posters",), "--posters")
        layouts: tuple[tuple[tuple[str, ...], Callable[[], RawDataset]], ...] = (
            (("items_mm.csv",), self._with_texts),
            (("u.data", "u.item"), self._hundred_thousand),
            (("ratings.dat", "movies.dat"), self._million),
            (("ratings.csv", "movies.csv"), self._csv_release),
        )
        for files, read in layouts:
            if all((self.source / file).is_file() for file in files):
                return read()
        known = "; or ".join(" and ".join(files) for files, _ in layouts)
        raise DataError(f"{self.source}: no MovieLens files; looked for {known}")

    def _with_texts(self) -> RawDataset:
        inter_files = sorted(self.source.glob("*.inter"))
        if len(inter_files) != 1:
            found = ", ".join(path.name for path in inter_files) or "none"
            raise DataError(f"{self.source}: items_mm.csv needs exactly one .inter file beside it; found {found}")
        inter_file = inter_files[0]
        item_columns = {
            "item_id": Column("id", ("item_id:token",)),
            "movie_title": Column("text", ("movie_title:token_seq",)),
            "release_year": Column("text", ("release_year:token",)),
            "class": Column("text", ("class:token_seq",)),
        }
        item = self.catalogue(inter_file.with_suffix(".item"), item_columns, _ATOMIC)
        text_columns = {
            "item_id": Column("id"),
            "director": Column("text"),
            "actors": Column("text"),
            "plot": Column("text", ("omdb_plot",)),
            "overview": Column("text", ("tmdb_overview",)),
        }
        texts = self.catalogue(self.source / "items_mm.csv", text_columns)
        unlisted = ~texts["item_id"].isin(item["item_id"])
        if unlisted.any():
            self.notes.append(
                f"{int(unlisted.sum()):,} items of items_mm.csv are not in {inter_file.stem}.item and were left out"
            )
        merged = _joined(item, texts)
        user = self._users(inter_file.with_suffix(".user"), _ATOMIC, {f: (f"{f}:token",) for f in _USER_TYPES})
        types = dict.fromkeys(merged.columns, "token_seq") | {"item_id": "token", "release_year": "token"}
        return RawDataset(
            inter=Table.of(self.table(inter_file, _RATINGS, _ATOMIC)),
            item=Table(merged, types),
            user=user,
            images=self.posters,
            text_fields=["movie_title", "release_year", "class", "director", "actors", "plot"],
            features=["class"],
            files=(inter_file.name, f"{inter_file.stem}.item", "items_mm.csv"),
        )

    def _hundred_thousand(self) -> RawDataset:
        pipe = Layout(separator="|", header=False, quoted=False, encoding=_encoding(self.source / "u.item"))
        columns = {"item_id": Column("id"), "title": Column("text")}
        columns |= {field: Column("text") for field in ("release_date", "video_release_date", "url")}
        columns |= {genre: Column("integer") for genre in GENRES_100K}
        item = self.catalogue(self.source / "u.item", columns, pipe)
        item["class"] = [
            " ".join(genre for genre, flag in zip(GENRES_100K, flags, strict=True) if flag)
            for flags in item[list(GENRES_100K)].itertuples(index=False)
        ]
        user = self._users(self.source / "u.user", pipe, dict.fromkeys(_USER_TYPES, ()))
        ratings = self.table(self.source / "u.data", _RATINGS, Layout(separator="\t", header=False, quoted=False))
        return self._dataset(ratings, item, "class", user, ("u.data", "u.item"))

    def _million(self) -> RawDataset:
        def layout(file: str) -> Layout:
            return Layout(separator="::", header=False, quoted=False, encoding=_encoding(self.source / file))

        columns = {"item_id": Column("id"), "title": Column("text"), "genres": Column("text")}
        item = self.catalogue(self.source / "movies.dat", columns, layout("movies.dat"))
        item["genre"] = _genres(item["genres"])
        user = None
        if (self.source / "users.dat").is_file():
            fields = ("user_id", "gender", "age", "occupation", "zip_code")
            user = self._users(self.source / "users.dat", layout("users.dat"), dict.fromkeys(fields, ()))
        ratings = self.table(self.source / "ratings.dat", _RATINGS, layout("ratings.dat"))
        return self._dataset(ratings, item, "genre", user, ("ratings.dat", "movies.dat"))

    def _csv_release(self) -> RawDataset:
        columns = {"item_id": Column("id", ("movieId",)), "title": Column("text"), "genres": Column("text")}
        item = self.catalogue(self.source / "movies.csv", columns)
        item["genre"] = _genres(item["genres"])
        if (self.source / "links.csv").is_file():
            link_columns = {
                "item_id": Column("id", ("movieId",)),
                "imdb_id": Column("text", ("imdbId",)),
                "tmdb_id": Column("text", ("tmdbId",), required=False),
            }
            item = _joined(item, self.catalogue(self.source / "links.csv", link_columns))
        ratings = self.table(self.source / "ratings.csv", _RATINGS)
        return self._dataset(ratings, item, "genre", None, ("ratings.csv", "movies.csv"))

    def _users(self, path: Path, layout: Layout, columns: Mapping[str, tuple[str, ...]]) -> Table | None:
        """The file of users, if there is one: `columns` are its columns and the headers that they may carry."""
        if not path.is_file():
            return None
        wanted = {field: Column("id" if field == "user_id" else "text", names) for field, names in columns.items()}
        return Table(self.catalogue(path, wanted, layout, "user_id"), _USER_TYPES)

    def _dataset(
        self, ratings: pd.DataFrame, item: pd.DataFrame, genre_field: str, user: Table | None, files: tuple[str, ...]
    ) -> RawDataset:
        parts = item["title"].str.extract(_TITLE_AND_YEAR)
        item["movie_title"] = parts["movie_title"].fillna(item["title"])
        item["release_year"] = parts["release_year"].fillna("")
        types = {"item_id": "token", "movie_title": "token_seq", "release_year": "token", genre_field: "token_seq"}
        return RawDataset(
            inter=Table.of(ratings),
            item=Table.of(item, types | {"imdb_id": "token", "tmdb_id": "token"}),
            user=user,
            images=self.posters,
            text_fields=["movie_title", "release_year", genre_field],
            features=[genre_field],
            files=files,
        )


def _joined(item: pd.DataFrame, more: pd.DataFrame) -> pd.DataFrame:
    """The items with further columns, "" where `more` does not list an item."""
    return item.astype({"item_id": str}).merge(more.astype({"item_id": str}), on="item_id", how="left").fillna("")


def _genres(column: pd.Series) -> pd.Series:
    return column.str.replace("(no genres listed)", "", regex=False).str.replace("|", " ", regex=False)


def _encoding(path: Path) -> str:
    """UTF-8 if the file is that, else the Latin-1 of the older releases."""
    return "utf-8-sig" if find_undecodable(path, "utf-8") is None else "latin-1"
