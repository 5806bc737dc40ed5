"""Untrusted bytes to an RGB picture, with Pillow alone.

Nothing here sets Pillow's module globals (`Image.MAX_IMAGE_PIXELS`, `ImageFile.LOAD_TRUNCATED_IMAGES`): the limits are
arguments, checked against the header before a pixel is decoded.
"""

from __future__ import annotations

import io
import logging
import math
from collections.abc import Callable

import numpy as np
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    WebPImagePlugin,
)

from recbole_mm.errors import ImageError

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp")
"""Suffixes of files that may be images, the preferred ones first; the format is recognized by the content."""

UNREAD_SUFFIXES = frozenset({".avif", ".avifs", ".heic", ".heif", ".jp2", ".jxl", ".svg", ".tif", ".tiff"})
"""Images that are not read. For AVIF and TIFF, Pillow does not know before decoding how much memory that takes."""

DEFAULT_MAX_PIXELS = 50_000_000

_Transpose = Image.Transpose
_EXIF_ORIENTATION = 0x0112
_EXIF_TURNS = {
    2: _Transpose.FLIP_LEFT_RIGHT,
    3: _Transpose.ROTATE_180,
    4: _Transpose.FLIP_TOP_BOTTOM,
    5: _Transpose.TRANSPOSE,
    6: _Transpose.ROTATE_270,
    7: _Transpose.TRANSVERSE,
    8: _Transpose.ROTATE_90,
}


def _identify(data: bytes) -> tuple[str, Callable[[io.BytesIO], ImageFile.ImageFile]] | None:
    """The format's name and Pillow's reader for it, recognized by the first bytes alone; None for anything else.

    The readers are called directly and not through `Image.open`, which would also try formats that run outside programs
    (EPS) and warn about big images through the process-wide warning filters.
    """
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG", JpegImagePlugin.JpegImageFile
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG", PngImagePlugin.PngImageFile
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WebP", WebPImagePlugin.WebPImageFile
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "GIF", GifImagePlugin.GifImageFile
    if data.startswith(b"BM"):
        return "BMP", BmpImagePlugin.BmpImageFile
    return None


def suffix_of(data: bytes) -> str | None:
    """The suffix of an image file by its content, such as `.jpg`; None for what `decode_image` does not read."""
    found = _identify(data)
    return None if found is None else {"JPEG": ".jpg"}.get(found[0], f".{found[0].lower()}")


def _webp_size(data: bytes) -> tuple[int, int]:
    """Canvas width and height of a WebP file; libwebp allocates the canvas as soon as it opens the file."""
    kind = data[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF


def _check_size(size: tuple[int, int], name: str, max_pixels: float) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise ImageError(f"{name}: the image is {width} x {height} pixels; it has no content")
    if width * height > max_pixels:
        raise ImageError(
            f"{name}: the image is {width} x {height} pixels, over the limit of {int(max_pixels):,}; "
            "shrink it or raise max_image_pixels"
        )


def _shrunk(size: tuple[int, int], max_side: int) -> tuple[int, int]:
    """`size` with its longer side cut to `max_side`, the shape kept."""
    scale = max_side / max(size)
    return max(1, math.ceil(size[0] * scale)), max(1, math.ceil(size[1] * scale))


def _orientation(image: Image.Image, name: str) -> int:
    """EXIF orientation, 1 (upright) when there is none or the EXIF block itself is broken."""
    try:
        value = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception as error:
        # Pillow's EXIF and XMP readers raise half a dozen types on damaged metadata; the pixels are still good.
        logger.debug("%s: EXIF block ignored (%s)", name, error)
        return 1
    return value if isinstance(value, int) else 1


def _to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow mode to RGB: 16-bit scaled (not clipped), transparency composed over white."""
    if image.mode.startswith("I"):
        pixels = np.asarray(image).astype(np.int64)
        if image.mode.startswith("I;16") or pixels.max(initial=0) > 255:
            pixels = pixels // 256
        return Image.fromarray(pixels.clip(0, 255).astype(np.uint8), mode=None).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def decode_image(
    data: bytes, name: str, max_pixels: float = DEFAULT_MAX_PIXELS, max_side: int | None = None
) -> Image.Image:
    """Decode the first frame of a JPEG, PNG, WebP, GIF or BMP file, recognized by its content and not its suffix.

    Args:
        data: the whole file.
        name: what to call the file in error messages.
        max_pixels: width x height above which the image is refused from its header, before decoding.
        max_side: shrink so that the longer side has at most this many pixels; JPEG is then decoded at a reduced scale,
            which is several times faster for large photos.

    Returns:
        An RGB image, turned upright by its EXIF orientation, without metadata.

    Raises:
        ImageError: empty, of another format, too large, truncated or corrupt.
    """
    if not data:
        raise ImageError(f"{name}: the image file is empty")
    found = _identify(data)
    if found is None:
        raise ImageError(f"{name}: the content is not a JPEG, PNG, WebP, GIF or BMP image")
    kind, opener = found
    if kind == "WebP":
        _check_size(_webp_size(data), name, max_pixels)
    try:
        with opener(io.BytesIO(data)) as image:
            _check_size(image.size, name, max_pixels)
            if max_side is not None and max(image.size) > max_side:
                image.draft(None, _shrunk(image.size, max_side))
            image.load()
            turn = _EXIF_TURNS.get(_orientation(image, name))
            picture = _to_rgb(image)
    except (ImageError, MemoryError):
        raise
    except Exception as error:
        # Pillow's readers raise OSError, SyntaxError, ValueError, struct.error, IndexError, ... on damaged input.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(f"{name}: broken {kind} image ({reason})") from error
    if turn is not None:
        picture = picture.transpose(turn)
    if max_side is not None and max(picture.size) > max_side:
        picture.thumbnail((max_side, max_side), Image.Resampling.BICUBIC)
    # An image processor that sees the EXIF block again would turn the picture a second time.
    picture.info = {}
    return picture
