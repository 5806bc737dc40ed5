"""Items laid out as prompts, for models that train the LLM which reads them."""

from __future__ import annotations

from recbole_mm.llm.encode import ItemEncoder
from recbole_mm.llm.family import PreparedInput
from recbole_mm.llm.item_vectors import Content
from recbole_mm.utils.cache import ByteCache

KEPT_BYTES = 2**30
"""Bound of the prompts that are kept; the others are laid out again each time they are read."""


class PreparedItems:
    """The prompt of each item as `ItemEncoder` reads it: token ids and cut images, laid out on first use and kept.

    Args:
        content: the items; index 0 is padding.
        encoder: lays them out.
        most_bytes: bound of the prompts that are kept.

    Example:
        >>> items = PreparedItems(dataset.content, encoder)  # doctest: +SKIP
        >>> items[1].ids.shape, items[0]                     # doctest: +SKIP
        ((23,), None)
    """

    def __init__(self, content: Content, encoder: ItemEncoder, most_bytes: int = KEPT_BYTES) -> None:
        self.content, self.encoder = content, encoder
        self._kept: ByteCache[int, tuple[PreparedInput | None]] = ByteCache(most_bytes)

    def __len__(self) -> int:
        return len(self.content)

    def __getitem__(self, item: int) -> PreparedInput | None:
        """Return an item's prompt; None for an item with neither image nor text."""
        kept = self._kept.get(item)
        if kept is None:
            kept = (self.encoder.prepare(self.content[item]),)
            self._kept.put(item, kept, _nbytes(kept[0]))
        return kept[0]


def _nbytes(prompt: PreparedInput | None) -> int:
    return 0 if prompt is None else prompt.ids.nbytes + sum(image.pixels.nbytes for image in prompt.images)
