"""A page of a report taken apart, and what holds of every page."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

from recbole.model import sequential_recommender  # noqa: F401  (see `without_anomaly_detection`)

MARKUP = '<script>alert(1)</script><img src=x onerror="alert(2)"> & </title>'
TURNED = "The \u202efilm\x1b[2J \U0001f3ac"
VOID = {"meta", "img", "link", "br", "path", "rect", "circle"}


class Page(HTMLParser):
    """A page taken apart: its elements in their order, each with the elements that it stands in."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None], tuple[int, ...]]] = []
        self.texts: list[tuple[str, tuple[int, ...]]] = []
        self._open: list[int] = []
        self.feed(text)
        self.close()
        assert self._open == [], "every element is closed"

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs), tuple(self._open)))
        if tag not in VOID:
            self._open.append(len(self.elements) - 1)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs), tuple(self._open)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.elements[self._open.pop()][0] == tag

    def handle_data(self, data):
        self.texts.append((data, tuple(self._open)))

    def places(self, tag: str, **attributes: str) -> list[int]:
        """Numbers of the elements of a tag."""
        return [
            place
            for place, (name, given, _) in enumerate(self.elements)
            if name == tag and all(given.get(key) == value for key, value in attributes.items())
        ]

    def text(self, place: int) -> str:
        """All text in an element."""
        return " ".join("".join(text for text, inside in self.texts if place in inside).split())

    def inside(self, place: int, tag: str) -> list[int]:
        """Numbers of the elements of a tag within another."""
        return [at for at, (name, _, above) in enumerate(self.elements) if name == tag and place in above]

    def rows(self, caption: str) -> list[list[str]]:
        """The first table with a caption, as texts."""
        place = next(at for at in self.places("table") if self.text(self.inside(at, "caption")[0]) == caption)
        cells = [at for at, (tag, _, above) in enumerate(self.elements) if tag in ("td", "th") and place in above]
        rows = {row: [] for row in self.inside(place, "tr")}
        for cell in cells:
            rows[self.elements[cell][2][-1]].append(self.text(cell))
        return list(rows.values())


def check_page(page: Page) -> None:
    """Holds of every page: it fetches and runs nothing, and can be read without seeing it."""
    tags = Counter(tag for tag, _, _ in page.elements)
    assert not tags.keys() & {
        "script",
        "iframe",
        "link",
        "object",
        "embed",
        "form",
        "base",
        "image",
        "use",
        "foreignobject",
    }
    for tag, attributes, above in page.elements:
        assert not [name for name in attributes if name.startswith("on")]
        assert "style" not in attributes
        for name in ("src", "href", "xlink:href", "action", "srcset"):
            value = attributes.get(name)
            assert value is None or value.startswith("#" if tag == "a" else "data:image/jpeg;base64,")
        if tag == "img":
            assert attributes["alt"] is not None
            assert "li" in [page.elements[at][0] for at in above], "named by the text of its item"
    assert not re.search(r"url\(|@import|https?:", "".join(page.text(at) for at in page.places("style")))
    for place in page.places("svg"):
        assert page.elements[place][1]["role"] == "img"
        assert page.text(page.inside(place, "title")[0])
    for place in page.places("figure"):
        assert page.inside(place, "svg")
        assert page.inside(place, "table"), "its numbers"
        assert page.text(page.inside(place, "figcaption")[0])
    ids = [attributes["id"] for _, attributes, _ in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = [attributes["href"] for _, attributes, _ in page.elements if "href" in attributes]
    assert {target.removeprefix("#") for target in targets} <= set(ids)
    levels = [int(tag[1]) for tag, _, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert page.elements[page.places("html")[0]][1]["lang"] == "en"


def page_of(path: Path) -> Page:
    text = path.read_text(encoding="utf-8")
    assert text.startswith("<!DOCTYPE html>")
    page = Page(text)
    check_page(page)
    return page
