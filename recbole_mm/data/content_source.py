"""A dataset's raw item content by item token: `.item` columns, image files, and the policy for what is missing."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from pathlib import Path

from PIL import Image
from recbole.utils import FeatureType

from recbole_mm.config.resolved import Config
from recbole_mm.data.decode import DEFAULT_MAX_PIXELS, decode_image
from recbole_mm.data.images import ColumnImages, FolderImages, ImageSource, ImagesWithout, ZipImages
from recbole_mm.data.item_table import ItemTable
from recbole_mm.data.item_text import TextLayout, parse_template
from recbole_mm.data.missing import NOTHING, Hidden
from recbole_mm.data.title_cards import TitleCards
from recbole_mm.errors import ConfigError, DataError, ImageError
from recbole_mm.utils.progress import progress
from recbole_mm.utils.spelling import did_you_mean

logger = logging.getLogger(__name__)

MODALITIES = ("image", "text")
POLICIES = ("mask", "drop", "error")
CHECKED_AT_ONCE = 1024
CARD_TITLE = "movie_title"
"""Column of ml-100k that title cards are drawn of."""


class ContentSource:
    """Raw columns and images of a dataset's items, by item token. Safe for threads; can be pickled.

    Args:
        table: the `.item` file; None when there is none.
        layout: how columns become text, whether or not text is among the modalities; None where there are no columns.
        images: where images come from; None when no item has one.
        modalities: which of image and text are used.
        missing_modality: `mask`: an item goes without what is missing or broken; `drop`: the dataset leaves such items
            out before ids are given (`unusable`); `error`: DataError naming the item.
        max_image_pixels: larger images count as broken.
        root: the dataset's folder.
        show_progress: whether long loops show how far they are.

    Example:
        >>> _ = (tmp_path / "shop.item").write_text("item_id:token\\ttitle:token_seq\\n7\\tLamp\\n")
        >>> table = ItemTable.read(tmp_path / "shop.item")
        >>> ContentSource(table, TextLayout(["title"])).text("7")
        'Title: Lamp'
    """

    def __init__(
        self,
        table: ItemTable | None = None,
        layout: TextLayout | None = None,
        images: ImageSource | None = None,
        modalities: Iterable[str] = MODALITIES,
        missing_modality: str = "mask",
        max_image_pixels: float = DEFAULT_MAX_PIXELS,
        root: Path | None = None,
        show_progress: bool = True,
    ):
        self.table = table
        self.layout = layout
        self.images = images
        self.modalities = checked_modalities(modalities)
        if missing_modality not in POLICIES:
            known = did_you_mean(missing_modality, POLICIES)
            raise ConfigError(f"missing_modality: {missing_modality!r} is not a policy{known}")
        self.missing_modality = missing_modality
        self.max_image_pixels = max_image_pixels
        self.root = root
        self.show_progress = show_progress
        self.problems: dict[str, str] = {}
        """Item id -> why its image file could not be used, for the images read so far."""
        self.cut: set[str] = set()
        """Ids of the items whose text was cut, among those read so far."""
        self.hidden = NOTHING
        """What `hiding` leaves out."""

    @classmethod
    def from_config(cls, config: Config, modalities: Iterable[str] | None = None) -> ContentSource:
        """Build from a config; the settings are those of "what an item looks like" in `properties/overall.yaml`.

        Args:
            config: the run's settings.
            modalities: use only these (default: those of the config).

        Raises:
            ConfigError: settings that do not fit together.
            DataError: the `.item` file is malformed, or a setting names a column, folder or file that is not there.
        """
        root = Path(config["data_path"])
        path = root / f"{config['dataset']}.item"
        table = read_item_table(config, path) if path.is_file() else None
        if modalities is None:
            modalities = MODALITIES if config["modalities"] is None else config["modalities"]
        modalities = checked_modalities(modalities)
        return cls(
            table,
            _layout_from(config, table, modalities) if table is not None or "text" in modalities else None,
            _images_from(config, table, root) if "image" in modalities else None,
            modalities,
            config["missing_modality"] or "mask",
            config["max_image_pixels"] or DEFAULT_MAX_PIXELS,
            root,
            config["show_progress"] is not False,
        )

    def of_other_items(self, config: Config, path: Path) -> ContentSource:
        """Return the content of another `.item` file's items, read as those of this one: the same columns make the
        text, and images come from the same kind of place, in the folder of the file.

        Args:
            config: that this source was built from.
            path: the file.

        Raises:
            DataError: the file is malformed, or lacks a column, folder or file that is read of the items of this one.
        """
        table = read_item_table(config, path)
        layout = self.layout
        if layout is not None and "text" in self.modalities:
            for column in layout.columns:
                table.require(column, "the text of known items", "needs")
        elif layout is not None and not set(layout.columns) <= set(table.kinds):
            layout = None  # nothing reads it
        if isinstance(self.images, TitleCards):
            table.require(CARD_TITLE, "the picture of known items", "needs")
        return ContentSource(
            table,
            layout,
            _images_from(config, table, path.parent) if "image" in self.modalities else None,
            self.modalities,
            self.missing_modality,
            self.max_image_pixels,
            path.parent,
            self.show_progress,
        )

    def hiding(self, hidden: Hidden) -> ContentSource:
        """The same source as if it had no image or no row of `.item` for some items; `self` where nothing is hidden.

        Args:
            hidden: `image` and `text` -> ids of those items. A drawn card is made of the title, and goes with it.
        """
        if not hidden:
            return self
        images, texts = hidden.get("image", frozenset()), hidden.get("text", frozenset())
        if isinstance(self.images, TitleCards):
            images |= texts
        seen = copy(self)
        seen.hidden = hidden
        seen.images = None if self.images is None else ImagesWithout(self.images, images)
        seen.table = None if self.table is None else self.table.without(texts)
        return seen

    def fields(self, item_id: str) -> dict[str, str]:
        """The untouched columns of `.item`, without the id."""
        return {} if self.table is None else self.table.fields(item_id)

    def text(self, item_id: str) -> str | None:
        """The item's composed text, or None."""
        if self.table is None or self.layout is None:
            return None
        table = self.table
        text, cut = self.layout.compose(lambda column: table.value(item_id, column))
        if cut:
            self.cut.add(item_id)
        return text

    def has_text(self, item_id: str) -> bool:
        """Whether the item has a text, without composing it."""
        if self.table is None or self.layout is None:
            return False
        table = self.table
        return self.layout.has_text(lambda column: table.value(item_id, column))

    def has_image(self, item_id: str) -> bool:
        """Whether there is an image file that has not proved broken so far."""
        return self.images is not None and self.images.has(item_id) and item_id not in self.problems

    def image_bytes(self, item_id: str) -> bytes | None:
        """The image file's bytes; None when there is none, or it cannot be read and the policy allows that."""
        if self.images is None or not self.images.has(item_id):
            return None
        try:
            return self.images.read(item_id)
        except ImageError as error:
            self._note_problem(item_id, error)
            return None

    def image(self, item_id: str, max_side: int | None = None) -> Image.Image | None:
        """The decoded image; None when it is missing, or broken and the policy allows that.

        Raises:
            DataError: the image is broken and the policy is `error`.
        """
        data = self.image_bytes(item_id)
        if data is None:
            return None
        try:
            return decode_image(data, f"item {item_id}", self.max_image_pixels, max_side)
        except ImageError as error:
            self._note_problem(item_id, error)
            return None

    def _note_problem(self, item_id: str, error: ImageError) -> None:
        reason = str(error)
        self.problems[item_id] = reason.removeprefix(f"item {item_id}: ")
        if self.missing_modality == "error":
            raise refused(error) from error

    def missing(self, item_ids: Iterable[str], modalities: Iterable[str] | None = None) -> dict[str, list[str]]:
        """`image` and `text` -> ids of the items that have none; only the modalities in use.

        An image file that exists but is broken is not missing: it is found when it is decoded.
        """
        used = self.modalities if modalities is None else tuple(modalities)
        has = {"image": lambda item: self.images is not None and self.images.has(item), "text": self.has_text}
        ids = [str(item) for item in item_ids]
        return {name: [item for item in ids if not has[name](item)] for name in used}

    def unusable(self, item_ids: Iterable[str]) -> list[str]:
        """Ids, in the given order, of items that lack a modality or whose image is broken. Decodes every image."""
        ids = [str(item) for item in item_ids]
        lacking = {item for items in self.missing(ids).values() for item in items}
        if "image" in self.modalities:
            with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
                candidates = [item for item in ids if item not in lacking]
                blocks = range(0, len(candidates), CHECKED_AT_ONCE)
                outcomes = (
                    outcome
                    for start in blocks
                    for outcome in pool.map(self._decodes, candidates[start : start + CHECKED_AT_ONCE])
                )
                checked = progress(outcomes, "Checking images", len(candidates), "image", self.show_progress)
                lacking |= {item for item, good in zip(candidates, checked, strict=True) if not good}
        return [item for item in ids if item in lacking]

    def _decodes(self, item_id: str) -> bool:
        # A small picture is enough: damage shows while the file is parsed, whatever the scale.
        return self.image(item_id, max_side=64) is not None


