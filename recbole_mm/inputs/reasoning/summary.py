"""A user's profile without any LLM: what the chosen items' metadata has most of, and the latest titles, in prose.

It is what the `template` backend says of a user: plain words that a sentence encoder understands, the same on every
machine, made of nothing but the `.item` file and the user's own history.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import chain

from recbole.utils import FeatureType

from recbole_mm.data.content import ItemContent
from recbole_mm.data.item_facts import LONG_VALUE, ItemFacts
from recbole_mm.data.item_text import clean_text, label_of
from recbole_mm.inputs.reasoning.decay import Decay

RARITY = 0.5
"""Exponent of a value's rarity: 0 ranks values by their number alone, 1 as tf-idf does."""
VALUES = 3
"""Number of values of each column in a summary."""
TITLES = 10
DETAILS = 2
"""Number of attributes of each title in a summary."""
LEAST_REPEATED = 0.2
"""A column is about taste if at least this share of its values occurs more than once; a product's number does not."""

_NOTHING = frozenset({"unknown", "n/a", "na", "nan", "none", "null", "undefined", "other"})
_SEPARATORS = re.compile(r"\s*[,|;]\s+|\s*[|;]\s*")
_WRAPPING = " '\"[]"


class Attributes:
    """The columns of an `.item` file that hold attributes, and how much each of their values says.

    Columns of numbers, of long texts and of values that never return are left out, and so is the title. Lists are taken
    apart: `A, B` where commas, bars or semicolons separate, `A B` where the column is a list of words out of few.

    Everything is counted over the whole file, never over interactions.

    Args:
        facts: of the items.
    """

    def __init__(self, facts: ItemFacts) -> None:
        self.facts = facts
        table = facts.content.source.table
        self._split: dict[str, Callable[[str], list[str]]] = {}
        self.rarity: dict[str, dict[str, float]] = {}
        for column in facts.columns:
            assert table is not None  # which the columns are of
            kind = table.kinds[column]
            if column == facts.title or kind in (FeatureType.FLOAT, FeatureType.FLOAT_SEQ):
                continue
            written = [value for value in map(clean_text, table.column(column).values()) if _says_something(value)]
            if not written or sum(map(len, written)) >= LONG_VALUE * len(written):
                continue
            split = _splitter(written, kind)
            counts = Counter(chain.from_iterable(set(split(value)) for value in written))
            repeated = sum(count for count in counts.values() if count > 1)
            if repeated >= LEAST_REPEATED * counts.total():
                self._split[column] = split
                self.rarity[column] = {
                    value: math.log(1 + len(written) / count) ** RARITY for value, count in counts.items()
                }
        self._of: dict[int, dict[str, list[str]]] = {}

    def of(self, item: int) -> dict[str, list[str]]:
        """Column -> values of one item; kept, since histories show the same items again and again."""
        if item not in self._of:
            fields = self.facts.content.fields(item)
            self._of[item] = {
                column: split(value)
                for column, split in self._split.items()
                if _says_something(value := clean_text(fields.get(column, "")))
            }
        return self._of[item]

    @property
    def columns(self) -> list[str]:
        """In the order of the item's text."""
        return list(self._split)


def _says_something(value: str) -> bool:
    return bool(value) and value.lower() not in _NOTHING


def _splitter(written: Sequence[str], kind: FeatureType) -> Callable[[str], list[str]]:
    """How a column's values are taken apart."""
    if sum(bool(_SEPARATORS.search(value)) for value in written) >= len(written) / 5:
        return lambda value: [part for part in (part.strip(_WRAPPING) for part in _SEPARATORS.split(value)) if part]
    whole = set(written)
    words = {word for value in whole for word in value.split()}
    if kind == FeatureType.TOKEN_SEQ and len(words) < len(whole) / 2:
        return str.split
    return lambda value: [value]


class HistorySummary:
    """Writes profiles of histories.

    Args:
        content: the items.
        words: at most so many.
        decay: how older choices count.

    Example:
        >>> HistorySummary(dataset.content, 100).of([3, 17, 8])           # doctest: +SKIP
        'Likes class Drama, Crime; director Ang Lee. Chose lately: Seven (Crime); Lust, Caution (Drama).'
    """

    def __init__(self, content: ItemContent, words: int, decay: Decay | None = None) -> None:
        self.facts = ItemFacts(content)
        self.words = words
        self.decay = decay or Decay()

    @cached_property
    def attributes(self) -> Attributes:
        """The columns of attributes; counted on first use."""
        return Attributes(self.facts)

    def of(self, items: Sequence[int], ages: Sequence[float] | None = None) -> str | None:
        """The profile of one user.

        Args:
            items: item ids in time order.
            ages: days between each choice and the latest one, where older ones count less by time.

        Returns:
            None where the metadata of these items says nothing, or text is not among the modalities.
        """
        if "text" not in self.facts.content.modalities or not self.facts.columns:
            return None
        liked = self._liked(items, ages)
        titles = self._titles(items)
        for values in range(VALUES, 0, -1):  # fewer values of each column until the words suffice
            text = self._text({column: ranked[:values] for column, ranked in liked.items()}, titles)
            if text is None or len(text.split()) <= self.words:
                return text
        columns = list(liked)
        while text and len(text.split()) > self.words:
            if titles:
                titles = titles[:-1]
            elif len(columns) > 1:
                columns.pop()
            else:
                return " ".join(text.split()[: self.words])
            text = self._text({column: liked[column][:1] for column in columns}, titles)
        return text

    def _liked(self, items: Sequence[int], ages: Sequence[float] | None = None) -> dict[str, list[str]]:
        """Column -> values, those first that occur often, lately, and not in every item's metadata."""
        weights: dict[str, dict[str, float]] = {column: defaultdict(float) for column in self.attributes.columns}
        counts = self.decay.weights(len(items), ages)
        for item, count in zip(reversed(items), reversed(counts)):
            for column, values in self.attributes.of(item).items():
                for value in values:
                    weights[column][value] += count * self.attributes.rarity[column].get(value, 1)
        return {
            column: [value for value, _ in sorted(found.items(), key=lambda pair: (-pair[1], pair[0]))]
            for column, found in weights.items()
            if found
        }

    def _titles(self, items: Sequence[int]) -> list[str]:
        """The latest titles, newest first, none twice, each with the first attributes of its item: `Contact (1997,
        Drama)`. Counted apart, colour and kind no longer say that it was the dress that was red."""
        title = self.facts.title
        if title is None or title in self.attributes.columns:
            return []
        titles: dict[str, str] = {}
        for item in reversed(items):
            name = clean_text(self.facts.content.fields(item).get(title, ""))
            if name and name not in titles:
                values = [values[0] for values in self.attributes.of(item).values() if values][:DETAILS]
                titles[name] = f"{name} ({', '.join(values)})" if values else name
            if len(titles) == TITLES:
                break
        return list(titles.values())

    def _text(self, liked: dict[str, list[str]], titles: Sequence[str]) -> str | None:
        tastes = [f"{_named(column)} {', '.join(values)}" for column, values in liked.items()]
        sentences = [f"Likes {'; '.join(tastes)}."] if tastes else []
        sentences += [f"Chose lately: {'; '.join(titles)}."] if titles else []
        return " ".join(sentences) or None


def _named(column: str) -> str:
    """`product_type_name` -> `product type`."""
    return label_of(column).lower().removesuffix(" name")
