"""Facts about items for prompts: image, text, metadata, and a description made of the metadata."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from recbole_mm.data.content import ItemContent
from recbole_mm.data.item_text import TextLayout, clean_text, label_of

LONG_VALUE = 60
"""Characters from which a metadata value is given a sentence of its own."""


class ItemFacts:
    """Image, text, metadata and description of items.

    Args:
        content: the items.
        description_column: column of `.item` with a description in prose. It is shown in no prompt that asks for the
            description. None: descriptions are written from the metadata by a template.

    Attributes:
        described: items whose description came from the column, among those asked for.
        templated: items whose description the template wrote.
        columns: of `.item` that an item's text is made of, without that of the description.
        title: the one of them that names the item; None where there are no columns.
    """

    def __init__(self, content: ItemContent, description_column: str | None = None) -> None:
        self.content = content
        self.description_column = description_column
        self.described: set[int] = set()
        self.templated: set[int] = set()
        # Answers may quote the metadata even where prompts show images alone.
        layout: TextLayout | None = content.source.layout
        layout = None if layout is None else _without(layout, description_column)
        self._layout = layout if "text" in content.modalities else None
        self._texts: dict[int, str | None] = {}
        self.columns = [] if layout is None else list(layout.columns)
        self.title = title_column(self.columns)

    def has_image(self, item: int) -> bool:
        """Whether there is an image file; that it can be decoded shows when it is."""
        return "image" in self.content.modalities and self.content.source.has_image(self.content.tokens[item])

    def text(self, item: int) -> str | None:
        """The item's text as the encoder reads it. Composed once: histories show the same items again and again."""
        if item not in self._texts:
            self._texts[item] = self.content.text(item)
        return self._texts[item]

    def metadata(self, item: int) -> str | None:
        """The item's text without its description, nor a column that repeats it; None where nothing is left."""
        if self._layout is None:
            return None
        fields = self.content.fields(item)
        known = self._written(fields)
        shown = {column: "" if known and clean_text(value) == known else value for column, value in fields.items()}
        return self._layout.compose(lambda column: shown.get(column, ""))[0]

    def description(self, item: int) -> str | None:
        """The description of the column, else one written from the metadata; None where there is neither."""
        fields = self.content.fields(item)
        if written := self._written(fields):
            self.described.add(item)
            return written
        composed = in_prose({column: clean_text(fields.get(column, "")) for column in self.columns}, self.title)
        if composed:
            self.templated.add(item)
        return composed

    def _written(self, fields: Mapping[str, str]) -> str:
        """The description that the column holds, or nothing."""
        return "" if self.description_column is None else clean_text(fields.get(self.description_column, ""))


def in_prose(values: Mapping[str, str], title: str | None) -> str | None:
    """Metadata as sentences: the description of an item that nobody has described.

    Args:
        values: column -> value, in the order of the sentences; empty ones are left out.
        title: the column that names the item.

    Returns:
        The sentences; None where nothing but the title is known.

    Example:
        >>> in_prose({"title": "Lamp", "colour": "red", "price": "9"}, "title")
        'This is Lamp, with colour red and price 9.'
    """
    known = {label_of(column).lower(): value for column, value in values.items() if value and column != title}
    if not known:
        return None
    named = values.get(title, "") if title is not None else ""
    subject = f"This is {named}" if named else "This is an item"
    *before, last = [f"{label} {value}" for label, value in known.items() if not _is_sentence(value)] or [""]
    with_these = f"{', '.join(before)} and {last}" if before else last
    sentences = [_closed(f"{subject}, with {with_these}" if last else subject)]
    sentences += [_closed(f"Its {label} reads: {value}") for label, value in known.items() if _is_sentence(value)]
    return " ".join(sentences)


def _is_sentence(value: str) -> bool:
    return len(value) >= LONG_VALUE or value.endswith((".", "!", "?"))


def _closed(sentence: str) -> str:
    return sentence if sentence.endswith((".", "!", "?")) else f"{sentence}."


def title_column(columns: Sequence[str]) -> str | None:
    """The first column called a title or name, else the first one; None where there are none.

    Example:
        >>> title_column(["year", "movie_title"])
        'movie_title'
    """
    named = (name for name in columns if {"title", "name"} & set(name.lower().split("_")))
    return next(named, next(iter(columns), None))


def _without(layout: TextLayout, column: str | None) -> TextLayout:
    """The layout that leaves one column out, with the words that a template puts before it."""
    columns = [name for name in layout.columns if name != column]
    template = layout.template
    if template is not None:
        template = [(literal, name) for literal, name in template if name is None or name != column]
    return TextLayout(columns, template, layout.max_chars)