def refused(error: ImageError) -> DataError:
    """What stops a run whose policy is `error`."""
    return DataError(f"{error} (missing_modality: error; mask or drop go on without it)")


def checked_modalities(names: Iterable[str]) -> tuple[str, ...]:
    """The names in one fixed order.

    Raises:
        ConfigError: a name is not `image` or `text`, or there is none.
    """
    given = {names} if isinstance(names, str) else set(names)
    for name in sorted(given - set(MODALITIES)):
        raise ConfigError(f"modalities: {name!r} is not a modality{did_you_mean(name, MODALITIES)}")
    if not given:
        raise ConfigError("modalities is empty; name image, text or both")
    return tuple(name for name in MODALITIES if name in given)


def read_item_table(config: Config, path: Path) -> ItemTable:
    """Read an `.item` file as the settings of a run say; see `ItemTable.read` for errors."""
    separator = config["field_separator"] or "\t"
    return ItemTable.read(path, config["ITEM_ID_FIELD"] or "item_id", separator, config["encoding"])


def _layout_from(config: Config, table: ItemTable | None, modalities: tuple[str, ...]) -> TextLayout | None:
    """How text is composed, from `text_template`, `text_fields` or, with neither, all columns that hold words."""
    if table is None:
        logger.warning("%s has no .item file: no item has a text", config["dataset"])
        return None
    limit = config["max_text_chars"]
    if config["text_template"]:
        parts = parse_template(config["text_template"])
        columns = list(dict.fromkeys(column for _, column in parts if column))
        for column in columns:
            table.require(column, "text_template")
        return TextLayout(columns, parts, limit)
    given = config["text_fields"] or []
    columns = [given] if isinstance(given, str) else list(given)
    for column in columns:
        table.require(column, "text_fields")
    if not columns:
        columns = [
            name
            for name, kind in table.kinds.items()
            if kind != FeatureType.FLOAT_SEQ and name != config["image_field"]
        ]
        if "text" in modalities:
            logger.info("text_fields is not set: the text of an item is %s", ", ".join(columns) or "empty")
    return TextLayout(columns, None, limit)


