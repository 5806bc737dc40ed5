"""Items in words: the description of the image, and the text that an item is encoded and shown by (MLLMRec, 4.1)."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from recbole_mm.data.carried import ItemImage
from recbole_mm.data.content import ItemContent
from recbole_mm.data.item_facts import ItemFacts
from recbole_mm.data.item_text import clean_text
from recbole_mm.inputs.reasoning.prompts import description_prompt
from recbole_mm.inputs.reasoning.settings import ReasoningSettings
from recbole_mm.llm.texts.cleaning import cut_words
from recbole_mm.llm.texts.generator import Generator, Request

logger = logging.getLogger(__name__)

STAGE = "item_description"

Texts = list[str | None]
"""Text of each item by RecBole's id; None for padding and where there is none."""


def in_token_order(content: ItemContent) -> list[int]:
    """Ids of all items in the order of their tokens: RecBole's numbers depend on rows that are held out."""
    return sorted(range(1, len(content)), key=content.tokens.__getitem__)


def wants_descriptions(settings: ReasoningSettings, generator: Generator) -> bool:
    """Whether items are described at all: not for their metadata alone, nor by a template beside that metadata."""
    return settings.item_text == "image" or (settings.item_text == "fused" and generator.makes == "answers")


def description_requests(content: ItemContent, settings: ReasoningSettings, generator: Generator) -> dict[int, Request]:
    """One request for each item that can be described: by an LLM, if it has an image; by the template, if it has
    metadata beside its title.

    Returns:
        Item id -> request, in the order of item tokens.
    """
    if not wants_descriptions(settings, generator):
        return {}
    facts = ItemFacts(content)
    items = in_token_order(content)
    if generator.makes == "templates":
        said = {item: facts.description(item) for item in items} if "text" in content.modalities else {}
        return {item: Request("", cut_words(text, settings.description_words)) for item, text in said.items() if text}
    seen = [item for item in items if facts.has_image(item)]
    if not seen:
        return {}
    hashes = content.only("image").fingerprints(seen)
    return {
        item: Request(
            description_prompt(settings.item_domain, _title(facts, item), settings.description_words),
            None,
            ItemImage(content.source, content.tokens[item]),
            image_hash,
        )
        for item, image_hash in zip(seen, hashes, strict=True)
    }


def _title(facts: ItemFacts, item: int) -> str:
    if facts.title is None or "text" not in facts.content.modalities:
        return ""
    return clean_text(facts.content.fields(item).get(facts.title, ""))


def item_texts(content: ItemContent, settings: ReasoningSettings, descriptions: Mapping[int, str]) -> Texts:
    """The text of every item: its metadata, the description of its image, or both, one after the other.

    An item that lacks one of the two has the other alone; one that lacks all that `item_text` asks for has no text.

    Args:
        content: the items.
        settings: `item_text` and `description_words`.
        descriptions: item id -> description.
    """
    texts: Texts = [None] * len(content)
    for item in range(1, len(content)):
        described = cut_words(descriptions.get(item, ""), settings.description_words)
        metadata = content.text(item) if settings.item_text != "image" else None
        if settings.item_text == "text":
            described = ""
        texts[item] = fused(metadata, described)
    return texts


def fused(metadata: str | None, description: str) -> str | None:
    """Metadata and description as one text; None if there is neither.

    >>> fused("Title: Lamp\\nColour: red", "A small red desk lamp of lacquered steel.")
    'Title: Lamp\\nColour: red\\nAppearance: A small red desk lamp of lacquered steel.'
    """
    if not metadata:
        return description or None
    return f"{metadata}\nAppearance: {description}" if description else metadata


def log_coverage(content: ItemContent, descriptions: Mapping[int, str], texts: Texts) -> None:
    """Say how many items have a text, and of what."""
    have = sum(text is not None for text in texts)
    logger.info(
        "item texts: %d of %d items have one, %d of them with a description of the image",
        *(have, len(content) - 1, len(descriptions)),
    )
    without = [content.tokens[item] for item in range(1, len(content)) if texts[item] is None]
    if without:
        logger.warning(
            "item texts: %d of %d items have none and are masked: their vectors are zeros (%s%s)",
            *(len(without), len(content) - 1, ", ".join(without[:5]), ", ..." if len(without) > 5 else ""),
        )
