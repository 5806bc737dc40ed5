"""SA, "structured attribute processing" (Molar, section 3.3): title and metadata in, a description in prose out."""

from __future__ import annotations

from collections.abc import Iterable

from recbole_mm.data.item_facts import ItemFacts
from recbole_mm.models.molar.mirm.examples import Example, ShownItem

NAME = "SA"
REQUEST = "Told in prose:"


def eligible(facts: ItemFacts, items: Iterable[int]) -> list[int]:
    """The items that have metadata and a description."""
    return [item for item in items if facts.metadata(item) and facts.description(item)]


def build(facts: ItemFacts, items: Iterable[int]) -> list[Example]:
    """One example for each eligible item: its metadata alone is shown, its description is the answer."""
    return [
        Example(
            NAME, (ShownItem(item, image=False, text=facts.metadata(item)),), REQUEST, facts.description(item) or ""
        )
        for item in items
    ]