def _images_from(config: Config, table: ItemTable | None, root: Path) -> ImageSource | None:
    """The one configured image source; drawn cards for ml-100k; None, with a warning, where there is nothing."""
    folder, column, archive = config["image_dir"], config["image_field"], config["image_zip"]
    if archive and (folder or column):
        raise ConfigError(f"image_zip and {'image_dir' if folder else 'image_field'} are both set; keep one of them")
    if archive:
        return ZipImages(dataset_path(root, archive, "image_zip"))
    if column:
        if table is None:
            raise DataError(f"image_field names the column {column!r}, but {config['dataset']}.item is not in {root}")
        table.require(column, "image_field")
        return ColumnImages(dataset_path(root, folder or ".", "image_dir"), table.column(column))
    if folder:
        path = dataset_path(root, folder, "image_dir")
        return FolderImages(path, within=None if Path(folder).is_absolute() else root)
    if config["dataset"] == "ml-100k" and table is not None and CARD_TITLE in table.kinds:
        logger.warning(
            "ml-100k ships no posters: each image is a DRAWN TITLE CARD, not a poster. "
            "Set image_dir to a folder of posters named <item id>.jpg for real ones."
        )
        return TitleCards(table.column(CARD_TITLE))
    logger.warning("%s: no image_dir, image_zip or image_field is set: every image is missing", config["dataset"])
    return None


def dataset_path(root: Path, given: str, setting: str) -> Path:
    """A path relative to the dataset's folder, which it may not leave; an absolute one is the user's own choice.

    Raises:
        DataError: a relative path leads out of the dataset's folder, through `..` or a symbolic link.
    """
    path = root / given
    if not Path(given).is_absolute() and not path.resolve().is_relative_to(root.resolve()):
        raise DataError(
            f"{setting}: {given!r} leaves the dataset folder {root}; give an absolute path if that is meant"
        )
    return path
