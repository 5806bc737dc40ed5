"""The mixture of objectives that the MIRM is fine-tuned on, drawn from training interactions alone."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from recbole_mm.data.item_facts import ItemFacts
from recbole_mm.errors import ConfigError
from recbole_mm.models.molar.mirm import image_text, structured_attributes, user_behavior
from recbole_mm.models.molar.mirm.examples import Example
from recbole_mm.models.molar.mirm.user_behavior import Histories

logger = logging.getLogger(__name__)

OBJECTIVES = (image_text.NAME, structured_attributes.NAME, user_behavior.NAME)
LACKING = {
    image_text.NAME: "no item has both an image and something to describe it with",
    structured_attributes.NAME: "no item has metadata that a description could be made of",
    user_behavior.NAME: "no training sequence has two items of which the later one has a text",
}


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
    shown = user_behavior.showable(facts, histories)
    builders: Mapping[str, Callable[[np.random.Generator], list[Example]]] = {
        image_text.NAME: lambda rng: image_text.build(facts, _draw(image_text.eligible(facts, items), count, rng)),
        structured_attributes.NAME: lambda rng: structured_attributes.build(
            facts, _draw(structured_attributes.eligible(facts, items), count, rng)
        ),
        user_behavior.NAME: lambda rng: user_behavior.build(
            facts, shown, _draw(user_behavior.eligible(facts, shown), count, rng), history_length
        ),
    }
    mixture: list[Example] = []
    for place, name in enumerate(OBJECTIVES):
        if name not in objectives:
            continue
        examples = builders[name](np.random.default_rng([seed, place]))
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


def _draw(eligible: Sequence[int] | np.ndarray, count: int, rng: np.random.Generator) -> list[int]:
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
