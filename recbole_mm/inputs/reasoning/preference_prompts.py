"""Requests for what a user prefers: which items are shown, and how much of them fits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from recbole_mm.inputs.reasoning.items import Texts
from recbole_mm.inputs.reasoning.profiles import MARKUP_TOKENS, newest_within
from recbole_mm.inputs.reasoning.prompts import history_line, preference_prompt
from recbole_mm.llm.texts.generator import Generator, Request


@dataclass(frozen=True)
class Shown:
    """A request and what it shows.

    Attributes:
        request: for an LLM.
        items: that are shown, oldest first.
        cut: items that are known but not shown, or only the beginning of whose text is.
    """

    request: Request
    items: tuple[int, ...]
    cut: int


class PreferencePrompts:
    """Makes requests of items and of what was written before.

    The newest items are kept that fit beside the rest of the prompt; of one that does not fit alone, the beginning of
    its text.

    Args:
        texts: of the items by RecBole's id; an item without one is not shown.
        domain: what an item is called.
        words: at most so many are asked for.
        generator: counts tokens.
        context_tokens: most tokens of a prompt.
        history_tokens: most tokens of the items in it; None: what the prompt has room for.
    """

    def __init__(
        self,
        texts: Texts,
        domain: str,
        words: int,
        generator: Generator,
        context_tokens: int,
        history_tokens: int | None = None,
    ) -> None:
        self.texts, self.domain, self.words = texts, domain, words
        self.generator = generator
        self.context_tokens, self.history_tokens = context_tokens, history_tokens
        self._costs: dict[int, int] = {}

    def of(self, items: Sequence[int], before: str | None = None) -> Shown | None:
        """The request for a user's preferences after these items; None where nothing is known of any of them.

        Args:
            items: oldest first.
            before: what was written before them; None at the beginning.
        """
        known = [item for item in items if self.texts[item]]
        if not known:
            return None
        costs = [self._cost(item) for item in known]
        budget = self._budget(before)
        shown = known[newest_within(costs, budget) :]
        words = [self.texts[item] or "" for item in shown]
        cut = len(known) - len(shown)
        if len(shown) == 1 and costs[-1] > budget:
            words, cut = [self._beginning(words[0], budget)], cut + 1
        prompt = preference_prompt(self.domain, words, len(known) - len(shown), self.words, before)
        return Shown(Request(prompt, None), tuple(shown), cut)

    def _cost(self, item: int) -> int:
        if item not in self._costs:
            self._costs[item] = self._tokens(self.texts[item] or "")
        return self._costs[item]

    def _tokens(self, text: str) -> int:
        return self.generator.count_tokens(history_line(100, text) + "\n")

    def _budget(self, before: str | None) -> int:
        """Tokens for the items of a prompt."""
        frame = self.generator.count_tokens(preference_prompt(self.domain, [], 1_000_000, self.words, before))
        room = self.context_tokens - frame - MARKUP_TOKENS
        return room if self.history_tokens is None else min(self.history_tokens, room)

    def _beginning(self, text: str, budget: int) -> str:
        """As much of a text as fits, at a blank where there is one; one character at least."""
        least, most = 1, len(text)
        while least < most:
            middle = (least + most + 1) // 2
            if self._tokens(text[:middle]) <= budget:
                least = middle
            else:
                most = middle - 1
        beginning = text[:least]
        if least < len(text) and not text[least].isspace():
            beginning = beginning.rpartition(" ")[0] or beginning
        return beginning.rstrip()
