"""Kinds of settings: what a value must be, in code and in words, and what a value written in another way stands for.

Two rules hold for every setting: where names or numbers are listed, a single one is the list of it alone; and a path
that starts with `~` starts at the home folder. A kind's `normal` applies both.

    >>> list_of(is_name, "names").normal("title"), from_to(1, 3).accepts(4), from_to(1, 3).words
    (['title'], False, 'a whole number from 1 to 3')
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from recbole_mm.utils.paths import expanded, is_path

LARGEST_SIZE, MOST_LAYERS, LARGEST_NUMBER = 10**9, 1000, 1e30
"""Bounds of a model's parameters: beyond them nothing ends, or a float32 has no such number."""

LARGEST_SEED = 2**32 - 1
"""That numpy takes."""


@dataclass(frozen=True)
class Kind:
    """What a setting accepts.

    Attributes:
        accepts: the test of a value.
        words: the same in words.
        normal: what a value stands for, which is what is tested, kept and read; a value of another kind comes back as
            it is.
        is_text: whether the command line's text is the value as it stands, never YAML.
        type: Python's type of a value, for comments in YAML files.
    """

    accepts: Callable[[Any], bool]
    words: str
    normal: Callable[[Any], Any] = lambda value: value
    is_text: bool = False
    type: str = "dict"


def is_number(value: Any, low: float = -math.inf, high: float = math.inf) -> bool:
    """Whether it is a finite number in these bounds, both included."""
    kind = isinstance(value, (int, float)) and not isinstance(value, bool)
    return kind and math.isfinite(value) and low <= value <= high


def is_whole(value: Any, low: float = -math.inf, high: float = math.inf) -> bool:
    """Whether it is a whole number in these bounds, both included."""
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def is_name(value: Any) -> bool:
    """Whether it is a text that is not empty."""
    return isinstance(value, str) and value != ""


def is_list_of(value: Any, accepts: Callable[[Any], bool]) -> bool:
    """Whether it is a list of entries that are accepted."""
    return isinstance(value, list) and all(accepts(entry) for entry in value)


def whole(low: int, high: int | None = None) -> Kind:
    """A whole number of at least `low`, and of at most `high` where it is given."""
    words = f"a whole number of at least {low}" + ("" if high is None else f", at most {high}")
    return Kind(lambda value: is_whole(value, low, math.inf if high is None else high), words, type="int")


def size(low: int) -> Kind:
    """A whole number of at least `low` of which so many things are made or counted."""
    return whole(low, LARGEST_SIZE)


def layers(low: int) -> Kind:
    """A whole number of at least `low`, for each of which something is built or computed anew."""
    return whole(low, MOST_LAYERS)


def from_to(low: int, high: int) -> Kind:
    """A whole number in these bounds, both included."""
    return Kind(lambda value: is_whole(value, low, high), f"a whole number from {low} to {high}", type="int")


def up_to(high: int) -> Kind:
    """A whole number whose amount is at most `high`."""
    return Kind(lambda value: is_whole(value, -high, high), f"a whole number, up to {high}", type="int")


def number(low: float, high: float = LARGEST_NUMBER, below: bool = False) -> Kind:
    """A number of at least `low` and at most `high`, or below it."""
    if high == LARGEST_NUMBER:
        words = f"a number of at least {low:g}, up to {high:g}" if low > -high else f"a number, up to {high:g}"
    else:
        words = f"a number from {low:g} to {'below ' * below}{high:g}"
    return Kind(lambda value: is_number(value, low, high) and not (below and value == high), words, type="float")


def above_zero(high: float = LARGEST_NUMBER) -> Kind:
    """A number above 0, at most `high`."""
    words = "a number above 0" if high == LARGEST_NUMBER else f"a number above 0, at most {high:g}"
    return Kind(lambda value: is_number(value, 0, high) and value > 0, words, type="float")


def choice(*options: str | None) -> Kind:
    """One of these texts."""
    words = "one of " + ", ".join("null" if name is None else name for name in options)
    return Kind(lambda value: value in options, words, type="str")


def or_null(kind: Kind) -> Kind:
    """The same, or null."""
    words = f"{kind.words}, or null" if "," in kind.words else f"{kind.words} or null"
    return replace(kind, accepts=lambda value: value is None or kind.accepts(value), words=words)


