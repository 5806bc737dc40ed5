"""Items that are sent to another machine, which has no dataset folder: their text and their image files' bytes."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from recbole_mm.data.content import ItemContent, ItemRecord
from recbole_mm.data.content_source import ContentSource, refused
from recbole_mm.data.decode import decode_image
from recbole_mm.errors import ImageError


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
