"""The prompts of the answering models: a preference (MLLM-MSR) or titles (TALLRec), then the candidate."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from recbole_mm.errors import ConfigError
from recbole_mm.inputs.answering.prompt import WordedPrompt, cut_to_tokens
from recbole_mm.llm.encode import DEFAULT_TEXT_TOKENS
from recbole_mm.llm.model import MLLM

if TYPE_CHECKING:
    from recbole_mm.data.content import ItemContent
    from recbole_mm.inputs.reasoning.preferences import Preferences

PREFERENCE_TOKENS = 512
"""Longer preference texts are cut."""


class PreferencePrompt(WordedPrompt):
    """MLLM-MSR's prompt: the user's preference text; then the candidate's image and text.

    Args:
        mllm: its tokenizer and chat template are used.
        content: the items; their images are shown if `image` is among its modalities.
        item_texts: text of each item by RecBole's id (title, metadata, summary); None or empty where there is none.
            None in place of the list: no item's text is shown.
        preferences: preference texts of users; None for no text of any user.
        image_pixels: bound on an image's area, in pixels.
        max_text_tokens: longer item texts are cut.
        max_preference_tokens: longer preferences are cut.
        domain: the word for an item.
        lists: ask about several candidates at once, by their letters.

    Raises:
        ConfigError: a bound is below 1, or neither images nor texts are shown.
    """

    PREFERENCE = "One person's taste in a {domain}, judged by earlier choices:\n{preference}\n\n"
    NO_PREFERENCE = "Nothing is known so far of one person's taste in a {domain}.\n\n"
    QUESTION = (
        "Below is a {domain} that the person has not chosen yet. Will it be next? Reply with Yes or No alone.\n\n"
    )
    LIST_QUESTION = (
        "Each letter below stands for a {domain} that the person has not chosen yet. Which one will be next? Reply "
        "with its letter alone.\n\n"
    )
    NOTHING_KNOWN = "(nothing is said of it)"

    def __init__(
        self,
        mllm: MLLM,
        content: ItemContent,
        item_texts: Sequence[str | None] | None,
        preferences: Preferences | None,
        *,
        image_pixels: int,
        max_text_tokens: int = DEFAULT_TEXT_TOKENS,
        max_preference_tokens: int = PREFERENCE_TOKENS,
        domain: str = "product",
        lists: bool = False,
    ) -> None:
        if max_text_tokens < 1 or max_preference_tokens < 1:
            raise ConfigError("max_text_tokens and the tokens of a preference must be at least 1")
        self.content = content
        self.item_texts = item_texts
        self.preferences = preferences
        self.max_text_tokens = max_text_tokens
        self.max_preference_tokens = max_preference_tokens
        self.domain = domain
        if item_texts is None and not self.shows_images:
            raise ConfigError("neither images nor texts of items are shown: keep one of them among the modalities")
        asked = self.LIST_QUESTION if lists else self.QUESTION
        self.question = asked.format(domain=domain)
        wording = [self.PREFERENCE, self.NO_PREFERENCE, asked, self.NOTHING_KNOWN]
        bounds = [max_text_tokens, max_preference_tokens]
        super().__init__(mllm, image_pixels, {"preference": wording, "bounds": bounds, "domain": domain})
        self._pictures = content.only("image") if self.shows_images else None

    @property
    def shows_images(self) -> bool:
        """Return whether `image` is among the modalities."""
        return "image" in self.content.modalities

    def user_text(self, user: int, history: Sequence[int]) -> str:
        """Return the preference after this history, and the question."""
        written = None if self.preferences is None else self.preferences.of(user, history)
        if not written or not written.strip():
            return self.NO_PREFERENCE.format(domain=self.domain) + self.question
        text = cut_to_tokens(written.strip(), self.max_preference_tokens, self.mllm.token_ids)
        return self.PREFERENCE.format(domain=self.domain, preference=text) + self.question

    def words_of(self, item: int) -> list[int]:
        """Return the token ids of the item's text, cut."""
        text = "" if self.item_texts is None else (self.item_texts[item] or "").strip()
        if not text and self.has_image(item):
            return []
        return self._token_ids(text or self.NOTHING_KNOWN)[: self.max_text_tokens]

    def has_image(self, item: int) -> bool:
        """Return whether the item has an image file."""
        return item > 0 and self.shows_images and bool(self.content.source.has_image(self.content.tokens[item]))

    def image(self, item: int) -> Any:
        """Return the item's image, or None where it cannot be decoded."""
        return self.content[item].image

    def fingerprint(self, item: int) -> str:
        """Return a hash of the image's bytes and the text."""
        text = None if self.item_texts is None else self.item_texts[item]
        image = None if self._pictures is None else self._pictures.fingerprint(item)
        return hashlib.sha256(json.dumps([image, text]).encode()).hexdigest()


class TitlesPrompt(WordedPrompt):
    """TALLRec's prompt: titles that the user liked and, by ratings, disliked; then the candidate's title.

    Args:
        mllm: its tokenizer and chat template are used.
        titles: title of every item by RecBole's id; index 0 is padding.
        history: number of a history's last items in the prompt.
        max_title_tokens: longer titles are cut.
        likes: (user, item) -> whether the user liked it; None: every item of a history is liked.
        domain: the word for an item.

    Raises:
        ConfigError: a bound is below 1.
    """

    LIKED = "One person liked, in this order:\n"
    DISLIKED = "The person did not like:\n"
    NOTHING = "Nothing is known so far of one person's taste in a {domain}.\n"
    ENTRY = "- {title}\n"
    QUESTION = "\nWould the person like the {domain} below? Reply with Yes or No alone.\n\n"
    NO_TITLE = "something without a title"

    def __init__(
        self,
        mllm: MLLM,
        titles: Sequence[str | None],
        *,
        history: int = 10,
        max_title_tokens: int = 24,
        likes: Callable[[int, int], bool] | None = None,
        domain: str = "product",
    ) -> None:
        if history < 1 or max_title_tokens < 1:
            raise ConfigError("tallrec_history and tallrec_title_tokens must be at least 1")
        self.titles = [
            cut_to_tokens((title or "").strip() or self.NO_TITLE, max_title_tokens, mllm.token_ids) for title in titles
        ]
        self.history = history
        self.likes = likes
        self.domain = domain
        wording = [self.LIKED, self.DISLIKED, self.NOTHING, self.ENTRY, self.QUESTION, self.NO_TITLE]
        bounds = [history, max_title_tokens]
        super().__init__(mllm, mllm.family.least_pixels, {"titles": wording, "bounds": bounds, "domain": domain})

    def user_text(self, user: int, history: Sequence[int]) -> str:
        """The titles of the last items, liked before disliked, and the question."""
        shown = [int(item) for item in history[-self.history :]]
        liked = [item for item in shown if self.likes is None or self.likes(user, item)]
        disliked = [item for item in shown if item not in liked]
        text = self._listed(self.LIKED, liked) + self._listed(self.DISLIKED, disliked)
        return (text or self.NOTHING.format(domain=self.domain)) + self.QUESTION.format(domain=self.domain)

    def _listed(self, heading: str, items: Sequence[int]) -> str:
        if not items:
            return ""
        return heading + "".join(self.ENTRY.format(title=self.titles[item]) for item in items)

    def words_of(self, item: int) -> list[int]:
        """Token ids of the title."""
        return self._token_ids(self.titles[item])

    def fingerprint(self, item: int) -> str:
        """Hash of the title."""
        return hashlib.sha256(self.titles[item].encode("utf-8", "replace")).hexdigest()
