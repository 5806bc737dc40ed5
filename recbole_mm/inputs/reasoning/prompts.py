"""What the LLM is told (MLLMRec, section 4.1; MLLM-MSR). A prompt is part of its text's key: new wording, new text.

Each wording says three things: what is given, what to write, and what to leave out. The last keeps answers to the
point: an introduction or a remark on the image's quality would be encoded like everything else.
"""

from __future__ import annotations

from collections.abc import Sequence

DESCRIPTION = (
    "The picture shows one {domain}.{named} Describe it for somebody who is deciding whether to choose it: say what it "
    "is, then its colours, materials or medium, pattern, style and mood, and what it is good for, as far as each "
    "applies to a {domain}. Keep to what the picture shows, name an attribute rather than praise it, and skip what "
    "cannot be made out. Plain sentences, at most {words} words, without an introduction."
)

PROFILE = (
    "Each numbered line is one {domain} that the same person chose, the oldest first and the most recent last{cut}.\n\n"
    "{history}\n\n"
    "What does this person look for in a {domain}? Weigh what returns again and again above what occurs once, and "
    "recent choices above old ones. Write a profile in plain sentences, at most {words} words: the kinds and "
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


def description_prompt(domain: str, title: str, words: int) -> str:
    """The request for an image's description.

    Args:
        domain: what an item is called.
        title: the item's name; empty if it has none.
        words: at most so many are asked for.
    """
    return DESCRIPTION.format(domain=domain, named=f" It is called: {title}." if title else "", words=words)


def history_line(number: int, text: str) -> str:
    """One item of a history: its text in one line.

    >>> history_line(3, "Title: Lamp\\nColour: red")
    '3. Title: Lamp; Colour: red'
    """
    return f"{number}. " + "; ".join(part.strip() for part in text.splitlines() if part.strip())


def profile_prompt(domain: str, texts: Sequence[str], left_out: int, words: int) -> str:
    """The request for a user's profile.

    Args:
        domain: what an item is called.
        texts: of the items, oldest first.
        left_out: how many older items are not shown.
        words: at most so many are asked for.
    """
    return PROFILE.format(domain=domain, cut=_cut(left_out), history=_history(texts), words=words)


def preference_prompt(domain: str, texts: Sequence[str], left_out: int, words: int, before: str | None = None) -> str:
    """The request for what a user prefers (MLLM-MSR): after the first choices, or brought up to date by later ones.

    Args:
        domain: what an item is called.
        texts: of the items, oldest first.
        left_out: how many older items are not shown.
        words: at most so many are asked for.
        before: what was written before these items were chosen; None at the beginning.
    """
    told = {"domain": domain, "cut": _cut(left_out), "history": _history(texts), "words": words}
    return PREFERENCE.format(**told) if before is None else PREFERENCE_AFTER.format(**told, before=before)


def _cut(left_out: int) -> str:
    return f" ({left_out} older ones are left out)" if left_out else ""


def _history(texts: Sequence[str]) -> str:
    return "\n".join(history_line(number, text) for number, text in enumerate(texts, start=1))
