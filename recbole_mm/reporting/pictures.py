"""Pictures of items for a page: decoded within limits, made small and encoded anew."""

from __future__ import annotations

import base64
import io

from recbole_mm.config.resolved import Config
from recbole_mm.data.content_source import ContentSource
from recbole_mm.data.decode import decode_image
from recbole_mm.errors import ImageError, RecboleMMError

PICTURE_SIDE = 144
"""Pixels of the longer side; a page shows half of it, for screens of two pixels to a point."""

PICTURE_QUALITY = 70


class Pictures:
    """Pictures of items as `data:` URIs: decoded within limits, made small and encoded anew.

    Args:
        config: of a run, whose settings say where images are.

    Attributes:
        note: why there are none; "" where there may be some.
        broken: item -> why its picture is left out.
    """

    def __init__(self, config: Config) -> None:
        self.note, self.broken = "", dict[str, str]()
        self._source: ContentSource | None = None
        self._written: dict[str, str] = {}
        try:
            self._source = ContentSource.from_config(config, ["image"])
        except RecboleMMError as error:
            self.note = f"no pictures: {error}"

    def of(self, token: str) -> str:
        """Return the picture of an item; "" without one."""
        if token not in self._written:
            self._written[token] = self._encoded(token)
        return self._written[token]

    def _encoded(self, token: str) -> str:
        source = self._source
        if source is None or source.images is None or not source.images.has(token):
            return ""
        try:
            picture = decode_image(
                source.images.read(token), f"item {token}", source.max_image_pixels, max_side=PICTURE_SIDE
            )
        except ImageError as error:
            self.broken[token] = str(error).removeprefix(f"item {token}: ")
            return ""
        written = io.BytesIO()
        picture.save(written, "JPEG", quality=PICTURE_QUALITY)
        return f"data:image/jpeg;base64,{base64.b64encode(written.getvalue()).decode('ascii')}"
