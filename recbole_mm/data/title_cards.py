"""Drawn title cards: the image of an item whose real picture may not be shipped."""

from __future__ import annotations

import colorsys
import hashlib
import io
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont

from recbole_mm.data.images import ImageSource

WIDTH, HEIGHT = 182, 268
MARGIN = 14
FONT_SIZE, LINE_HEIGHT = 20, 26
MAX_LINES = 8
MAX_TITLE_CHARS = 300


@lru_cache(maxsize=64)
def _font(thread: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font, one object per thread: a FreeType face is not to be shared between threads."""
    return ImageFont.load_default(FONT_SIZE)


class TitleCards(ImageSource):
    """Cards of 182 x 268 pixels: the item's title on a color of its own.

    They stand in for posters that may not be shipped, so that the image path does real work; they say nothing that the
    title does not. One title and id give the same PNG bytes under one version of Pillow. An empty title has no card.

    Args:
        titles: item id -> title.

    Example:
        >>> TitleCards({"7": "Alien"}).read("7")[1:4]
        b'PNG'
    """

    def __init__(self, titles: Mapping[str, str]) -> None:
        titles = {item_id: title for item_id, title in titles.items() if title.strip()}
        super().__init__(titles, "drawn title cards", "no title to draw a card from")

    def _read(self, item_id: str, found: str) -> bytes:
        hue = hashlib.sha256(item_id.encode()).digest()[0] / 256
        red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(hue, 0.55, 0.45))
        card = Image.new("RGB", (WIDTH, HEIGHT), (red, green, blue))
        draw = ImageDraw.Draw(card)
        draw.rectangle((4, 4, WIDTH - 5, HEIGHT - 5), outline="white", width=2)
        font = _font(threading.get_ident())
        lines = _wrap(found, lambda text: draw.textlength(text, font=font))
        top = (HEIGHT - LINE_HEIGHT * len(lines)) // 2
        for row, line in enumerate(lines):
            draw.text((MARGIN, top + row * LINE_HEIGHT), line, fill="white", font=font)
        buffer = io.BytesIO()
        card.save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()


def _wrap(title: str, width_of: Callable[[str], float]) -> list[str]:
    """Lines that fit the card; a title that is too long ends in dots."""
    shown = "".join(char if char.isprintable() else " " for char in title[:MAX_TITLE_CHARS])
    lines: list[str] = []
    for piece in (piece for word in shown.split() for piece in _pieces(word, width_of)):
        if lines and width_of(f"{lines[-1]} {piece}") <= WIDTH - 2 * MARGIN:
            lines[-1] += f" {piece}"
        else:
            lines.append(piece)
    return lines if len(lines) <= MAX_LINES else [*lines[: MAX_LINES - 1], "..."]


def _pieces(word: str, width_of: Callable[[str], float]) -> Iterator[str]:
    """A word cut into pieces that fit the card."""
    while word:
        end = len(word)
        while end > 1 and width_of(word[:end]) > WIDTH - 2 * MARGIN:
            end -= 1
        yield word[:end]
        word = word[end:]
