"""PixelRec (Westlake University): interactions with image covers, and what is known of the items.

Raw layout, in one folder or below it; files are recognized by their columns, whatever their names:

    interaction.csv[.gz]           item_id, user_id, timestamp
    item_info.csv[.gz]             item_id, view_number, comment_number, thumbup_number, share_number, coin_number,
                                   favorite_number, barrage_number, title (or title_en), tag, description
    cover/<item_id>.jpg            also covers/ or images/; or the folder given with --images

The seven counters are totals over the whole platform and over all time, validation and test included: they are written
to `.item`, and nothing loads them unless asked to.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from recbole_mm.datasets.assemble import RawDataset, Table
from recbole_mm.datasets.base import IMAGES, INTERACTIONS, ITEMS, Converter
from recbole_mm.datasets.files import read_header
from recbole_mm.datasets.raw import Column
from recbole_mm.errors import DataError

COVERS = ("cover", "covers", "images", "*/cover", "*/covers", "*/images")

_INTER = {"user_id": Column("id"), "item_id": Column("id"), "timestamp": Column("time")}
_COUNTERS = (
    "view_number",
    "comment_number",
    "thumbup_number",
    "share_number",
    "coin_number",
    "favorite_number",
    "barrage_number",
)
_ITEM = {
    "item_id": Column("id"),
    "title": Column("text", ("title_en", "title")),
    "tag": Column("text", required=False),
    "description": Column("text", required=False),
    **{counter: Column("optional_number", required=False) for counter in _COUNTERS},
}


class PixelRec(Converter):
    """The interactions, item information and covers of PixelRec."""

    name = "pixelrec"
    options = (INTERACTIONS, ITEMS, IMAGES)

    def read(self, interactions: str | None = None, items: str | None = None, images: str | None = None) -> RawDataset:
        """Read interactions and item information.

        Args:
            interactions: file of interactions; by default the only one with its columns.
            items: file of item information; by default the only one with its columns.
            images: folder of covers; by default `cover`, `covers` or `images` in the source.

        Raises:
            DataError: a file is missing or malformed, or several files fit.
        """
        inter_file = self._file(interactions, _INTER, "--interactions")
        item_file = self._file(items, _ITEM, "--items")
        inter, item = self.table(inter_file, _INTER), self.catalogue(item_file, _ITEM)
        types = {"item_id": "token", "title": "token_seq", "tag": "token", "description": "token_seq"}
        types = {field: types.get(field, "float") for field in item}
        return RawDataset(
            inter=Table.of(inter),
            item=Table(item, types),
            images=self.images(images, COVERS),
            text_fields=[field for field in ("title", "tag", "description") if field in types],
            features=["tag"] if "tag" in types else [],
            files=(inter_file.name, item_file.name),
        )

    def _file(self, chosen: str | None, columns: Mapping[str, Column], option: str) -> Path:
        return self.find(chosen, (), option) or _only_with(self.source, columns, option)


def _only_with(source: Path, columns: Mapping[str, Column], option: str) -> Path:
    """The only CSV file in `source`, or one folder down, whose header has the required columns."""
    wanted = {field: column.names or (field,) for field, column in columns.items() if column.required}
    files = sorted(path for pattern in ("*.csv", "*.csv.gz", "*/*.csv", "*/*.csv.gz") for path in source.glob(pattern))
    fitting = []
    for path in files:
        names = {name.lower() for name in read_header(path)}
        if all(names.intersection(name.lower() for name in choices) for choices in wanted.values()):
            fitting.append(path)
    if not fitting:
        listed = ", ".join(path.name for path in files) or "no CSV file"
        raise DataError(
            f"{source}: no CSV file has the columns {', '.join(wanted)} ({listed} there); name one with {option}"
        )
    if len(fitting) > 1:
        names_found = ", ".join(str(path.relative_to(source)) for path in fitting)
        raise DataError(f"{source}: {names_found} all have the columns {', '.join(wanted)}; choose one with {option}")
    return fitting[0]
