"""Items' texts and images in the order of RecBole's item ids: `content[i]` is the item whose embedding is row `i`."""

from __future__ import annotations

import hashlib
import logging
import operator
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import overload

import numpy as np
from PIL import Image

from recbole_mm.data.content_source import ContentSource, checked_modalities, refused
from recbole_mm.data.decode import decode_image
from recbole_mm.errors import ConfigError, DataError, ImageError

logger = logging.getLogger(__name__)

IDS_SHOWN = 5
HASHED_PER_TASK = 256


@dataclass(frozen=True)
class ItemRecord:
    """One item.

    Attributes:
        item_id: the token in `.item`; `[PAD]` at index 0.
        text: composed text, None when the item has none or text is not among the modalities.
        image: upright RGB image, None when missing, broken or not among the modalities.
    """

    item_id: str
    text: str | None
    image: Image.Image | None


@dataclass(frozen=True)
class Coverage:
    """How many items have an image and a text, and the share of all interactions that are with such items."""

    items: int
    items_with_image: int
    items_with_text: int
    interactions_with_image: float
    interactions_with_text: float

    def __str__(self) -> str:
        def part(name: str, count: int, share: float) -> str:
            return f"{name} {count:,} ({count / max(self.items, 1):.1%}; {share:.1%} of interactions)"

        return (
            f"{self.items:,} items: {part('image', self.items_with_image, self.interactions_with_image)}, "
            f"{part('text', self.items_with_text, self.interactions_with_text)}"
        )


class ItemContent(Sequence[ItemRecord]):
    """Item content in the order of RecBole's item ids; index 0 is padding and has neither text nor image.

    `content[i]` decodes the image anew each time and keeps nothing, so 300,000 items need no memory; call it from as
    many threads as you like.

    Args:
        source: the dataset's content.
        id_tokens: item token of every RecBole id (`dataset.field2id_token[...]`); `[PAD]` first.
        modalities: use only these (default: the source's own).

    Raises:
        ConfigError: a modality is not one of the source's.
        DataError: the policy is `error` and an item lacks a modality.

    Example:
        >>> from recbole_mm.data.item_table import ItemTable
        >>> from recbole_mm.data.item_text import TextLayout
        >>> _ = (tmp_path / "shop.item").write_text("item_id:token\\ttitle:token_seq\\n7\\tLamp\\n")
        >>> source = ContentSource(ItemTable.read(tmp_path / "shop.item"), TextLayout(["title"]), modalities=["text"])
        >>> content = ItemContent(source, ["[PAD]", "7"])          # of a dataset: `dataset.content`
        >>> content[1].text, content[0].text
        ('Title: Lamp', None)
    """

    def __init__(self, source: ContentSource, id_tokens: Sequence[str], modalities: Iterable[str] | None = None):
        self.source = source
        self.tokens = [str(token) for token in id_tokens]
        self.modalities = source.modalities if modalities is None else checked_modalities(modalities)
        if unused := set(self.modalities) - set(source.modalities):
            raise ConfigError(f"modalities: {sorted(unused)[0]!r} is not among the dataset's {list(source.modalities)}")
        self._fingerprints: dict[int, str] = {}
        self._reported = ""
        if source.missing_modality == "error":
            self._refuse_missing()

    def _refuse_missing(self) -> None:
        for name, ids in self.missing().items():
            if ids:
                raise DataError(
                    f"{len(ids):,} of {len(self) - 1:,} items have no {name}, such as item {ids[0]} "
                    "(missing_modality: error; mask or drop go on without it)"
                )

    def only(self, *modalities: str) -> ItemContent:
        """The same items seen through fewer modalities, with fingerprints of their own."""
        return ItemContent(self.source, self.tokens, modalities)

    def __len__(self) -> int:
        return len(self.tokens)

    @overload
    def __getitem__(self, index: int) -> ItemRecord: ...
    @overload
    def __getitem__(self, index: slice) -> list[ItemRecord]: ...
    def __getitem__(self, index: int | slice) -> ItemRecord | list[ItemRecord]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = self._place(index)
        image = self.source.image(self.tokens[place]) if place and "image" in self.modalities else None
        return ItemRecord(self.tokens[place], self.text(place), image)

    def _place(self, index: int) -> int:
        place = operator.index(index)
        if not -len(self) <= place < len(self):
            raise IndexError(f"item {place} of {len(self)}")
        return place % len(self)

    def text(self, index: int) -> str | None:
        """Composed text of one item, or None."""
        place = self._place(index)
        return self.source.text(self.tokens[place]) if place and "text" in self.modalities else None

    def fields(self, index: int) -> dict[str, str]:
        """The item's untouched `.item` columns, without the id; empty for padding."""
        place = self._place(index)
        return self.source.fields(self.tokens[place]) if place else {}

    def image_bytes(self, index: int) -> bytes | None:
        """Bytes of the item's image file, or None."""
        place = self._place(index)
        return self.source.image_bytes(self.tokens[place]) if place and "image" in self.modalities else None

    def fingerprint(self, index: int) -> str:
        """sha256 in hex over the modalities, the composed text and the image file's bytes (not decoded).

        Items that look the same have the same fingerprint. Computed once per object.
        """
        place = self._place(index)
        known = self._fingerprints.get(place)
        if known is None:
            digest = hashlib.sha256()
            for name, data in self._raw(place):
                digest.update(f"{name}:{-1 if data is None else len(data)}:".encode())
                digest.update(data or b"")
            known = self._fingerprints[place] = digest.hexdigest()
        return known

    def fingerprints(self, indices: Sequence[int]) -> list[str]:
        """Fingerprints of several items; image files are read in threads."""

        def some(start: int) -> list[str]:
            return [self.fingerprint(index) for index in indices[start : start + HASHED_PER_TASK]]

        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            parts = pool.map(some, range(0, len(indices), HASHED_PER_TASK))
            return [fingerprint for part in parts for fingerprint in part]

    def _raw(self, place: int) -> Iterator[tuple[str, bytes | None]]:
        """The inputs that the item's derived values depend on, named."""
        for modality in self.modalities:
            if modality == "text":
                text = self.text(place)
                yield "text", None if text is None else text.encode()
            else:
                # The limit decides which files are refused, and so what is computed from them.
                yield f"image at most {int(self.source.max_image_pixels)}", self.image_bytes(place)

    def missing(self) -> dict[str, list[str]]:
        """`image` and `text` -> ids of the items that have none."""
        return self.source.missing(self.tokens[1:], self.modalities)

    @property
    def problems(self) -> Mapping[str, str]:
        """Item id -> why its image is broken, for the images read so far."""
        broken = self.source.problems.copy() if "image" in self.modalities else {}
        return {item: reason for item, reason in broken.items() if item in self._known}

    @cached_property
    def _known(self) -> frozenset[str]:
        return frozenset(self.tokens[1:])

    def report_problems(self) -> None:
        """Log one line with what is missing, broken and cut, and the first ids; nothing if there is none or known."""
        total = len(self) - 1
        parts = [
            f"{len(ids):,} of {total:,} items have no {name} ({_some(ids)})"
            for name, ids in self.missing().items()
            if ids
        ]
        if broken := self.problems:
            examples = [f"{item}: {reason}" for item, reason in list(broken.items())[:IDS_SHOWN]]
            more = ", ..." if len(broken) > IDS_SHOWN else ""
            parts.append(f"{len(broken):,} images are broken ({'; '.join(examples)}{more})")
        if cut := self._known & self.source.cut.copy():
            parts.append(f"{len(cut):,} texts are cut to max_text_chars ({_some(sorted(cut))})")
        line = "; ".join(parts)
        if line and line != self._reported:
            logger.warning("item content: %s", line)
        self._reported = line

    def coverage(self, interaction_counts: np.ndarray) -> Coverage:
        """Items and share of interactions with an image and with a text.

        Args:
            interaction_counts: (item_num,) interactions of each item; index 0 is ignored.
        """
        counts = np.asarray(interaction_counts)
        if counts.shape != (len(self),):
            raise ValueError(f"{counts.shape} interaction counts for {len(self)} items")
        tokens = self.tokens[1:]
        masks = {
            "image": np.fromiter(map(self.source.has_image, tokens), bool, len(tokens)) & ("image" in self.modalities),
            "text": np.fromiter(map(self.source.has_text, tokens), bool, len(tokens)) & ("text" in self.modalities),
        }
        total = max(counts[1:].sum(), 1)
        found = {name: int(mask.sum()) for name, mask in masks.items()}
        share = {name: float(counts[1:][mask].sum() / total) for name, mask in masks.items()}
        return Coverage(len(tokens), found["image"], found["text"], share["image"], share["text"])


