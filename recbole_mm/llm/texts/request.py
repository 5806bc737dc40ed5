"""One text that is wanted, and all that it may be made of."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image

NO_PICTURE = "the picture cannot be loaded"
"""Why a text fails whose picture is not there; a reason may follow."""


@dataclass(frozen=True)
class Request:
    """One text that is wanted, and all that it may be made of.

    Attributes:
        prompt: everything the LLM is told, the instruction included.
        fallback: what the `template` backend gives: a deterministic text made of metadata. None: nothing to say.
        image: loads the picture, RGB, or gives None where it turns out to be unusable. Called only by backends that
            read pictures, maybe in a thread.
        image_hash: content hash of the picture, "" without one.

    Raises:
        ValueError: a picture without a hash, or a hash without a picture: texts of different pictures would be one.

    Example:
        >>> Request("Describe this product in one sentence: blue suede shoes", "Blue suede shoes.")
    """

    prompt: str
    fallback: str | None
    image: Callable[[], Image.Image | None] | None = None
    image_hash: str = ""

    def __post_init__(self) -> None:
        if (self.image is None) != (not self.image_hash):
            raise ValueError("a request has a picture and its content hash, or neither")

    def content_hash(self, reads_images: bool) -> str:
        """Hash of what a text is made of, for the artifact key.

        Args:
            reads_images: whether an LLM answers, which reads the picture beside the prompt (the prompt has a place of
                its own in the key); else a template gives the fallback.
        """
        if reads_images:
            return self.image_hash
        if self.fallback is None:
            return ""
        return hashlib.sha256(self.fallback.encode("utf-8", "surrogatepass")).hexdigest()
