"""Composes an item's columns into the one text that models and prompts read."""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from recbole_mm.errors import ConfigError

# Control characters that separate words, and those that mean nothing in text. Format characters (joiners of emoji,
# direction marks of Arabic and Hebrew) are part of the text and stay.
_SEPARATING = re.compile("[\t\n\v\f\r\x1c-\x1f\x85\u2028\u2029]+")
_MEANINGLESS = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f]+")


def clean_text(value: str) -> str:
    """One line of NFC text without NUL and control characters; every other Unicode character is kept."""
    value = _MEANINGLESS.sub("", _SEPARATING.sub(" ", value))
    return unicodedata.normalize("NFC", value).strip()


def label_of(column: str) -> str:
    """A column's name in plain words: `movie_title` -> `Title`, `release_year` -> `Release year`.

    >>> label_of("item_brand_name")
    'Brand name'
    """
    words = re.sub("^(item|movie)_", "", column).replace("_", " ").strip() or column
    return words[0].upper() + words[1:]


def parse_template(template: str) -> list[tuple[str, str | None]]:
    """Cut a template such as `"{title} by {brand}"` into (literal text, column or None) parts.

    Only plain column names may stand in braces: nothing is looked up inside a value, and `{{` is a brace.

    Raises:
        ConfigError: unbalanced braces, a conversion or format, attribute or index access, or no column at all.
    """
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ConfigError(f"text_template {template!r}: {error}; write a brace of the text itself twice") from error
    for _, column, spec, conversion in parts:
        if column is not None and (spec or conversion or not column or set(column) & set(".[]{}")):
            raise ConfigError(
                f"text_template {template!r}: only plain column names may stand in braces, as in {{title}}"
            )
    if not any(column for _, column, _, _ in parts):
        raise ConfigError(f"text_template {template!r} names no column; write column names in braces, as in {{title}}")
    return [(literal, column) for literal, column, _, _ in parts]


@dataclass(frozen=True)
class TextLayout:
    """How the columns of one item are put together.

    Attributes:
        columns: the columns that are read, in order.
        template: parts from `parse_template`; None for one line `Label: value` per column that has a value.
        max_chars: the text is cut after so many characters; None keeps all.

    Example:
        >>> TextLayout(["title", "brand_name"]).compose({"title": "Lamp", "brand_name": "Arc"}.__getitem__)
        ('Title: Lamp\\nBrand name: Arc', False)
    """

    columns: Sequence[str]
    template: Sequence[tuple[str, str | None]] | None = None
    max_chars: int | None = None

    def compose(self, value_of: Callable[[str], str]) -> tuple[str | None, bool]:
        """The item's text, None when none of its columns has a value; and whether it was cut.

        Args:
            value_of: column -> value as written.
        """
        values = {column: clean_text(value_of(column)) for column in self.columns}
        if not any(values.values()):
            return None, False
        if self.template is None:
            text = "\n".join(f"{label_of(column)}: {value}" for column, value in values.items() if value)
        else:
            text = "".join(literal + (values[column] if column else "") for literal, column in self.template).strip()
        if self.max_chars is not None and len(text) > self.max_chars:
            return text[: self.max_chars].rstrip(), True
        return text, False

    def has_text(self, value_of: Callable[[str], str]) -> bool:
        """Whether `compose` gives a text, without composing it."""
        return any(clean_text(value_of(column)) for column in self.columns)
