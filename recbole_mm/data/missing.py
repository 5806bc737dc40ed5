"""Items that go without an image or a text on purpose: `missing_rate` and the settings beside it.

This is the one place that says who loses what. `ContentSource.hiding` then reads as if the images and the rows of
`.item` were not there, `llm/features.py` blanks the rows of vectors that come from files, and `HidingMixin` the columns
that RecBole's models read. docs/missing-modalities.md tells the rest.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from recbole_mm.data.splits import TEST, TRAIN

if TYPE_CHECKING:
    from recbole_mm.config.resolved import Config

Hidden = Mapping[str, frozenset[str]]
"""`image` and `text` -> ids of the items that go without; a modality that nobody loses is left out."""

NOTHING: Hidden = {}


@dataclass(frozen=True)
class MissingContents:
    """Which items go without which contents, and when.

    All items are put in an order that depends on `seed` and their ids alone, and the first ones of it lose what
    `content` says. So every model and every run of one `seed` has the same ones, and those of a smaller rate are
    among those of a larger one.

    Attributes:
        rate: share of the items, from 0 to below 1; the count is rounded to the nearest whole number, halves up.
        content: image, text, or both, which the same items lose then.
        at: train, test or both.
        seed: of the order.

    Example:
        >>> missing = MissingContents(rate=0.5, content="image", at="test", seed=0)
        >>> sorted(missing.items(["7", "8", "9", "10"]))
        ['8', '9']
        >>> missing.hidden(["7", "8", "9", "10"], TRAIN), sorted(missing.hidden(["7", "8", "9", "10"], TEST))
        ({}, ['image'])
    """

    rate: float = 0.0
    content: str = "both"
    at: str = "both"
    seed: int = 0

    @classmethod
    def of(cls, config: Config) -> MissingContents:
        """The settings of a run; `missing_seed` is `seed` where it is null."""
        seed = config["seed"] if config["missing_seed"] is None else config["missing_seed"]
        rate, content, at = (config[key] for key in ("missing_rate", "missing_content", "missing_at"))
        return cls(rate or 0.0, content or "both", at or "both", seed)

    @property
    def modalities(self) -> tuple[str, ...]:
        """What those items lose; nothing where no item does."""
        if not self.rate:
            return ()
        return ("image", "text") if self.content == "both" else (self.content,)

    @property
    def changes(self) -> bool:
        """Whether the test sees other contents than the training."""
        return bool(self.modalities) and self.at != "both"

    def line(self, ids: Iterable[str]) -> str:
        """What a run says of it."""
        total = len(ids := list(ids))
        when = {"train": "in training", "test": "in the test", "both": "in training and test"}[self.at]
        what = " and ".join(self.modalities)
        return f"missing_rate: {self.rate:g}: {len(self.items(ids)):,} of {total:,} items go without {what} {when}"

    def items(self, ids: Iterable[str]) -> frozenset[str]:
        """The ids of the items that go without, out of those of all items (without padding)."""
        ordered = sorted(ids, key=lambda item: hashlib.sha256(f"{self.seed}\0{item}".encode()).digest())
        return frozenset(ordered[: math.floor(self.rate * len(ordered) + 0.5)])

    def hidden(self, ids: Iterable[str], phase: int) -> Hidden:
        """What is hidden in a phase.

        Args:
            ids: of all items, without padding.
            phase: TRAIN, to which the validation belongs, or TEST, when scores are asked for.
        """
        if not self.modalities or self.at == {TRAIN: "test", TEST: "train"}[phase]:
            return NOTHING
        return dict.fromkeys(self.modalities, self.items(ids))
