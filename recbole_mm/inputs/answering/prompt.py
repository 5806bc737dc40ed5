"""What prompts that are answered Yes or No have in common: two parts, the checkpoint's chat template, lengths.

The user's part comes first, so that it is read once for all candidates. The candidate's image, text and the cue to
answer follow it. Where a checkpoint has a chat template it stands around the whole prompt; images stand where they are
put, in the middle of the user's turn.
"""

from __future__ import annotations

import json
import string
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from typing import Any

from recbole_mm.errors import ConfigError
from recbole_mm.llm.answer import resolve_yes_no
from recbole_mm.llm.family import CutImage, Part
from recbole_mm.llm.model import MLLM
from recbole_mm.llm.texts.chat import Chat
from recbole_mm.utils.cache import ByteCache

TOKENIZED = 4096
"""Texts whose token ids are kept: a user's is asked for again right away, an item's by the next user."""

CUT_BYTES = 1 << 28
"""Of images that are kept as the vision tower reads them: fine-tuning shows an item again and again."""

LABELS = tuple(string.ascii_uppercase)
"""Letters of candidates that are shown in one list: each is a token of its own in every tokenizer."""

CUE = "\nAnswer:\n"
"""Ends every prompt. The line break keeps "Yes" and "No" tokens of their own."""


class WordedPrompt(ABC):
    """A prompt: a prefix that depends on the user alone, and a suffix that depends on the item alone.

    A subclass has the text of a user (`user_text`) and of an item (`words_of`), and the images, if any.

    Args:
        mllm: whose tokenizer and chat template are used.
        image_pixels: bound on an image's area.
        settings: wording and bounds, which make the identity.

    Attributes:
        tail: the text right before the answer, for `recbole_mm.llm.answer.resolve_yes_no`.
        identity: of the wording and its bounds, for digests.
        image_pixels: bound on an image's area.
    """

    def __init__(self, mllm: MLLM, image_pixels: int | None, settings: dict[str, Any]) -> None:
        self.mllm = mllm
        self.image_pixels = image_pixels = mllm.family.bound(image_pixels)
        self._frame = Chat(mllm.tokenizer, mllm.token_ids, mllm.family.placeholder, mllm.name).frame()
        self._cue = CUE if self._frame.is_plain else CUE.rstrip()
        self.tail = _answerable(mllm, self._frame.tail(self._cue))
        self._token_ids = lru_cache(TOKENIZED)(mllm.token_ids)
        self._image_cost = mllm.family.image_cost(image_pixels)
        self._cut: ByteCache[int, CutImage] = ByteCache(CUT_BYTES)
        self.identity = json.dumps({**settings, "cue": CUE, "image_pixels": image_pixels}, sort_keys=True)

    # --- what a subclass says ----------------------------------------------------------------------------------------

    @abstractmethod
    def user_text(self, user: int, history: Sequence[int]) -> str:
        """Returns the words of the user's part: what it depends on, for digests.

        Args:
            user: RecBole's id.
            history: RecBole's ids of the items before the candidate, oldest first.
        """

    @abstractmethod
    def words_of(self, item: int) -> list[int]:
        """Returns the token ids of the item's words."""

    @abstractmethod
    def fingerprint(self, item: int) -> str:
        """Returns the hash of all that is shown of an item, image bytes included, for digests."""

    def has_image(self, item: int) -> bool:
        """Returns whether an image would be shown; whether it can be decoded is only known then."""
        return False

    def image(self, item: int) -> Any:
        """Returns the item's image, or None."""
        return None

    # --- the prompt --------------------------------------------------------------------------------------------------

    @property
    def shows_images(self) -> bool:
        """Whether any item's image may be shown."""
        return False

    @property
    def shares_prefix(self) -> bool:
        """Whether a prefix may be read once for several suffixes: not where a family lets words look at an image that
        comes after them, or an image's tokens at later ones."""
        family = self.mllm.family
        return not (self.shows_images and (family.images_reach_back or family.images_look_ahead))

    def prefix(self, user: int, history: Sequence[int]) -> list[Part]:
        """Returns the user's part: token ids, for `Family.prepare`."""
        return [self._prefix_ids(user, history)]

    def suffix(self, item: int) -> list[Part]:
        """Returns the item's part, for `Family.prepare` with `continued=True`; it ends where the answer begins.

        An image that cannot be decoded is left out.
        """
        image = self._cut_image(item) if self.has_image(item) else None
        if image is None:
            return [self._suffix_ids(item)]
        return [image, [*self._token_ids("\n"), *self._suffix_ids(item)]]

    def list_suffix(self, items: Sequence[int]) -> list[Part]:
        """Returns the part of several candidates, each behind its letter, as `suffix` does that of one.

        Args:
            items: at most as many as there are letters.
        """
        parts: list[Part] = []
        words: list[int] = []
        for label, item in zip(LABELS[: len(items)], items, strict=True):
            words = [*words, *self._token_ids(f"{label}. ")]
            image = self._cut_image(item) if self.has_image(item) else None
            if image is not None:
                parts += [words, image]
                words = self._token_ids("\n")
            words = [*words, *self.words_of(item), *self._token_ids("\n")]
        return [*parts, [*words, *self._ending]]

    def list_length(self, items: Sequence[int]) -> int:
        """Returns at most so many tokens and image patches of `list_suffix`; no image is decoded."""
        line = len(self._token_ids("\n"))
        images = sum(self._image_cost + line for item in items if self.has_image(item))
        words = sum(len(self._token_ids(f"{label}. ")) + line for label, _ in zip(LABELS, items))
        return images + words + sum(len(self.words_of(item)) for item in items) + len(self._ending)

    def _cut_image(self, item: int) -> CutImage | None:
        """The item's image as the vision tower reads it; None where it cannot be decoded."""
        cut = self._cut.get(item)
        if cut is None and (image := self.image(item)) is not None:
            cut = self.mllm.family.cut(image, self.image_pixels)
            self._cut.put(item, cut, cut.pixels.nbytes)
        return cut

    def prefix_length(self, user: int, history: Sequence[int]) -> int:
        """Returns at most so many tokens, the one that opens a prompt included."""
        return 1 + len(self._prefix_ids(user, history))

    def suffix_length(self, item: int) -> int:
        """Returns at most so many tokens and image patches; no image is decoded."""
        image = self._image_cost + len(self._token_ids("\n")) if self.has_image(item) else 0
        return image + len(self._suffix_ids(item))

    def _prefix_ids(self, user: int, history: Sequence[int]) -> list[int]:
        return [*self._frame.opening, *self._token_ids(self._frame.before + self.user_text(user, history))]

    def _suffix_ids(self, item: int) -> list[int]:
        return [*self.words_of(item), *self._ending]

    @cached_property
    def _ending(self) -> list[int]:
        return [*self._token_ids(self._cue + self._frame.after), *self._frame.closing]


def _answerable(mllm: MLLM, tail: str) -> str:
    """The tail, without its blank where that is a token of its own and so the beginning of both answers."""
    if tail.endswith(" "):
        try:
            resolve_yes_no(mllm, tail)
        except ConfigError:
            return tail[:-1]
    return tail


def cut_to_tokens(text: str, most: int, token_ids: Callable[[str], list[int]]) -> str:
    """A text whose tokens are at most so many, cut at the end of a word.

    >>> cut_to_tokens("a red lamp", 2, str.split)
    'a red'
    """
    if len(token_ids(text)) <= most:
        return text
    words = text.split(" ")
    low, high = 0, len(words)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if len(token_ids(" ".join(words[:middle]))) <= most else (low, middle - 1)
    return " ".join(words[:low])
