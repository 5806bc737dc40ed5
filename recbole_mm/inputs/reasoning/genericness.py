"""How generic texts about users are: whether they say of one user what they do not say of all others.

A small LLM that is asked for a profile tends to write one that fits everybody ("a captivating story with a strong focus
on character"). Encoded, such profiles are one vector, and a model that ranks by them ranks for all users alike.
"""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from itertools import pairwise
from typing import TypeVar

import numpy as np
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, TfidfVectorizer

logger = logging.getLogger(__name__)

Key = TypeVar("Key", bound=Hashable)

SAMPLE = 500
"""Texts that are looked at, drawn with a fixed seed: distinct words are fewer, and nearest texts nearer, the more there
are, so that figures of larger samples could not be compared."""
LEAST = 10
"""Of fewer texts nothing is said."""
STEM = 5
"""Letters by which words are compared with those of items: comedy and comedies, drama and dramatic."""
SHORT = 4
"""Shorter words say nothing of an item, in any language that writes words apart."""
UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")
"""Scripts without blanks between words, by the names of their characters: each character counts as a word."""

NEAREST_ABOVE = 0.75
"""Texts are generic above this. Measured: .39 to .63 for templates (ml-100k-mm, hm, hm-week), .78 for SmolLM2-135M."""
OWN_BELOW = 0.1
"""Texts are generic if their share of words in items of their user is not by this above that in items of another user.
Measured: .36 to .41 above for templates; .01 for SmolLM2-135M, and .02 at most for templates of other users."""


@dataclass(frozen=True)
class Genericness:
    """Figures of a set of texts, each about one user.

    Attributes:
        texts: how many were looked at.
        distinct_1: distinct words per word, over all texts.
        distinct_2: distinct pairs of neighbouring words per pair.
        nearest: mean over texts of the TF-IDF cosine to the most similar other text; 1: each has a twin.
        foreign: mean share of a text's content words that are in no item of its user.
        foreign_to_others: the same against the items of another user, drawn at random. A text that fits its user no
            better than another has the same share in both.

    Example:
        >>> Genericness(500, 0.02, 0.08, 0.63, 0.71, 0.72).reasons
        ['71% of their words are in no item of their user, 72% in none of another user']
    """

    texts: int
    distinct_1: float
    distinct_2: float
    nearest: float
    foreign: float
    foreign_to_others: float

    def __str__(self) -> str:
        return (
            f"distinct-1 {self.distinct_1:.3f}, distinct-2 {self.distinct_2:.3f}, similarity to the nearest other "
            f"{self.nearest:.2f}, {self.foreign:.0%} of the words are in no item of the user "
            f"({self.foreign_to_others:.0%} in none of another user)"
        )

    @property
    def reasons(self) -> list[str]:
        """What makes the texts generic; empty where nothing does."""
        found = []
        if self.nearest > NEAREST_ABOVE:
            found.append(f"the most similar other text of each is {self.nearest:.2f} similar")
        if self.foreign_to_others - self.foreign < OWN_BELOW:
            found.append(
                f"{self.foreign:.0%} of their words are in no item of their user, {self.foreign_to_others:.0%} in none "
                "of another user"
            )
        return found


def genericness(
    texts: Mapping[Key, str],
    items_of: Callable[[Key], Sequence[int]],
    item_text: Callable[[int], str | None],
    seed: int = 0,
) -> Genericness | None:
    """Measures texts about users.

    Args:
        texts: key -> text of one user.
        items_of: ids of the items that the text of a key is about.
        item_text: item id -> what is known of the item, by the data rather than by an LLM.
        seed: of the sample and of the other users.

    Returns:
        None for fewer than `LEAST` texts with words.

    Example:
        >>> texts = {user: f"Likes red lamps and novel {user:04d}" for user in range(10)}
        >>> measured = genericness(texts, lambda user: [user], lambda item: f"Novel {item:04d}")
        >>> measured.distinct_1, measured.foreign
        (0.25, 0.5)
    """
    rng = np.random.default_rng(seed)
    spoken = [(key, words) for key in _drawn(list(texts), rng) if (words := words_of(texts[key]))]
    if len(spoken) < LEAST:
        return None
    keys, worded = [key for key, _ in spoken], [words for _, words in spoken]
    one, two = (_distinct(worded, count) for count in (1, 2))
    stems = cache(lambda item: content_stems(words_of(item_text(item) or "")))
    own = [set[str]().union(*map(stems, items_of(key))) for key in keys]
    said = [content_stems(words) for words in worded]
    other = np.roll(np.arange(len(keys)), int(rng.integers(1, len(keys))))
    foreign, to_others = _foreign(said, own), _foreign(said, [own[place] for place in other])
    return Genericness(len(keys), *(round(value, 4) for value in (one, two, _nearest(worded), foreign, to_others)))