def _some(ids: Sequence[str]) -> str:
    return ", ".join(ids[:IDS_SHOWN]) + (", ..." if len(ids) > IDS_SHOWN else "")


# ---------------------------------------------------------------------------------------- items for other machines


@dataclass
class CarriedImage:
    """An image file's bytes; called, it gives the picture, as `ContentSource.image` does.

    Attributes:
        item_id: of the item.
        data: the file's bytes.
        missing_modality: the policy for a broken image.
        max_pixels: larger images count as broken.
        problem: why the image is broken, once that is known.
    """

    item_id: str
    data: bytes
    missing_modality: str
    max_pixels: float
    problem: str | None = None

    def __call__(self) -> Image.Image | None:
        """The picture, or None where it is broken and the policy allows that.

        Raises:
            DataError: it is broken and the policy is `error`.
        """
        try:
            return decode_image(self.data, f"item {self.item_id}", self.max_pixels)
        except ImageError as error:
            self.problem = str(error).removeprefix(f"item {self.item_id}: ")
            if self.missing_modality == "error":
                raise refused(error) from error
            return None


@dataclass(frozen=True)
class CarriedItem:
    """An item to be sent; `record()` is what `content[i]` is on the machine with the dataset."""

    item_id: str
    text: str | None
    image: CarriedImage | None

    def record(self) -> ItemRecord:
        """The item with its image decoded."""
        return ItemRecord(self.item_id, self.text, None if self.image is None else self.image())


@dataclass(frozen=True)
class ItemImage:
    """The image of an item: called, it is loaded; `carried()` is what can be sent."""

    source: ContentSource
    item_id: str

    def __call__(self) -> Image.Image | None:
        return self.source.image(self.item_id)

    def carried(self) -> CarriedImage | None:
        """Its file's bytes; None where it is missing, or cannot be read and the policy allows that."""
        data = self.source.image_bytes(self.item_id)
        if data is None:
            return None
        return CarriedImage(self.item_id, data, self.source.missing_modality, self.source.max_image_pixels)


def carried_item(content: ItemContent, index: int) -> CarriedItem:
    """Item `index` as it is sent."""
    item_id = content.tokens[index]
    image = ItemImage(content.source, item_id).carried() if index and "image" in content.modalities else None
    return CarriedItem(item_id, content.text(index), image)
