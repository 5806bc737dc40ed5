"""The prompts of item descriptions, profiles (MLLMRec, section 4.1) and preferences (MLLM-MSR), and what fits in them.

A prompt is part of its text's key: new wording, new text.

Each wording says three things: what is given, what to write, and what to leave out. The last keeps answers to the
point: an introduction or a remark on the image's quality would be encoded like everything else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from recbole_mm.inputs.reasoning.decay import Decay
from recbole_mm.llm.texts.generator import Generator, Request

Texts = list[str | None]
"""Text of each item or user by RecBole's id; None for padding and where there is none."""

MARKUP_TOKENS = 64
"""Room for a chat template around a prompt."""

DESCRIPTION = (
    "The picture shows one {domain}.{named} Describe it for somebody who is deciding whether to choose it: say what it "
    "is, then its colours, materials or medium, pattern, style and mood, and what it is good for, as far as each "
    "applies to a {domain}. Keep to what the picture shows, name an attribute rather than praise it, and skip what "
    "cannot be made out. Plain sentences, at most {words} words, without an introduction."
)

DESCRIPTION_OF_FACTS = (
    "This is known of one {domain}:\n\n"
    "{facts}\n\n"
    "Describe it for somebody who is deciding whether to choose it: say what it is, then what sets it apart, and what "
    "it is good for, as far as it can be told from what is known. Name an attribute rather than praise it. Plain "
    "sentences, at most {words} words, without an introduction."
)

PROFILE = (
    "Each numbered line is one {domain} that the same person chose, the oldest first and the most recent last{cut}.\n\n"
    "{history}\n\n"
    "What does this person look for in a {domain}? Weigh what returns again and again above what occurs once, and "
    "{weights}. Write a profile in plain sentences, at most {words} words: the kinds and "
    "attributes preferred, the needs or tastes behind them, and what has changed lately. Speak of preferences and do "
    "not list the choices; no introduction."
)

_CHOICES = (
    "Each numbered line is one {domain} that the same person chose, the oldest first and the most recent last{cut}.\n\n"
    "{history}\n\n"
)

_PARAGRAPH = (
    "Write one paragraph of at most {words} words, in plain sentences, on the kinds and attributes preferred and the "
    "tastes behind them. Do not repeat the names of single choices; no introduction."
)

PREFERENCE = (
    f"{_CHOICES}What does this person look for in a {{domain}}? Weigh what returns again and again above what occurs "
    f"once, and recent choices above old ones. {_PARAGRAPH}"
)

PREFERENCE_AFTER = (
    "This is what is known so far of what a person looks for in a {domain}:\n\n"
    "{before}\n\n"
    f"Then new choices were made. {_CHOICES}Bring what is known up to date: keep what still holds, take up what is "
    "new, and where the two differ let the new choices count for more. The result replaces the old text and must be "
    f"understood without it. {_PARAGRAPH}"
)


def description_prompt(domain: str, title: str, words: int, wording: str = DESCRIPTION) -> str:
    """The request for an image's description.

    Args:
        domain: what an item is called.
        title: the item's name; empty if it has none.
        words: at most so many are asked for.
        wording: of the request.
    """
    return wording.format(domain=domain, named=f" It is called: {title}." if title else "", words=words)


def facts_prompt(domain: str, facts: str, words: int, wording: str = DESCRIPTION_OF_FACTS) -> str:
    """The request for a description by an LLM that sees no images.

    Args:
        domain: what an item is called.
        facts: the item's metadata.
        words: at most so many are asked for.
        wording: of the request.
    """
    return wording.format(domain=domain, facts=facts, words=words)


def history_line(number: int, text: str) -> str:
    """One item of a history: its text in one line.

    >>> history_line(3, "Title: Lamp\\nColour: red")
    '3. Title: Lamp; Colour: red'
    """
    return f"{number}. " + "; ".join(part.strip() for part in text.splitlines() if part.strip())


def profile_prompt(
    domain: str,
    texts: Sequence[str],
    left_out: int,
    words: int,
    decay: Decay | None = None,
    wording: str = PROFILE,
) -> str:
    """The request for a user's profile.

    Args:
        domain: what an item is called.
        texts: of the items, oldest first, each with its age in front where that counts.
        left_out: how many older items are not shown.
        words: at most so many are asked for.
        decay: how older choices count.
        wording: of the request.
    """
    given = {"domain": domain, "cut": _cut(left_out), "history": _history(texts), "words": words}
    return wording.format(**given, weights=(decay or Decay()).told())


def preference_prompt(domain: str, texts: Sequence[str], left_out: int, words: int, before: str | None = None) -> str:
    """The request for what a user prefers (MLLM-MSR): after the first choices, or brought up to date by later ones.

    Args:
        domain: what an item is called.
        texts: of the items, oldest first.
        left_out: how many older items are not shown.
        words: at most so many are asked for.
        before: what was written before these items were chosen; None at the beginning.
    """
    fields = {"domain": domain, "cut": _cut(left_out), "history": _history(texts), "words": words}
    return PREFERENCE.format(**fields) if before is None else PREFERENCE_AFTER.format(**fields, before=before)


def _cut(left_out: int) -> str:
    return f" ({left_out} older ones are left out)" if left_out else ""


def _history(texts: Sequence[str]) -> str:
    return "\n".join(history_line(number, text) for number, text in enumerate(texts, start=1))


def newest_within(costs: Sequence[int], budget: int) -> int:
    """Place of the oldest item that is kept: the newest ones whose costs add up to at most `budget`, one at least.

    >>> newest_within([5, 1, 2, 2], budget=5)
    1
    """
    first = len(costs) - 1
    left = budget - costs[first]
    while first > 0 and costs[first - 1] <= left:
        first -= 1
        left -= costs[first]
    return first


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

    The newest items are kept that fit into a prompt with its other parts; of one that does not fit alone, the beginning
    of its text.

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
        """As much of a text as fits, at a blank where it has one; one character at least."""
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
