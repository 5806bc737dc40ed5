"""What a page is made of: sections of paragraphs, tables, figures and cases. `page.html` writes each of them once.

Texts are plain texts here; the page escapes all of them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from markupsafe import Markup

Cell = str | int | float | None
"""A float is written with four decimal places, None as an empty cell."""


_NUMBER = re.compile(r"[-+<]?[\d,]*\.?\d+%?")


def _is_number(cell: Cell) -> bool:
    return isinstance(cell, (int, float)) or (isinstance(cell, str) and _NUMBER.fullmatch(cell) is not None)


@dataclass(frozen=True)
class Paragraph:
    """A text; a warning stands out by its word, its border and its role."""

    text: str
    is_warning: bool = False
    kind: ClassVar[str] = "paragraph"


@dataclass(frozen=True)
class Notes:
    """Texts as a list."""

    texts: Sequence[str]
    kind: ClassVar[str] = "notes"


@dataclass(frozen=True)
class Grid:
    """A table.

    Attributes:
        caption: what it shows.
        header: names of the columns; the first column names the rows.
        rows: cells.
        is_folded: whether it is opened by a click or a key.
    """

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    is_folded: bool = False
    kind: ClassVar[str] = "grid"

    @property
    def numeric(self) -> list[bool]:
        """Whether each column holds numbers, which stand to the right.

        Example:
            >>> Grid("x", ["run", "users"], [["Pop", "1,000"], ["SASRec", None]]).numeric
            [False, True]
        """
        columns = [[row[place] for row in self.rows] for place in range(len(self.header))]
        return [
            place > 0
            and any(map(_is_number, column))
            and all(_is_number(cell) or cell in (None, "") for cell in column)
            for place, column in enumerate(columns)
        ]


@dataclass(frozen=True)
class Figure:
    """A picture, and its numbers as a table for whoever does not see it.

    Attributes:
        title: what it shows.
        svg: from `figures.py`, escaped there.
        grid: its numbers.
    """

    title: str
    svg: Markup
    grid: Grid
    kind: ClassVar[str] = "figure"


@dataclass(frozen=True)
class Item:
    """An item of a history or a list.

    Attributes:
        token: its id.
        title: "" where it has none.
        picture: a `data:` URI that this package encoded; "" where it has none.
        words: what an LLM wrote of it.
        is_hit: whether it is a held-out item of the user.
    """

    token: str
    title: str = ""
    picture: str = ""
    words: str = ""
    is_hit: bool = False


@dataclass(frozen=True)
class Ranking:
    """The best items of one model for the user of a case.

    Attributes:
        name: of the run.
        rank: of the held-out item that is ranked first, as the evaluation counted it, in words.
        items: the best first.
        words: what an LLM wrote of the user.
    """

    name: str
    rank: str
    items: Sequence[Item]
    words: str = ""


@dataclass(frozen=True)
class Case:
    """One user: the history, the held-out items, and what each model put first.

    Attributes:
        user: id.
        why: why this user is shown.
        history: the latest items that were known, the earliest first.
        earlier: how many items of the history came before these.
        targets: held-out items.
        rankings: by run.
        shared: how many items the lists share, in words.
    """

    user: str
    why: str
    history: Sequence[Item]
    earlier: int
    targets: Sequence[Item]
    rankings: Sequence[Ranking]
    shared: str = ""
    kind: ClassVar[str] = "case"

    @property
    def has_pictures(self) -> bool:
        """Whether an item of the case has one, so that there is a place for those that have none."""
        lists = [self.history, self.targets, *(ranking.items for ranking in self.rankings)]
        return any(item.picture for items in lists for item in items)


Block = Paragraph | Notes | Grid | Figure | Case


@dataclass
class Section:
    """A part of a page, with an entry in its contents; one without blocks is left out."""

    title: str
    blocks: list[Block] = field(default_factory=list)
