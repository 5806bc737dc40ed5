"""What a misspelt name was meant to be: the one place that guesses."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher, get_close_matches

NAMES_SHOWN = 20
MOST_COMPARED = 5000
LONGEST_GUESSED = 64


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


def nearest_of_many(name: str, known: Sequence[str], count: int = 3) -> list[str]:
    """As `nearest`, among hundreds of thousands of names: at most `MOST_COMPARED` that begin alike are compared.

    A name of more than `LONGEST_GUESSED` letters is compared with none.

    >>> nearest_of_many("item12O3", [f"item{number}" for number in range(2_000)], count=1)
    ['item123']
    """
    if len(name) > LONGEST_GUESSED:
        return []
    alike: dict[str, None] = {}
    of_like_length = [other for other in known if abs(len(other) - len(name)) < 3]
    for length in range(len(name), -1, -1):
        begins = [other for other in of_like_length if other.startswith(name[:length])]
        if length and len(begins) > MOST_COMPARED:
            break
        alike.update(dict.fromkeys(begins[:MOST_COMPARED]))
    return nearest(name, alike, count)


def likeness(one: str, other: str) -> float:
    """How alike two names are spelt, from 0 to 1; case and underscores do not count."""
    first, second = (text.replace("_", "").lower() for text in (one, other))
    return SequenceMatcher(None, first, second).ratio()
