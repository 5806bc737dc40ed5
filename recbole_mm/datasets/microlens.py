"""MicroLens short videos (Westlake University): interactions, titles, covers.

Raw layout, in one folder:

    *pairs.csv                     user, item, timestamp (also userID, videoID): preferred, for its timestamps
    *pairs.tsv                     user <tab> item item item ..., in chronological order, without timestamps
    *title*.csv                    item, title; with or without that header line
    *covers/<item>.jpg             optional (also images/)

Where only the order is known, an interaction's timestamp is its position in its user's list: 0, 1, 2, ...
"""

from __future__ import annotations

from pathlib import Path

from recbole_mm.datasets.assemble import RawDataset, Summary, Table, write_dataset
from recbole_mm.datasets.files import check_source, find_file
from recbole_mm.datasets.images import find_images
from recbole_mm.datasets.lines import Layout, read_header
from recbole_mm.datasets.raw import Column, read_catalogue, read_table
from recbole_mm.datasets.sequences import read_sequences
from recbole_mm.errors import DataError

PAIRS = ("*pairs.csv", "*pairs.csv.gz", "*pairs.tsv", "*pairs.tsv.gz")
TITLES = ("*title*.csv", "*title*.csv.gz")

_ITEM_NAMES = ("item", "item_id", "videoID", "video_id")
_INTER = {
    "user_id": Column("id", ("user", "user_id", "userID")),
    "item_id": Column("id", _ITEM_NAMES),
    "timestamp": Column("time"),
}
_TITLES = {"item_id": Column("id", _ITEM_NAMES), "title": Column("text", ("title", "title_en"))}


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
        interactions: file of pairs; by default the first of `PAIRS` that is there.
        items: file of titles; by default the first of `TITLES` that is there.
        images: folder of covers; by default a folder of `source` whose name ends in `covers`, or `images`.
        name: dataset name, the name of `out` by default.
        link: hard-link images instead of copying them, where possible.
        force: replace a different dataset in `out`.

    Raises:
        DataError: a file is missing or malformed.
    """
    check_source(source)
    pairs = find_file(source, interactions, PAIRS, "--interactions")
    if pairs is None:
        raise DataError(f"{source}: no *pairs.csv (user,item,timestamp) and no *pairs.tsv (user, tab, items in order)")
    titles = find_file(source, items, TITLES, "--items")
    if titles is None:
        raise DataError(f"{source}: no *title*.csv (item,title)")
    ordered_only = ".tsv" in pairs.suffixes
    notes: list[str] = []
    inter = read_sequences(pairs, notes) if ordered_only else read_table(pairs, _INTER, notes)
    has_header = read_header(titles)[0].lower() in {name.lower() for name in _ITEM_NAMES}
    item = read_catalogue(titles, _TITLES, notes, Layout(header=has_header))
    if ordered_only:
        notes.append(f"{pairs.name} gives the order only: timestamp is the position in the user's list")
    raw = RawDataset(
        inter=Table(inter, {"user_id": "token", "item_id": "token", "timestamp": "float"}),
        item=Table(item, {"item_id": "token", "title": "token_seq"}),
        user=None,
        images=find_images(source, images, ("*covers", "images"), "--images"),
        text_fields=["title"],
        features=[],
        source=source,
        converter="microlens",
        files=(pairs.name, titles.name),
        notes=notes,
    )
    return write_dataset(raw, out, name, link, force)
