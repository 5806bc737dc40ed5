"""Titles of items, for prompts."""

from __future__ import annotations

import logging
from typing import Protocol

from recbole_mm.data.item_text import clean_text
from recbole_mm.errors import ConfigError

logger = logging.getLogger(__name__)


class Titles(Protocol):
    """Items aligned to RecBole's ids; index 0 is padding."""

    def __len__(self) -> int: ...

    def text(self, index: int, /) -> str | None:
        """Return the item's text, or None."""

    def fields(self, index: int, /) -> dict[str, str]:
        """Return the item's columns."""


def read_titles(content: Titles, field: str | None, key: str = "collm_title_field") -> list[str]:
    """Return the title of each item, `""` for padding and for items without one.

    Args:
        content: the items.
        field: the column of the `.item` file that holds titles; None takes the whole text.
        key: the setting that names the column, for errors.

    Raises:
        ConfigError: there is no such column, or no item has a title.
    """
    titles = [""]
    for index in range(1, len(content)):
        if field is None:
            titles.append(clean_text(content.text(index) or ""))
            continue
        columns = content.fields(index)
        if columns and field not in columns:
            raise ConfigError(f"{key}: the .item file has no column {field!r}, only {', '.join(columns)}")
        titles.append(clean_text(columns.get(field, "")))
    if not any(titles):
        raise ConfigError(f"prompts tell titles and no item has one: set {key}, or text_fields")
    if lacking := len(titles) - 1 - sum(map(bool, titles)):
        logger.warning("%d items have no title: prompts call each 'something without a title'", lacking)
    return titles