def report(
    what: str,
    texts: Mapping[Key, str],
    items_of: Callable[[Key], Sequence[int]],
    item_text: Callable[[int], str | None],
) -> dict[str, float]:
    """Measures texts, logs the figures, and warns where they are generic.

    Args:
        what: they are, for people.
        texts, items_of, item_text: as for `genericness`.

    Returns:
        The figures, for `result.json`; empty where there are too few texts.
    """
    measured = genericness(texts, items_of, item_text)
    if measured is None:
        return {}
    logger.info("%s, %d of them: %s", what, measured.texts, measured)
    if measured.reasons:
        logger.warning("%s are GENERIC, they hardly tell users apart: %s", what, "; ".join(measured.reasons))
    return asdict(measured)


# --- words -----------------------------------------------------------------------------------------------------------


class _Separated(dict[int, str]):
    """Character -> itself, a blank for what is no part of a word, and a word of its own in scripts without blanks."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        if unicodedata.category(character)[0] not in "LMN":
            character = " "
        elif unicodedata.name(character, "").startswith(UNSPACED):
            character = f" {character} "
        self[code] = character
        return character


_SEPARATED = _Separated()


def words_of(text: str) -> list[str]:
    """Returns the words of a text in lower case; characters, in scripts without blanks between words.

    Example:
        >>> words_of("Sci-fi, naïve: 猫が好き")
        ['sci', 'fi', 'naïve', '猫', 'が', '好', 'き']
    """
    return unicodedata.normalize("NFC", text).lower().translate(_SEPARATED).split()


def content_stems(words: Sequence[str]) -> set[str]:
    """Returns the beginnings of the words that can say something of an item: no short ones, and no function words of
    English.

    Example:
        >>> sorted(content_stems(words_of("This person likes comedies and 猫")))
        ['comed', 'likes', 'perso', '猫']
    """
    return {word[:STEM] for word in words if _is_content(word)}


@cache
def _is_content(word: str) -> bool:
    if len(word) < SHORT:
        return len(word) == 1 and unicodedata.name(word, "").startswith(UNSPACED)
    return word not in ENGLISH_STOP_WORDS


# --- figures ---------------------------------------------------------------------------------------------------------


def _drawn(keys: list[Key], rng: np.random.Generator) -> Iterator[Key]:
    if len(keys) <= SAMPLE:
        return iter(keys)
    return map(keys.__getitem__, np.sort(rng.choice(len(keys), SAMPLE, replace=False)).tolist())


def _distinct(worded: Sequence[Sequence[str]], count: int) -> float:
    """Distinct n-grams (n = 1 or 2) per n-gram; 1 where there are none."""
    grams = [gram for words in worded for gram in (words if count == 1 else pairwise(words))]
    return len(set(grams)) / len(grams) if grams else 1.0


def _nearest(worded: Sequence[Sequence[str]]) -> float:
    """Mean cosine of each text's TF-IDF vector to the nearest of the others."""
    vectors = TfidfVectorizer(analyzer=list).fit_transform(worded)
    cosines = (vectors @ vectors.T).toarray()
    np.fill_diagonal(cosines, -1)
    return float(cosines.max(axis=1).mean())


def _foreign(said: Sequence[set[str]], items: Sequence[set[str]]) -> float:
    """Mean share of what is said that is in no item; 0 where nothing is said at all."""
    shares = [len(stems - known) / len(stems) for stems, known in zip(said, items, strict=True) if stems]
    return float(np.mean(shares)) if shares else 0.0
