"""MovieLens (GroupLens), in every layout it has been published in, with posters if you have them.

Raw layouts, told by the files that are there:

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

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from recbole_mm.datasets.assemble import RawDataset, Summary, Table, write_dataset
from recbole_mm.datasets.files import check_source, find_undecodable
from recbole_mm.datasets.images import ImageFolder, find_images
from recbole_mm.datasets.lines import Layout
from recbole_mm.datasets.raw import Column, read_catalogue, read_table
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
_INTER_TYPES = {"user_id": "token", "item_id": "token", "rating": "float", "timestamp": "float"}
_USER_FIELDS = ("age", "gender", "occupation", "zip_code")
_USER_TYPES = dict.fromkeys(("user_id", *_USER_FIELDS), "token")
_TITLE_AND_YEAR = r"^(?P<movie_title>.*?)\s*\((?P<release_year>\d{4})\)\s*$"
_ATOMIC = Layout(separator="\t", quoted=False)


def convert(
    source: Path,
    out: Path,
    posters: str | None = None,
    name: str | None = None,
    link: bool = False,
    force: bool = False,
) -> Summary:
    """Convert whichever of this module's layouts `source` holds.

    Args:
        source: folder of raw files.
        out: dataset folder to write.
        posters: folder of posters; `posters/` of `source` by default.
        name: dataset name, the name of `out` by default.
        link: hard-link posters instead of copying them, where possible.
        force: replace a different dataset in `out`.

    Raises:
        DataError: no layout fits, or a file is malformed.
    """
    check_source(source)
    images = find_images(source, posters, ("posters",), "--posters")
    return write_dataset(_layout_of(source)(source, images), out, name, link, force)


def _layout_of(source: Path) -> Callable[[Path, ImageFolder], RawDataset]:
    layouts = (
        (("items_mm.csv",), _with_texts),
        (("u.data", "u.item"), _hundred_thousand),
        (("ratings.dat", "movies.dat"), _million),
        (("ratings.csv", "movies.csv"), _csv_release),
    )
    for files, read in layouts:
        if all((source / file).is_file() for file in files):
            return read
    known = "; or ".join(" and ".join(files) for files, _ in layouts)
    raise DataError(f"{source}: no MovieLens files; looked for {known}")


def _with_texts(source: Path, images: ImageFolder) -> RawDataset:
    inter_files = sorted(source.glob("*.inter"))
    if len(inter_files) != 1:
        found = ", ".join(path.name for path in inter_files) or "none"
        raise DataError(f"{source}: items_mm.csv needs exactly one .inter file beside it; found {found}")
    inter_file = inter_files[0]
    item_columns = {
        "item_id": Column("id", ("item_id:token",)),
        "movie_title": Column("text", ("movie_title:token_seq",)),
        "release_year": Column("text", ("release_year:token",)),
        "class": Column("text", ("class:token_seq",)),
    }
    notes: list[str] = []
    item = read_catalogue(inter_file.with_suffix(".item"), item_columns, notes, _ATOMIC)
    text_columns = {
        "item_id": Column("id"),
        "director": Column("text"),
        "actors": Column("text"),
        "plot": Column("text", ("omdb_plot",)),
        "overview": Column("text", ("tmdb_overview",)),
    }
    texts = read_catalogue(source / "items_mm.csv", text_columns, notes)
    unlisted = ~texts["item_id"].isin(item["item_id"])
    if unlisted.any():
        notes.append(
            f"{int(unlisted.sum()):,} items of items_mm.csv are not in {inter_file.stem}.item and were left out"
        )
    merged = item.astype({"item_id": str}).merge(texts.astype({"item_id": str}), on="item_id", how="left").fillna("")
    user_file = inter_file.with_suffix(".user")
    user = None
    if user_file.is_file():
        user_columns = {"user_id": Column("id", ("user_id:token",))}
        user_columns |= {field: Column("text", (f"{field}:token",)) for field in _USER_FIELDS}
        user = read_catalogue(user_file, user_columns, notes, _ATOMIC, "user_id")
    types = dict.fromkeys(merged.columns, "token_seq") | {"item_id": "token", "release_year": "token"}
    return RawDataset(
        inter=Table(read_table(inter_file, _RATINGS, notes, _ATOMIC), _INTER_TYPES),
        item=Table(merged, types),
        user=None if user is None else Table(user, _USER_TYPES),
        images=images,
        text_fields=["movie_title", "release_year", "class", "director", "actors", "plot"],
        features=["class"],
        source=source,
        converter="movielens",
        files=(inter_file.name, f"{inter_file.stem}.item", "items_mm.csv"),
        notes=notes,
    )


def _hundred_thousand(source: Path, images: ImageFolder) -> RawDataset:
    pipe = Layout(separator="|", header=False, quoted=False, encoding=_encoding(source / "u.item"))
    columns = {"item_id": Column("id"), "title": Column("text")}
    columns |= {field: Column("text") for field in ("release_date", "video_release_date", "url")}
    columns |= {genre: Column("integer") for genre in GENRES_100K}
    notes: list[str] = []
    item = read_catalogue(source / "u.item", columns, notes, pipe)
    item["class"] = [
        " ".join(genre for genre, flag in zip(GENRES_100K, flags, strict=True) if flag)
        for flags in item[list(GENRES_100K)].itertuples(index=False)
    ]
    user = None
    if (source / "u.user").is_file():
        user_columns = {"user_id": Column("id")} | {field: Column("text") for field in _USER_FIELDS}
        user = read_catalogue(source / "u.user", user_columns, notes, pipe, "user_id")
    tabs = Layout(separator="\t", header=False, quoted=False)
    ratings = read_table(source / "u.data", _RATINGS, notes, tabs)
    return _assemble(source, images, ratings, item, "class", user, notes, ("u.data", "u.item"))


def _million(source: Path, images: ImageFolder) -> RawDataset:
    def layout(file: str) -> Layout:
        return Layout(separator="::", header=False, quoted=False, encoding=_encoding(source / file))

    columns = {"item_id": Column("id"), "title": Column("text"), "genres": Column("text")}
    notes: list[str] = []
    item = read_catalogue(source / "movies.dat", columns, notes, layout("movies.dat"))
    item["genre"] = _genres(item["genres"])
    user = None
    if (source / "users.dat").is_file():
        user_columns = {"user_id": Column("id")}
        user_columns |= {field: Column("text") for field in ("gender", "age", "occupation", "zip_code")}
        user = read_catalogue(source / "users.dat", user_columns, notes, layout("users.dat"), "user_id")
    ratings = read_table(source / "ratings.dat", _RATINGS, notes, layout("ratings.dat"))
    return _assemble(source, images, ratings, item, "genre", user, notes, ("ratings.dat", "movies.dat"))


def _csv_release(source: Path, images: ImageFolder) -> RawDataset:
    columns = {"item_id": Column("id", ("movieId",)), "title": Column("text"), "genres": Column("text")}
    notes: list[str] = []
    item = read_catalogue(source / "movies.csv", columns, notes)
    item["genre"] = _genres(item["genres"])
    if (source / "links.csv").is_file():
        link_columns = {
            "item_id": Column("id", ("movieId",)),
            "imdb_id": Column("text", ("imdbId",)),
            "tmdb_id": Column("text", ("tmdbId",), required=False),
        }
        links = read_catalogue(source / "links.csv", link_columns, notes)
        item = item.astype({"item_id": str}).merge(links.astype({"item_id": str}), on="item_id", how="left").fillna("")
    ratings = read_table(source / "ratings.csv", _RATINGS, notes)
    return _assemble(source, images, ratings, item, "genre", None, notes, ("ratings.csv", "movies.csv"))


def _assemble(
    source: Path,
    images: ImageFolder,
    ratings: pd.DataFrame,
    item: pd.DataFrame,
    genre_field: str,
    user: pd.DataFrame | None,
    notes: list[str],
    files: tuple[str, ...],
) -> RawDataset:
    parts = item["title"].str.extract(_TITLE_AND_YEAR)
    item["movie_title"] = parts["movie_title"].fillna(item["title"])
    item["release_year"] = parts["release_year"].fillna("")
    types = {"item_id": "token", "movie_title": "token_seq", "release_year": "token", genre_field: "token_seq"}
    types |= {field: "token" for field in ("imdb_id", "tmdb_id") if field in item}
    return RawDataset(
        inter=Table(ratings, _INTER_TYPES),
        item=Table(item, types),
        user=None if user is None else Table(user, _USER_TYPES),
        images=images,
        text_fields=["movie_title", "release_year", genre_field],
        features=[genre_field],
        source=source,
        converter="movielens",
        files=files,
        notes=notes,
    )


def _genres(column: pd.Series) -> pd.Series:
    return column.str.replace("(no genres listed)", "", regex=False).str.replace("|", " ", regex=False)


def _encoding(path: Path) -> str:
    """UTF-8 if the file is that, else the Latin-1 of the older releases."""
    return "utf-8-sig" if find_undecodable(path, "utf-8") is None else "latin-1"
