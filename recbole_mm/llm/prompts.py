"""The prompts given to a multimodal LLM. A prompt's wording is part of every artifact key that depends on it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

CUR_ITEM = "[Cur_Item]"
"""The special token whose last-layer hidden state is the item's vector (Molar, Eq. 1)."""


@dataclass(frozen=True)
class ItemPrompt:
    """What the model reads after an item's image and text, and right before `[Cur_Item]`.

    One wording per case, so that an item without a picture is not asked about its picture. Short, since every item pays
    for it; asking for one word draws the item's meaning into the next token's state, which is the one that is read.

    Example:
        >>> ItemPrompt().instruction(has_image=False, has_text=True)
        'In one word, the item described above:'
    """

    image_and_text: str = "In one word, the item pictured and described above:"
    image_only: str = "In one word, the item pictured above:"
    text_only: str = "In one word, the item described above:"

    def instruction(self, has_image: bool, has_text: bool) -> str:
        """The wording for an item that has an image, a text, or both.

        Raises:
            ValueError: the item has neither, so there is nothing to ask about.
        """
        if has_image and has_text:
            return self.image_and_text
        if has_image:
            return self.image_only
        if has_text:
            return self.text_only
        raise ValueError("an item with neither image nor text has no prompt")

    @property
    def identity(self) -> str:
        """All wordings, as one string for artifact keys."""
        return json.dumps(asdict(self), sort_keys=True)
