"""Items in words: the image's description, and the text that an item is encoded and shown by (MLLMRec, section 4.1)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from recbole_mm.data.content import ItemContent, ItemImage
from recbole_mm.data.item_facts import ItemFacts
from recbole_mm.data.item_text import clean_text
from recbole_mm.inputs.context import PlannedStage
from recbole_mm.inputs.reasoning.prompts import Texts, description_prompt, facts_prompt
from recbole_mm.inputs.reasoning.settings import ReasoningSettings
from recbole_mm.inputs.reasoning.writing import DESCRIPTIONS, TextNeed, TextStage, stand_in
from recbole_mm.llm.texts.cleaning import cut_words
from recbole_mm.llm.texts.generator import Generator, Request

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class KnownTexts:
    """Item texts as far as a plan knows them.

    Attributes:
        texts: of every item; stand-ins for those that are not written yet.
        unwritten: ids of these.

    Example:
        >>> KnownTexts([None, "A lamp", "words words"], {2}).written
        [None, 'A lamp', None]
    """

    texts: Texts
    unwritten: set[int]

    @property
    def written(self) -> Texts:
        """The texts, None in place of stand-ins."""
        return [None if item in self.unwritten else text for item, text in enumerate(self.texts)]


class ItemTexts(TextNeed):
    """`item_texts`: the text of every item; its image is described first, where that is asked for."""

    def stage(self) -> TextStage[int]:
        """Returns the descriptions that are wanted."""
        content, writing = self.context.content, self.writing
        requests = description_requests(content, writing.settings, writing.generator)
        return TextStage(DESCRIPTIONS, requests, content.tokens)

    @cached_property
    def planned(self) -> tuple[list[PlannedStage], KnownTexts]:
        """The stage of a plan, if there is one, and what is known of the texts."""
        content, writing, stage = self.context.content, self.writing, self.stage()
        if not stage.requests and wants_descriptions(writing.settings, writing.generator):
            what = "an image" if writing.generator.reads_images else "a text"
            self.context.notes.append(f"no item has {what}: no description is made")
        described = writing.plan(stage)
        guessed = dict.fromkeys(described.unwritten, stand_in(writing.settings.description_words))
        texts = item_texts(content, writing.settings, {**described.texts, **guessed})
        return [described.row] if stage.requests else [], KnownTexts(texts, described.unwritten)

    @property
    def known(self) -> KnownTexts:
        """What is known of the texts without writing any."""
        return self.planned[1]

    @cached_property
    def texts(self) -> Texts:
        """The texts, by RecBole's id; descriptions are written now unless the store has them."""
        content, settings = self.context.content, self.writing.settings
        descriptions = self.writing.remembered(DESCRIPTIONS, dict(enumerate(content.tokens)))
        if descriptions is None:
            stage = self.stage()
            self._log_requests(len(stage.requests), len(content) - 1)
            descriptions = self.writing.write(stage)
        texts = item_texts(content, settings, descriptions)
        log_coverage(content, descriptions, texts)
        return texts

    def known_of(self, item: int) -> str | None:
        """What is known of an item without an LLM: its metadata; where it has none, its text."""
        return self.context.content.text(item) or self.texts[item]

    def _log_requests(self, requests: int, total: int) -> None:
        kind, answers = self.writing.settings.item_text, self.writing.answers
        if kind == "image" and not self.writing.generator.reads_images:
            by = f"a text LLM ({self._model})" if answers else "text_backend: template"
            logger.warning("item_text: image with %s: descriptions say the metadata, no image is read", by)
        elif kind == "fused" and answers and not self.writing.generator.reads_images:
            logger.info(
                "item descriptions: %s sees no images and describes items by their metadata; item_text: text would not",
                self._model,
            )
        elif kind == "fused" and not answers:
            logger.info("item descriptions: none, for a template could only repeat the metadata that is there already")
        elif kind != "text" and requests < total:
            logger.info(
                "item descriptions: %d of %d items have no image; no call is made for them", total - requests, total
            )

    @property
    def _model(self) -> str:
        return str(self.context.config["text_model"] or self.context.config["mllm"])

    def plan(self) -> list[PlannedStage]:
        """Returns the stage of descriptions, if any is made."""
        return self.planned[0]

    def write(self) -> None:
        """Has the descriptions written."""
        _ = self.texts

    def compute(self) -> dict[str, Any]:
        """Returns `item_texts`."""
        return {"item_texts": self.texts}


def in_token_order(content: ItemContent) -> list[int]:
    """Ids of all items in the order of their tokens: RecBole's numbers depend on rows that are held out."""
    return sorted(range(1, len(content)), key=content.tokens.__getitem__)


def wants_descriptions(settings: ReasoningSettings, generator: Generator) -> bool:
    """Returns whether items are described: not for their metadata alone, nor by a template, which only repeats it."""
    return settings.item_text == "image" or (settings.item_text == "fused" and generator.makes == "answers")


def description_requests(content: ItemContent, settings: ReasoningSettings, generator: Generator) -> dict[int, Request]:
    """One request for each item that can be described: by an LLM, if it has an image, or a text where the LLM sees no
    images; by the template, if it has metadata other than its title.

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
    domain, words, wording = settings.item_domain, settings.description_words, settings.wording
    if not generator.reads_images:
        known = {item: text for item in items if (text := facts.text(item))}
        return {item: Request(facts_prompt(domain, text, words, wording.facts), None) for item, text in known.items()}
    seen = [item for item in items if facts.has_image(item)]
    if not seen:
        return {}
    hashes = content.only("image").fingerprints(seen)
    return {
        item: Request(
            description_prompt(domain, _title(facts, item), words, wording.description),
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
        "item texts: %d of %d items have one, %d of them with a description",
        *(have, len(content) - 1, len(descriptions)),
    )
    without = [content.tokens[item] for item in range(1, len(content)) if texts[item] is None]
    if without:
        logger.warning(
            "item texts: %d of %d items have none and are masked: their vectors are zeros (%s%s)",
            *(len(without), len(content) - 1, ", ".join(without[:5]), ", ..." if len(without) > 5 else ""),
        )
