"""UB, "temporal user behavior understanding" (Molar, section 3.3): a history's items in, the next item out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from recbole_mm.data.item_facts import ItemFacts
from recbole_mm.models.molar.mirm.examples import Example, ShownItem

NAME = "UB"
REQUEST = "The item chosen next:"


class Histories(NamedTuple):
    """Users' sequences end to end.

    Attributes:
        items: (M,) item ids, users one after the other, in time order within a user.
        offsets: (U + 1,) start of each user's items, with M at the end.
    """

    items: np.ndarray
    offsets: np.ndarray


def showable(facts: ItemFacts, histories: Histories) -> Histories:
    """The histories without the items that have neither image nor text: there is nothing to show of them."""
    known = np.zeros(len(facts.content.tokens), dtype=bool)
    for item in np.unique(histories.items).tolist():
        known[item] = facts.has_image(item) or bool(facts.text(item))
    kept = known[histories.items]
    counted = np.concatenate([[0], np.cumsum(kept)])
    return Histories(histories.items[kept], counted[histories.offsets])


def eligible(facts: ItemFacts, histories: Histories) -> np.ndarray:
    """Places in `histories.items` of the items that have a text to be predicted and an item before them."""
    has_text = np.zeros(len(facts.content.tokens), dtype=bool)
    for item in np.unique(histories.items).tolist():
        has_text[item] = bool(facts.text(item))
    wanted = has_text[histories.items]
    starts = histories.offsets[:-1]
    wanted[starts[starts < len(wanted)]] = False
    return np.flatnonzero(wanted)


def build(facts: ItemFacts, histories: Histories, targets: Iterable[int], length: int) -> list[Example]:
    """One example for each eligible place: the `length` items before it are shown, its own text is the answer."""
    examples = []
    for target in targets:
        start = histories.offsets[np.searchsorted(histories.offsets, target, side="right") - 1]
        history = histories.items[max(int(start), target - length) : target].tolist()
        shown = tuple(ShownItem(item, facts.has_image(item), facts.text(item)) for item in history)
        examples.append(Example(NAME, shown, REQUEST, facts.text(int(histories.items[target])) or ""))
    return examples
