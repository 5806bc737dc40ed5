"""The question that CoLLM asks of a user and an item, as token ids with places for their collaborative vectors.

A prompt is a prefix that depends on the user alone (history and instruction) and a suffix that depends on the item
alone (title and the cue to answer), so that all candidates of a user share the prefix.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from recbole_mm.errors import ConfigError
from recbole_mm.llm.model import MLLM

OPENING = "A person chose, in this order:\n"
ENTRY = "- "
USER_VECTOR = "The person, by everybody's choices: "
INSTRUCTION = "Would the person choose this next? Answer Yes or No.\n"
ITEM_VECTOR = "This, by everybody's choices: "
CUE = "Answer:\n"
NO_TITLE = "something without a title"


class Prompt:
    """Builds prompts as token ids. In those with vectors, a placeholder token stands for each vector.

    Args:
        mllm: its tokenizer is used. The placeholder is its `[Cur_Item]` token, which no text can spell.
        titles: title of every item by RecBole's id; index 0 is padding.
        max_title_tokens: longer titles are cut.
        max_history: number of a history's last items in a prompt.

    Raises:
        ConfigError: a bound is below 1.
    """

    def __init__(self, mllm: MLLM, titles: Sequence[str], max_title_tokens: int, max_history: int) -> None:
        if max_title_tokens < 1 or max_history < 1:
            raise ConfigError("collm_title_tokens and collm_history must be at least 1")
        self.placeholder = mllm.cur_item_id
        self.max_history = max_history
        ids = (mllm.token_ids(title or NO_TITLE)[:max_title_tokens] for title in titles)
        self.titles = [np.array(words, dtype=np.int32) for words in ids]

        def words(text: str) -> np.ndarray:
            """Return the token ids of a text."""
            return np.array(mllm.token_ids(text), dtype=np.int64)

        # The family puts BOS in front, where the checkpoint wants it.
        self.opening = mllm.family.prepare([mllm.token_ids(OPENING)], mllm.family.max_pixels).ids
        self.entry, self.line = words(ENTRY), words("\n")
        vector = np.array([self.placeholder], dtype=np.int64)
        self.instruction = {
            False: words(INSTRUCTION),
            True: np.concatenate([words(USER_VECTOR), vector, words("\n" + INSTRUCTION)]),
        }
        self.cue = {
            False: words("\n" + CUE),
            True: np.concatenate([words("\n" + ITEM_VECTOR), vector, words("\n" + CUE)]),
        }

    def prefix(self, history: Sequence[int] | np.ndarray, with_vector: bool) -> np.ndarray:
        """Token ids (L,) int64 of the user's part.

        Args:
            history: items, the earliest first.
            with_vector: whether there is a place for the user's vector.
        """
        parts = [self.opening]
        for item in history[-self.max_history :]:
            parts += [self.entry, self.titles[item], self.line]
        return np.concatenate([*parts, self.instruction[with_vector]])

    def suffix(self, item: int, with_vector: bool) -> np.ndarray:
        """Token ids (L,) int64 of the item's part; it ends where the answer begins."""
        return np.concatenate([self.titles[item], self.cue[with_vector]])