def listed(value: Any) -> Any:
    """A single name or number as the list of it alone."""
    return [value] if isinstance(value, (str, int, float)) else value


def list_of(accepts: Callable[[Any], bool], words: str, type: str = "list of str") -> Kind:
    """A list of entries that are accepted."""
    return Kind(lambda value: is_list_of(value, accepts), words, listed, type=type)


def not_empty(kind: Kind) -> Kind:
    """The same, but for the empty one."""
    return replace(kind, accepts=lambda value: bool(value) and kind.accepts(value))


def by_name(accepts: Callable[[Any], bool], words: str, normal: Callable[[Any], Any] = lambda entry: entry) -> Kind:
    """A mapping from names, of files or of columns, to what is meant of each."""

    def normal_of_each(value: Any) -> Any:
        return {name: normal(entry) for name, entry in value.items()} if isinstance(value, dict) else value

    def accepts_each(value: Any) -> bool:
        return isinstance(value, dict) and all(map(is_name, value)) and all(map(accepts, value.values()))

    return Kind(accepts_each, words, normal_of_each)


def mapping_of(parts: Mapping[str, Kind | None], example: Mapping[str, Any], null: bool = False) -> Kind:
    """A mapping, each of whose parts is of its kind; other names are accepted, and left to the model.

    Args:
        parts: kind of each part; None accepts everything.
        example: for the words.
        null: whether each part may be null.
    """

    def accepts(value: Any) -> bool:
        return isinstance(value, dict) and all(
            kind is None or key not in value or (null and value[key] is None) or kind.accepts(value[key])
            for key, kind in parts.items()
        )

    return Kind(accepts, f"a mapping such as {shown(example)}")


FLAG = Kind(lambda value: isinstance(value, bool), "True or False", type="bool")
TEXT = Kind(is_name, "a text", is_text=True, type="str")
PATH = Kind(
    lambda value: is_name(value) and is_path(value),
    "a path, whose names have at most 255 bytes",
    expanded,
    is_text=True,
    type="str",
)
MODEL = replace(PATH, words="a model's name, or the path of its folder")
SHARE = number(0, 1)
MAPPING = Kind(lambda value: isinstance(value, dict), "a mapping")
NAMES = list_of(is_name, "a name or a list of names")
SEED = from_to(0, LARGEST_SEED)


# --- kinds by defaults -----------------------------------------------------------------------------------------------

_REAL = re.compile(
    r"(prob|probs|ratio|weight|weights|factor|reg|rate|max|min|resolution|hours|liked_from)$|dropout|alpha|beta|gamma|^q$"
)
"""Names of parameters that are numbers though their default is a whole one."""

_REPEATED = re.compile(r"layer|hop|depth|head|n_iter|block_num|order$")
"""Names of whole numbers for each of which something is built or computed anew."""


def kind_like(name: str, default: Any, bounded: bool = True) -> Kind | None:
    """Kind of a parameter that is not declared; None where its default, null or an empty list, does not tell one.

    Args:
        name: of the parameter; some are numbers, or counts of layers, by their names.
        default: by a property file.
        bounded: whether it may not be below 0 where its default is not.
    """
    if isinstance(default, bool):
        return FLAG
    if isinstance(default, int) and not _REAL.search(name):
        high = MOST_LAYERS if _REPEATED.search(name) else LARGEST_SIZE
        return from_to(0, high) if bounded and default >= 0 else up_to(high)
    if isinstance(default, (int, float)):
        return number(0.0 if bounded and default >= 0 else -LARGEST_NUMBER)
    if isinstance(default, str):
        return or_null(Kind(lambda value: isinstance(value, str), "a text", type="str"))
    if isinstance(default, dict):
        return mapping_of({key: kind_like(key, value, bounded) for key, value in default.items()}, default)
    entry = kind_like(name, default[0], bounded) if isinstance(default, list) and default else None
    return None if entry is None else list_of(entry.accepts, f"a list, each entry {entry.words}")


# --- messages --------------------------------------------------------------------------------------------------------


def shown(value: Any, most: int = 200) -> str:
    """A value in a message, cut where it is long."""
    try:
        return abridged(repr(value), most)
    except ValueError:  # a whole number of thousands of digits
        return "a number of thousands of digits"


def abridged(text: str, most: int = 200) -> str:
    """A text in a message, cut where it is long."""
    return text if len(text) <= most else f"{text[:most]}..."
