"""MicroLens short videos (Westlake University): interactions, titles, covers.

Raw layout, in one folder:

    *pairs.csv                     user, item, timestamp (also userID, videoID): preferred, for its timestamps
    *pairs.tsv                     user <tab> item item item ..., in chronological order, without timestamps
    *title*.csv                    item, title; with or without that header line
    *covers/<item>.jpg             optional (also images/)

Where only the order is known, an interaction's timestamp is its position in its user's list: 0, 1, 2, ...
"""

from __future__ import annotations

from recbole_mm.datasets.assemble import RawDataset, Table
from recbole_mm.datasets.base import IMAGES, INTERACTIONS, ITEMS, Converter
from recbole_mm.datasets.files import Layout, read_header
from recbole_mm.datasets.raw import Column
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


class MicroLens(Converter):
    """The interactions, titles and covers of MicroLens."""

    name = "microlens"
    options = (INTERACTIONS, ITEMS, IMAGES)

    def read(self, interactions: str | None = None, items: str | None = None, images: str | None = None) -> RawDataset:
        """Read pairs and titles.

        Args:
            interactions: file of pairs; by default the first of `PAIRS` that is there.
            items: file of titles; by default the first of `TITLES` that is there.
            images: folder of covers; by default a folder of the source whose name ends in `covers`, or `images`.

        Raises:
            DataError: a file is missing or malformed.
        """
        pairs = self.find(interactions, PAIRS, "--interactions")
        if pairs is None:
            raise DataError(
                f"{self.source}: no *pairs.csv (user,item,timestamp) and no *pairs.tsv (user, tab, items in order)"
            )
        titles = self.find(items, TITLES, "--items")
        if titles is None:
            raise DataError(f"{self.source}: no *title*.csv (item,title)")
        ordered_only = ".tsv" in pairs.suffixes
        inter = read_sequences(pairs, self.notes) if ordered_only else self.table(pairs, _INTER)
        has_header = read_header(titles)[0].lower() in {name.lower() for name in _ITEM_NAMES}
        item = self.catalogue(titles, _TITLES, Layout(header=has_header))
        if ordered_only:
            self.notes.append(f"{pairs.name} gives the order only: timestamp is the position in the user's list")
        return RawDataset(
            inter=Table.of(inter),
            item=Table(item, {"item_id": "token", "title": "token_seq"}),
            images=self.images(images, ("*covers", "images")),
            text_fields=["title"],
            files=(pairs.name, titles.name),
        )
