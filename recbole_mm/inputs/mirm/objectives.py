"""What Molar's MIRM is fine-tuned on (section 3.3): three objectives and their mixture, drawn from training data alone.

IT, "image-text alignment": an item's image in, a detailed description out. SA, "structured attribute processing": title
and metadata in, a description in prose out. UB, "temporal user behavior understanding": a history's items in, the next
item out.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np

from recbole_mm.data.item_facts import ItemFacts
from recbole_mm.errors import ConfigError

logger = logging.getLogger(__name__)

IT, SA, UB = OBJECTIVES = ("IT", "SA", "UB")
REQUESTS = {IT: "Described in detail:", SA: "Told in prose:", UB: "The item chosen next:"}
"""What is asked after the items of an example. Part of the digest of the examples."""

LACKING = {
    IT: "no item has both an image and something to describe it with",
    SA: "no item has metadata that a description could be made of",
    UB: "no training sequence has two items of which the later one has a text",
}


@dataclass(frozen=True)
class ShownItem:
    """One item of a prompt; it is laid out as for encoding, and ends in `[Cur_Item]`.

    Attributes:
        item: its id, the place in the content.
        image: whether its picture is shown.
        text: its words, or None.
    """

    item: int
    image: bool
    text: str | None


@dataclass(frozen=True)
class Example:
    """One prompt and its answer.

    Attributes:
        objective: `IT`, `SA` or `UB`.
        items: the items shown, in order.
        request: what is asked after them.
        answer: what is to be said.
    """

    objective: str
    items: tuple[ShownItem, ...]
    request: str
    answer: str


class Histories(NamedTuple):
    """Users' sequences end to end.

    Attributes:
        items: (M,) item ids, users one after the other, in time order within a user.
        offsets: (U + 1,) start of each user's items, with M at the end.
    """

    items: np.ndarray
    offsets: np.ndarray


def image_text(facts: ItemFacts, items: Iterable[int], draw: Draw) -> list[Example]:
    """IT: the image of an item alone is shown, its description is the answer.

    Args:
        facts: of the items.
        items: of the training data, in the order of their tokens.
        draw: takes some of the items that have an image and a description.
    """
    drawn = draw([item for item in items if facts.has_image(item) and facts.description(item)])
    return [_described(IT, ShownItem(item, image=True, text=None), facts) for item in drawn]


def structured_attributes(facts: ItemFacts, items: Iterable[int], draw: Draw) -> list[Example]:
    """SA: the metadata of an item alone is shown, its description is the answer. The arguments are those of IT."""
    drawn = draw([item for item in items if facts.metadata(item) and facts.description(item)])
    return [_described(SA, ShownItem(item, image=False, text=facts.metadata(item)), facts) for item in drawn]


def _described(objective: str, shown: ShownItem, facts: ItemFacts) -> Example:
    return Example(objective, (shown,), REQUESTS[objective], facts.description(shown.item) or "")


def user_behavior(facts: ItemFacts, histories: Histories, draw: Draw, length: int) -> list[Example]:
    """UB: the `length` items before a target are shown, the target's own text is the answer.

    Items with neither image nor text are left out of histories: there is nothing to show of them.

    Args:
        facts: of the items.
        histories: the users' training sequences.
        draw: takes some of the places that have a text to be predicted and an item before them.
        length: items shown at most.
    """
    has_text = np.zeros(len(facts.content.tokens), dtype=bool)
    known = np.zeros(len(facts.content.tokens), dtype=bool)
    for item in np.unique(histories.items).tolist():
        has_text[item] = bool(facts.text(item))
        known[item] = has_text[item] or facts.has_image(item)
    kept = known[histories.items]
    items, offsets = histories.items[kept], np.concatenate([[0], np.cumsum(kept)])[histories.offsets]
    wanted = has_text[items]
    starts = offsets[:-1]
    wanted[starts[starts < len(wanted)]] = False
    examples = []
    for target in draw(np.flatnonzero(wanted)):
        start = offsets[np.searchsorted(offsets, target, side="right") - 1]
        history = items[max(int(start), target - length) : target].tolist()
        shown = tuple(ShownItem(item, facts.has_image(item), facts.text(item)) for item in history)
        examples.append(Example(UB, shown, REQUESTS[UB], facts.text(int(items[target])) or ""))
    return examples


Draw = Callable[[Sequence[int] | np.ndarray], list[int]]
"""Takes some of what an objective could be built of."""


def build_mixture(
    facts: ItemFacts, histories: Histories, objectives: Sequence[str], count: int, history_length: int, seed: int
) -> list[Example]:
    """Draw examples of every objective.

    What is drawn depends on the training sequences' item tokens and the seed alone, never on how RecBole numbers items:
    numbers change with rows that are held out.

    Args:
        facts: of the items.
        histories: the users' training sequences; users in an order that does not depend on held-out rows.
        objectives: which of `OBJECTIVES`.
        count: examples of each; fewer where the data has fewer.
        history_length: items shown at most by UB.
        seed: of the draw.

    Returns:
        All examples, objective by objective.

    Raises:
        ConfigError: the data has examples of none of the objectives.
    """
    tokens = facts.content.tokens
    items = sorted(np.unique(histories.items).tolist(), key=lambda item: tokens[item])
    builders: Mapping[str, Callable[[Draw], list[Example]]] = {
        IT: lambda draw: image_text(facts, items, draw),
        SA: lambda draw: structured_attributes(facts, items, draw),
        UB: lambda draw: user_behavior(facts, histories, draw, history_length),
    }
    mixture: list[Example] = []
    for place, name in enumerate(OBJECTIVES):
        if name not in objectives:
            continue
        examples = builders[name](partial(_drawn, count=count, rng=np.random.default_rng([seed, place])))
        if not examples:
            if len(objectives) == 1:
                raise ConfigError(f"mirm_objectives: {name} has no examples: {LACKING[name]}")
            logger.warning("MIRM: %s is skipped: %s", name, LACKING[name])
        elif len(examples) < count:
            logger.info(
                "MIRM: %d examples of %s instead of %d: the training data has no more", len(examples), name, count
            )
        mixture += examples
    if not mixture:
        raise ConfigError(f"mirm_objectives: none of {', '.join(objectives)} has an example in this data")
    if facts.templated:
        logger.info(
            "MIRM: the descriptions of %d items are written from their metadata by a template%s",
            len(facts.templated),
            "" if facts.described else " (mirm_description_field names a column of written ones)",
        )
    return mixture


def _drawn(eligible: Sequence[int] | np.ndarray, count: int, rng: np.random.Generator) -> list[int]:
    """At most `count` of them, in the order drawn."""
    return [int(eligible[place]) for place in rng.permutation(len(eligible))[:count]]


def examples_digest(examples: Sequence[Example], fingerprint: Callable[[int], str]) -> str:
    """sha256 in hex over everything the examples show and ask for.

    Args:
        examples: of the mixture.
        fingerprint: item -> hash of its content, image bytes included (`ItemContent.fingerprint`).
    """
    digest = hashlib.sha256()
    for example in examples:
        shown = [(fingerprint(item.item) if item.image else None, item.text) for item in example.items]
        line = json.dumps([example.objective, shown, example.request, example.answer], ensure_ascii=True)
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()
