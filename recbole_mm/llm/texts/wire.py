"""What travels between here and an OpenAI-compatible server: messages, pictures, errors, requests to wait."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

from PIL import Image

from recbole_mm.llm.texts.request import Request

IMAGE_SIDE = 1024
"""Longer pictures are made smaller before they are sent."""
JPEG_QUALITY = 92


def message_content(request: Request) -> str | list[dict[str, Any]] | None:
    """The content of a chat message; None where the picture cannot be had. Called in threads."""
    if request.image is None:
        return _encodable(request.prompt)
    image = request.image()
    if image is None:
        return None
    picture = {"type": "image_url", "image_url": {"url": data_url(image)}}
    return [picture, {"type": "text", "text": _encodable(request.prompt)}]


def _encodable(text: str) -> str:
    """Without lone surrogates (a broken file's bytes read as text), which many servers refuse."""
    return text.encode("utf-8", "replace").decode("utf-8")


def data_url(image: Image.Image) -> str:
    """A picture as the `data:` address that servers take: a JPEG of at most `IMAGE_SIDE` pixels a side."""
    if max(image.size) > IMAGE_SIDE:
        image = image.copy()
        image.thumbnail((IMAGE_SIDE, IMAGE_SIDE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.convert("RGB").save(file, "JPEG", quality=JPEG_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"


def error_message(raw: bytes) -> str:
    """What a server says is wrong: the message of an error in JSON, or the beginning of anything else."""
    text = raw[:2000].decode("utf-8", "replace")
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError):
        return text or "nothing"
    while isinstance(found, dict):
        inner = next((found[key] for key in ("error", "message", "detail", "msg") if found.get(key)), None)
        if inner is None:
            return text
        found = inner
    return found if isinstance(found, str) else text
