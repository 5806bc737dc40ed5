"""Item texts as token ids, for models that train the LLM which reads them."""

from __future__ import annotations

import logging
from typing import NamedTuple

import numpy as np

from recbole_mm.errors import ConfigError
from recbole_mm.llm.item_vectors import Content
from recbole_mm.llm.model import MLLM
from recbole_mm.llm.prompts import ItemPrompt

logger = logging.getLogger(__name__)


class ItemTokens(NamedTuple):
    """Token ids of every item.

    Attributes:
        ids: (n_items, T) int32, T the longest item's length; zeros after an item's own tokens.
        lengths: (n_items,) int64; 0 for padding and for items without a text.
    """

    ids: np.ndarray
    lengths: np.ndarray


def tokenize_items(content: Content, mllm: MLLM, max_text_tokens: int, prompt: ItemPrompt | None = None) -> ItemTokens:
    """Tokenize each item's text as `ItemEncoder` does for frozen vectors, without the token that ends it.

    An item is its text and the instruction of `prompt`. The token at which the item's vector is read is left to the
    model, which learns it.

    Args:
        content: the items; index 0 is padding.
        mllm: whose tokenizer is used.
        max_text_tokens: longer texts are cut; the instruction never is.
        prompt: the wording after the text.

    Raises:
        ConfigError: no item has a text, or `max_text_tokens` is below 1.
    """
    if max_text_tokens < 1:
        raise ConfigError(f"max_text_tokens must be at least 1, not {max_text_tokens!r}")
    instruction = mllm.token_ids(f"\n{(prompt or ItemPrompt()).instruction(False, True)}")
    rows: list[np.ndarray] = []
    cut = 0
    for index in range(len(content)):
        text = (content.text(index) or "").strip()
        words = mllm.token_ids(text) if text else []
        cut += len(words) > max_text_tokens
        rows.append(_prompt(mllm, [*words[:max_text_tokens], *instruction]) if text else np.zeros(0, dtype=np.int32))
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    if not lengths.any():
        raise ConfigError("no item has a text to tokenize: set text_fields, and keep text among the modalities")
    ids = np.zeros((len(rows), lengths.max()), dtype=np.int32)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = row
    logger.info(
        "Item texts: %d items, %d without a text, %d tokens, %d texts cut to %d tokens",
        *(len(rows) - 1, int((lengths[1:] == 0).sum()), int(lengths.sum()), cut, max_text_tokens),
    )
    return ItemTokens(ids, lengths)


def _prompt(mllm: MLLM, words: list[int]) -> np.ndarray:
    """The words with what the model's family opens a prompt with."""
    return mllm.family.prepare([words], mllm.family.max_pixels).ids.astype(np.int32)
