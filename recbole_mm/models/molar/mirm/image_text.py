"""IT, "image-text alignment" (Molar, section 3.3): an item's image in, a detailed description out."""

from __future__ import annotations

from collections.abc import Iterable

from recbole_mm.data.item_facts import ItemFacts
from recbole_mm.models.molar.mirm.examples import Example, ShownItem

NAME = "IT"
REQUEST = "Described in detail:"


def eligible(facts: ItemFacts, items: Iterable[int]) -> list[int]:
    """The items that have an image and something to say about it."""
    return [item for item in items if facts.has_image(item) and facts.description(item)]


def build(facts: ItemFacts, items: Iterable[int]) -> list[Example]:
    """One example for each eligible item: its image alone is shown, its description is the answer."""
    return [
        Example(NAME, (ShownItem(item, image=True, text=None),), REQUEST, facts.description(item) or "")
        for item in items
    ]
