"""What a misspelt name was meant to be: the one place that guesses."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import SequenceMatcher, get_close_matches

NAMES_SHOWN = 20


def nearest(name: str, known: Iterable[str], count: int = 3, cutoff: float = 0.6) -> list[str]:
    """Names that are spelt most like one, at most `count` of a likeness of at least `cutoff`, the nearest first.

    >>> nearest("sasrce", ["sasrec", "gru4rec", "bpr"], count=1)
    ['sasrec']
    """
    return get_close_matches(name, list(known), n=count, cutoff=cutoff)


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.5) -> str:
    """`; did you mean 'title'?`, or the known names when none is near and they are few.

    >>> did_you_mean("titel", ["title", "genre"]), did_you_mean("xyz", ["title", "genre"])
    ("; did you mean 'title'?", '; there are: title, genre')
    """
    known = list(known)
    if near := nearest(name, known, 1, cutoff):
        return f"; did you mean {near[0]!r}?"
    return f"; there are: {', '.join(known)}" if len(known) <= NAMES_SHOWN else ""


def likeness(one: str, other: str) -> float:
    """How alike two names are spelt, from 0 to 1; case and underscores do not count."""
    first, second = (text.replace("_", "").lower() for text in (one, other))
    return SequenceMatcher(None, first, second).ratio()
